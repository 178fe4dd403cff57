"""How values lie on the devices of a mesh: shards of a worker's tensors, and what differs between workers."""

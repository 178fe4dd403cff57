"""Steps of data-parallel training timed on a cluster of network namespaces, see `__main__`."""

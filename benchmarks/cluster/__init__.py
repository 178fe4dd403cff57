"""Times steps of data-parallel training on a cluster of network namespaces, see `__main__`."""

"""Test accuracy against seconds on a cluster of network namespaces, see `__main__`."""

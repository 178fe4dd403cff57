"""Times what nodes of several processes send each other over one link a node, see `__main__`."""

"""The map: where DEF equals SGD, by the capacity of the network."""

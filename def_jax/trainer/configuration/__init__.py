"""Training configurations: keys and defaults, validation, and construction of the optimizer."""

"""The methods that DEF is compared with, as optax transformations."""

"""Configurations of the trainer: every key with its default, what is allowed, and the optimizer."""

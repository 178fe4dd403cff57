"""What a step sends: read from its trace (`traced`) or from the compiled program (`hlo`, `crossing`)."""

from def_jax.traffic.traced import Message, Traffic, traffic

__all__ = ['Message', 'Traffic', 'traffic']

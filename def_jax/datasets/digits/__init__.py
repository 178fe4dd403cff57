"""scikit-learn's handwritten digits as a TFDS data set; importing this registers `digits`."""

from def_jax.datasets.digits.digits import Digits

__all__ = ['Digits']

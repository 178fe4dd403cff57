"""scikit-learn's handwritten digits as a TFDS data set; importing this registers `digits`."""

from def_jax.trainer.data.digits.digits import Digits

__all__ = ['Digits']

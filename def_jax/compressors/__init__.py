"""What is sent in one step: a linear compressor C. `base` says what that is."""

from def_jax.compressors.base import Compressor, Selection, check_compressor, message_size
from def_jax.compressors.random_block import identity, random_block

__all__ = [
    'Compressor',
    'Selection',
    'check_compressor',
    'identity',
    'message_size',
    'random_block',
]

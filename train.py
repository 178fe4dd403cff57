"""Trains a network with detached error feedback: `python -m def_jax.train`, from a checkout."""

import runpy

if __name__ == '__main__':
    runpy.run_module('def_jax.train', run_name='__main__', alter_sys=True)

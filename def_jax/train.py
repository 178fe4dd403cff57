"""`python -m def_jax.train` trains a network with detached error feedback: `def_jax.trainer.__main__`."""

import runpy

if __name__ == '__main__':
    runpy.run_module('def_jax.trainer', run_name='__main__', alter_sys=True)

"""`python -m def_jax.train` trains with detached error feedback: `def_jax.trainer.launch.__main__`."""

import runpy

if __name__ == '__main__':
    runpy.run_module('def_jax.trainer.launch', run_name='__main__', alter_sys=True)

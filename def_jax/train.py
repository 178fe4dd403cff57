"""`python -m def_jax.train` trains with detached error feedback: `def_jax.trainer.launch.__main__`."""

import runpy
import signal

if __name__ == '__main__':
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # As in train.py: until the program answers signals itself, Ctrl-C ends it without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    runpy.run_module('def_jax.trainer.launch', run_name='__main__', alter_sys=True)

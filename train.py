"""Trains a network with detached error feedback: `python -m def_jax.train`, from a checkout."""

import runpy
import signal

if __name__ == '__main__':
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Until the program answers signals itself, Ctrl-C ends it without a traceback from an import.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    runpy.run_module('def_jax.trainer.launch', run_name='__main__', alter_sys=True)

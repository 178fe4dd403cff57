"""`python -m def_jax.communication`: what a file with HLO, or the trainer's program of a --config, sends."""

import sys

from def_jax.tools import programs
from def_jax.tools.extras import needs_training

if __name__ == '__main__':
    if not any(argument.startswith(('-config', '--config')) for argument in sys.argv[1:]):
        sys.exit(programs.main())
    with needs_training('communication'):
        from def_jax.trainer.compilation import run
    sys.exit(run())

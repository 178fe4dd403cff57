"""`python -m def_jax.communication`: what a compiled program sends.

Given a file with HLO, `def_jax.tools.communication` reads it. Given --config, `def_jax.trainer.communication`
compiles what the trainer would run.
"""

import sys

from def_jax.tools import communication
from def_jax.tools.extras import needs_training


def main() -> int:
    if any(argument.lstrip('-').startswith('config') for argument in sys.argv[1:]):
        with needs_training('communication'):
            from def_jax.trainer.communication import run
        return run()
    return communication.main()


if __name__ == '__main__':
    sys.exit(main())

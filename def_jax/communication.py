"""`python -m def_jax.communication`: what a compiled program sends.

Given a file with HLO, `def_jax.tools.communication` reads it. Given --config, `def_jax.trainer.communication`
compiles what the trainer would run.
"""

import sys

from def_jax.tools import communication


def main() -> int:
    if any(argument.lstrip('-').startswith('config') for argument in sys.argv[1:]):
        from def_jax.trainer.communication import run  # needs the extra 'training'

        return run()
    return communication.main()


if __name__ == '__main__':
    sys.exit(main())

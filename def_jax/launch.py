"""`python -m def_jax.launch` starts the processes of a run, and starts dead ones again: `tools.launcher`."""

import sys

from def_jax.tools.launcher import main

if __name__ == '__main__':
    sys.exit(main())

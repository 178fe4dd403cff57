"""`python -m def_jax.plan` says whether compression pays on your network: `def_jax.tools.planner`."""

import sys

from def_jax.tools.planner.program import main

if __name__ == '__main__':
    sys.exit(main())

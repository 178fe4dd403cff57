"""Moved: `python -m def_jax.experiments.report`."""

import sys

from def_jax.launch import command_line

if __name__ == '__main__':
    sys.exit(command_line.refuse('report', 'this command is now python -m def_jax.experiments.report'))

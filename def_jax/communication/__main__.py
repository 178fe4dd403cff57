"""The program `python -m def_jax.communication`."""

from def_jax.communication import programs

programs.run()

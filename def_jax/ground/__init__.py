"""What all other rooms stand on: collectives, checks of arguments, traced programs, barriers against XLA."""

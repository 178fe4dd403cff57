"""Program startup and shutdown: command line, processes, devices, signals and exit codes."""

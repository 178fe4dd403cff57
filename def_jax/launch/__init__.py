"""Starting and ending a program: command line, processes, devices, signals, exit codes."""

"""Training tasks, one per file: the loss, the metrics and the variables that they depend on."""

"""The trainer: from a config to a run's metrics, checkpoints and report."""

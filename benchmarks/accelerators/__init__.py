"""What XLA makes of a step for an H100 or a TPU, compiled where there is neither."""

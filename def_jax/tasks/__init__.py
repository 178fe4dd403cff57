"""What is trained: the loss, the figures of merit and the variables behind them, a file each."""

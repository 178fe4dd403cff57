"""AdamW under detached error feedback, on a small transformer. Start with `python -m benchmarks.adamw`."""

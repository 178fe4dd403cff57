"""An optimizer's state: links, which of their leaves are per-worker, their specs, and how they are saved."""

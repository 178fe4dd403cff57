"""Data sets, in memory or streamed, and their preprocessing; `digits` adds a data set that TFDS lacks."""

"""One file per table and figure of the paper; see tables.py for the format."""

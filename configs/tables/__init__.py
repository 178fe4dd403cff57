"""One file for every table and figure of the paper; see tables.py for their form."""

"""Tables of many runs: sweep, report, pictures."""

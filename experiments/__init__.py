"""Experiments: from a specification of runs, through their records, to a page of results.

    python -m experiments run few_bits     # trains what is missing; continues where it stopped
    python -m experiments page few_bits    # writes results/few_bits/README.md from the records

An experiment is one module of this package: what is compared, `SETTINGS`, and the text of its page, `PAGE`.
Its records are JSON lines in `results/<name>/runs.jsonl`.
"""

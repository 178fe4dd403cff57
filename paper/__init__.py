"""Experiments that consist of many runs.

From a table's configuration to its page: `needed_runs` lists the runs, `sweep` trains them, `finished_runs`
reads the results, `cells` averages them, `tables` and `plots` present them, and `report` writes the page.
"""

"""Tables of many runs.

From a table's file to its page: `needed_runs` lists the runs, `sweep` trains them, `finished_runs` reads what
came out, `cells` averages it, `tables` and `plots` show it, and `report` writes the page.
"""

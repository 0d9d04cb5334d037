"""The command line: one file is one command of `clipvet`. In: what the user typed. Out: files, a few sentences and an
exit code. Start with `evaluate.py`, the shortest; `_opening.py` and `_leaving.py` are what all share. Nothing
imports commands but `cli.py`.
"""

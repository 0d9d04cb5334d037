"""The command line: one file is one command of `clipvet`. In: what the user typed. Out: files, a few sentences and an
exit code. Start with `evaluate.py`, the shortest. The work is done in jobs/; shared options are in `_options.py`.
Nothing but `cli.py` may import this room, and a command must not import another one.
"""

"""What a command does, without its command line: one file is one kind of work, and Python calls it as `clipvet` does.
In: names of models, data and tasks, or what they open. Out: a finished folder, and an object that says what is in it.
Start with `vetting.py`, which composes the others. A job opens (`opening.py`), works and measures (`working.py`), and
leaves results (`leaving.py`). Must not import commands.
"""

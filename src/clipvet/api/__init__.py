"""The Python front door: `clipvet.load, inspect, clean, filter, detect, train, evaluate`.

In: models and data as scripts and notebooks hold them (paths, open_clip and transformers models, data sets, data
frames, lists). Out: results that show, plot and save themselves. Start with `verbs.py`; `models.py` and `data.py` take
what is given, `results.py` gives. It uses the commands' own openers and plans, so that both have the same defaults.
Must not import `cli.py`.
"""

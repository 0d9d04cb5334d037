"""Where pairs and tasks come from. In: a table, shards, a folder, or a world that is drawn on the spot. Out: `Pairs`
or a `Task` (see `types.py`). Start with `sources.py`, which opens anything by its name; `tables.py`, `shards.py`
and `folders.py` open one kind of source each, and `kept.py` writes what a filter keeps of them. Poisoned pairs
(`dirty.py`) and the answer key of an attack (`answer_key.py`) live here too. Must not import models or anything above
them: data knows no model.
"""

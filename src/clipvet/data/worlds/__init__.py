"""Pictures and captions that clipvet draws itself, from a seed and nothing else. In: a seed and a number of pictures.
Out: `Pairs` and `Task` objects. Start with `shapes.py`; `foreign.py` draws the same things in another style, and
`pool.py` makes outside pictures for inspectors. Must not import other rooms.
"""

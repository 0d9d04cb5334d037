"""Every checkpoint layout becomes a `Clip`, and goes back to disk as it came. In: a name, a file or a folder. Out: a
`Clip` (see `types.py`). Start with `checkpoints.py`, which loads and saves; `layouts.py` is the table of the other
libraries' layouts, `adapter.py` wraps open_clip, and `gate.py` scans files for code before anything is loaded. Must not
import the engine or anything above it: a model does not know how it is trained.
"""

"""Files on the disk. In: a path, and what to write there. Out: weights, JSON or a folder that is either whole or not
there. Start with `files.py`, the small readers and writers; `weights.py` reads untrusted weights without running their
code, and `outputs.py` is the output folder of every command, with its lock. Every room may use this one. Must not
import anything but `errors.py`, `ranks.py`, `rng.py` and `types.py`.
"""

from clipvet.io.files import line, read_json, replacing, sha256, write_json
from clipvet.io.outputs import AlreadyDone, alone, begun, output, scratch
from clipvet.io.weights import PICKLES, load_weights, save_weights

__all__ = [
    "PICKLES",
    "AlreadyDone",
    "alone",
    "begun",
    "line",
    "load_weights",
    "output",
    "read_json",
    "replacing",
    "save_weights",
    "scratch",
    "sha256",
    "write_json",
]

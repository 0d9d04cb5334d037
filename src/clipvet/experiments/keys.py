"""Content keys: a stage's folder is named by a hash of what goes into it, so a stage is run again when that changes.

What goes in: the version, the settings (reprs) of its parts, the source of the code behind them, and the content of the
user's files that they name. What does not: the measures and the stages' own code. To measure anew, delete the folders.
"""

import dataclasses
import hashlib
import inspect
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from clipvet import __version__, io
from clipvet.data.sources import Data, Test
from clipvet.errors import UserError

# the modules at the package's root: nouns, files, messages. Their source is in no key, as it changes no number
GROUND = ("errors", "find", "io", "ranks", "results", "rng", "settings", "types")


def key(*parts: Any) -> str:
    """Hash of the parts, 16 hexadecimal digits: of their reprs, of the code behind them and of the files they name.

    A part is a method, a data source, a tuple of such, or a plain value. Files that are missing or cannot be read are
    left out: the stage that opens them raises the error.
    """
    behind = sorted({text for part in parts for text in _behind(part)})
    return hashlib.sha256("\n".join([__version__, *map(repr, parts), *behind]).encode()).hexdigest()[:16]


def code(thing: Any) -> str:
    """The source behind a function or class, to be a part of a key: its module, and every module that it builds on."""
    return "\n".join(_sources(thing.__module__))


@cache
def weights(model: str) -> str:
    """Hashes of the files that a model's name leads to, to be a part of a key.

    Empty for an architecture, a tag or a model of a hub, which are known by their names.
    """
    at = Path(model.removeprefix("local-dir:").removeprefix("transformers:"))
    if at.is_dir():
        files = [
            p for p in sorted(at.iterdir()) if p.suffix in (*io.PICKLES, ".safetensors", ".json", ".txt", ".model")
        ]
    else:
        files = [at] if at.is_file() else []
    return " ".join(f"{p.name} {io.sha256(p)}" for p in files)


def _behind(part: Any) -> list[str]:
    """What a part's repr does not say: sources and hashes of files, of the part itself and of what it owns."""
    if isinstance(part, tuple):
        return [text for p in part for text in _behind(p)]
    if not dataclasses.is_dataclass(part):
        return []
    owned = tuple(getattr(part, f.name) for f in dataclasses.fields(part))
    found = _sources(type(part).__module__) + _behind(owned)
    if isinstance(part, (Data, Test)):
        found += [*_behind(part.world()), _files(part)]
    return found


@cache
def _files(part: Data | Test) -> str:
    """Hashes of a user's pictures and, of a test, of the files that name and describe its classes."""
    files = (part.classes, part.templates) if isinstance(part, Test) else ()
    found = [io.sha256(f) for f in files if f and f.is_file()]
    if not part.world():
        with suppress(UserError):  # the stage that opens it will say what is wrong
            found.append((part.pairs() if isinstance(part, Data) else part.task().pictures).fingerprint)
    return " ".join(found)


def _sources(name: str) -> list[str]:
    """The source of a module, and of every module of clipvet that it builds on, directly or through others."""
    found, todo = set(), [name]
    while todo:
        if (name := todo.pop()) not in found:
            found.add(name)
            todo += _used(sys.modules[name])
    return [inspect.getsource(sys.modules[n]) for n in sorted(found)]


def _used(module: ModuleType) -> set[str]:
    """The modules of clipvet that a module imports, or takes functions, classes or instances from."""
    names = set()
    for value in vars(module).values():
        if not isinstance(value, ModuleType):
            names.add(getattr(value, "__module__", None) or "")
        elif not hasattr(module, "__path__"):  # a package also holds what others have imported from it by now
            names.add(value.__name__)
    return {n for n in names if n.startswith("clipvet.") and n.split(".")[1] not in GROUND}

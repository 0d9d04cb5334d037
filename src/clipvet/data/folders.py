"""Zero-shot tasks and plain sets of pictures from folders on the user's disk, with class names and templates."""

import hashlib
import logging
import os
from collections import Counter
from pathlib import Path

import numpy as np

from clipvet.data import decoding
from clipvet.data.class_names import class_names
from clipvet.data.class_names import read_classes as read_classes
from clipvet.data.decoding import MAX_PIXELS, SUFFIXES, FilePictures
from clipvet.data.templates import parse
from clipvet.errors import UserError
from clipvet.types import Pairs, Task

_log = logging.getLogger(__name__)
NOTES = {".txt", ".json", ".jsonl", ".xml", ".csv", ".tsv", ".md", ".html", ".yaml", ".yml", ".ini", ".log", ".parquet"}


def open_task(
    spec: str, classes: Path | None = None, templates: Path | None = None, max_pixels: int = MAX_PIXELS
) -> Task:
    """Open a zero-shot task: a folder with one folder of pictures for each class. Labels number the sorted folders.

    classes: a JSON file, either a list of class names or a map {folder: name}. A list is matched by name if it holds
    the folders' own names, else it is in the order of the sorted folders. If None, the names of the folders, with
    spaces for underscores. templates: a text file, see `read_templates`.
    max_pixels: larger pictures count as unreadable. Raises UserError for a folder or file that cannot be used.
    """
    root = Path(spec)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give one with a folder of pictures for each class")
    folders = sorted(p.name for p in root.iterdir() if p.is_dir() and not hidden(p.name))
    if not folders:
        raise UserError(f"{root} holds no folders; put the pictures of each class into a folder of its own")
    names, labels, passed = [], [], Counter()
    if loose := sum(p.suffix.lower() in SUFFIXES for p in root.iterdir() if p.is_file()):
        passed["beside the class folders"] = loose
    called = class_names(folders, classes, root)
    for label, folder in enumerate(folders):
        passed += passed_over(root / folder)
        found = [name for name in _pictures(root / folder) if not any(map(hidden, Path(name).parts))]
        inside = {name.partition(os.sep)[0] for name in found if os.sep in name}
        if len(inside) > 1 and not any(os.sep not in name for name in found):
            _log.warning(
                "%s holds folders (%s ...) that count as one class", root / folder, ", ".join(sorted(inside)[:3])
            )
        if not found:
            others = f" ({_told(passed)} are not read)" if passed else ""
            raise UserError(f"{root / folder} holds no pictures{others}; add some or remove the folder")
        names += [os.path.join(folder, name) for name in found]
        labels += [label] * len(found)
    pairs = _pairs(names, root, max_pixels, passed)
    return Task(pairs.name, called, read_templates(templates), pairs, np.array(labels, np.int64))


def open_folder(folder: Path, max_pixels: int = MAX_PIXELS) -> Pairs:
    """All pictures in a folder and its subfolders, in order of their paths, as pairs with empty captions.

    max_pixels: larger pictures count as unreadable. Raises UserError if there are no pictures.
    """
    names = _pictures(folder)
    if not names:
        raise UserError(f"{folder} holds no pictures; give a folder with {', '.join(sorted(SUFFIXES)[:4])} ... files")
    return _pairs(names, folder, max_pixels)


def hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or one that macOS adds to its archives."""
    return name.startswith(".") or name == "__MACOSX"


def has_pictures(folder: Path) -> bool:
    """Whether a folder holds pictures, or nothing at all. Other data would have other files there."""
    return bool(_pictures(folder)) or not any(folder.rglob("*"))


def _pictures(folder: Path) -> list[str]:
    """Names of the pictures in a folder and its subfolders, relative to it, in order."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    return [str(p.relative_to(folder)) for p in sorted(found)]


def passed_over(folder: Path) -> Counter[str]:
    """How many files of a folder and its subfolders are not read and may be pictures all the same, by suffix.

    Hidden files and files of text (NOTES) do not count.
    """
    seen = (p for p in folder.rglob("*") if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    found = list(seen)
    suffixes = (p.suffix.lower() for p in found if p.is_file() and p.name.lower() != "thumbs.db")
    out = Counter(s or "no suffix" for s in suffixes if s not in SUFFIXES and s not in NOTES)
    if linked := sum(p.is_symlink() and p.is_dir() for p in found):
        out["links to folders"] = linked
    return out


def check_passed_over(task: Task, max_bad: float) -> Counter[str]:
    """How many files of a task's folders were passed over, by suffix. Raises UserError above `max_bad`, a fraction."""
    passed: Counter[str] = getattr(task.pictures.pictures, "passed", None) or Counter()
    n = passed.total()
    if n > max_bad * (n + len(task.pictures)):
        raise UserError(
            f"{task.name}: {n} files that may be pictures are not read ({_told(passed)}), more than the limit of "
            f"{max_bad:.2%}; save them as PNG or JPEG, remove them or raise --max-bad"
        )
    return passed


def _told(passed: Counter[str]) -> str:
    return ", ".join(f"{n} {suffix}" for suffix, n in passed.most_common(4))


def _pairs(names: list[str], root: Path, max_pixels: int, passed: Counter[str] | None = None) -> Pairs:
    """Pairs without captions. Their fingerprint is of the names and sizes of the files."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name}\0{(root / name).stat().st_size}\0".encode(errors="surrogateescape"))
    pictures = FilePictures(names, root, max_pixels)
    pictures.passed = passed or Counter()
    return Pairs(
        pictures,
        [""] * len(names),
        np.arange(len(names)),
        name=root.resolve().name,
        workers=decoding.workers_for(len(names)),
        fingerprint=digest.hexdigest()[:16],
    )


def read_templates(path: Path | None) -> tuple[str, ...]:
    """Caption templates from a file, as templates.py reads it: one a line, or a JSON list, with `{}` or `{c}`.

    path: if None, open_clip's seven templates for ImageNet. Returns templates with `{}`. Raises UserError for a file
    that cannot be read, holds no template, or holds a line without a place for the class.
    """
    if path is None:
        from open_clip import SIMPLE_IMAGENET_TEMPLATES

        return tuple(t("{}") for t in SIMPLE_IMAGENET_TEMPLATES)
    try:
        if path.exists() and not path.is_file():  # a pipe would never end
            raise OSError("no plain file")
        lines = parse(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path} cannot be read ({e}); give a UTF-8 text file with one template a line") from e
    except ValueError as e:
        raise UserError(f"{path}: {e}") from e
    wrong = [line for line in lines if "{}" not in line]
    if wrong or not lines:
        what = f"template {wrong[0]!r} has no {{}}" if wrong else "there are no templates"
        raise UserError(f"{path}: {what}; write one a line, with {{}} where the class name goes")
    return tuple(lines)

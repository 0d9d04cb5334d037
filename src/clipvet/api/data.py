"""Pictures, captions and classes as scripts hold them become `Pairs` or a `Task`.

Pictures may be paths, PIL images, uint8 arrays (h, w, 3) or float tensors (3, h, w) in [0, 1]. They are prepared by the
same steps as files are.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipvet.data import folders
from clipvet.data.captions import captioned
from clipvet.data.class_names import check_different, spoken
from clipvet.data.decoding import MAX_PIXELS, decoded
from clipvet.data.sources import WORLDS, Data, Test
from clipvet.errors import UserError
from clipvet.types import Geometry, Pairs, Task

IMAGES = ("filepath", "image", "img", "picture", "path", "file", "file_name", "jpg", "png")
CAPTIONS = ("title", "caption", "text", "sentence", "txt")
LABELS = ("label", "class", "labels", "fine_label", "category", "target")
FORMS = "a path, Pairs, a list of (picture, caption), a pandas DataFrame, an HF data set or a torch Dataset"


class _Held:
    """Pictures that a script holds; `get(k)` is the picture of row k."""

    def __init__(self, get: Callable[[int], Any], n: int):
        self.get, self.n = get, n

    def __len__(self) -> int:
        return self.n

    def fetch(self, rows: Sequence[int], geometry: Geometry | None) -> tuple[Tensor, list[tuple[int, str]]]:
        """As `FilePictures.fetch`."""
        return decoded(rows, lambda k: _source(self.get(k)), lambda k: f"row {k}", geometry, MAX_PIXELS)


def _source(picture: Any) -> Any:
    """A path or a PIL image. Raises ValueError for anything else that is no picture."""
    if isinstance(picture, str | Path):
        if not Path(picture).is_file():
            raise ValueError("no such file")
        return str(picture)
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, dict) and ("bytes" in picture or "path" in picture):  # HF's undecoded Image
        import io

        held = picture.get("bytes")
        return io.BytesIO(held) if held else _source(picture.get("path"))
    if isinstance(picture, Tensor):
        if picture.ndim != 3 or picture.shape[0] not in (1, 3):
            raise ValueError(f"a tensor of shape {tuple(picture.shape)} is no picture (3, h, w)")
        if picture.is_floating_point() and not (picture.min() >= 0 and picture.max() <= 1):
            raise ValueError("pixels outside of [0, 1]; give pictures before they are normalised")
        scaled = picture * 255 if picture.is_floating_point() else picture
        picture = scaled.round().to(torch.uint8).expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()
    if isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.ndim in (2, 3):
        return Image.fromarray(picture)
    raise ValueError(f"a {type(picture).__name__} is no picture")


def pairs_of(data: Any, n: int | None = None, size: int = 32, split: str = "train", seed: int = 0) -> Pairs:
    """Pictures with captions. data: as FORMS says, or what --data names. n: the first n only.

    size, split, seed: of a built-in world. Raises UserError for anything else.
    """
    if isinstance(data, Pairs):
        return data.take(slice(n)) if n else data
    if isinstance(data, str | Path):
        return Data(str(data), n, split, size).pairs(seed)
    get, said, name = _rows(data, CAPTIONS)
    captions = [str(c) if isinstance(c, str) else _no_text(c) for c in said]
    made = _held(get, captions, name)
    return made.take(slice(n)) if n else made


def pictures_of(data: Any, n: int, size: int = 32, seed: int = 0) -> Pairs:
    """Pictures without captions: a folder, a list of pictures, or anything that has pictures with captions.

    n: at most so many, drawn from the seed as the commands draw them.
    """
    from dataclasses import replace

    from clipvet.jobs import inspection

    if isinstance(data, str | Path):
        return inspection.pictures_of(str(data), n, size, seed)
    if isinstance(data, list | tuple) and data and not isinstance(data[0], tuple | list):
        found = _held(lambda k: data[k], [""] * len(data), "pictures")
    else:
        found = pairs_of(data, size=size, split="validation", seed=seed)
    return inspection.drawn(replace(found, last=()), n, seed)


def task_of(
    task: Any, classes: Sequence[str] | Path | None = None, templates: Sequence[str] | Path | None = None,
    size: int = 32, seed: int = 0,
) -> Task:  # fmt: skip
    """Labelled pictures. task: a folder with a folder for each class, `shapes`, a Task, a list of (picture, class
    name), or a data set, an HF data set or a DataFrame with labels.

    classes: names of the classes, in the order of the numbers that are the labels; `_` becomes a blank. templates:
    captions with {}. Raises UserError for fewer than two classes, a class named twice, or a label without a name.
    """
    if isinstance(task, Task):
        return task
    prompts = tuple(templates) if isinstance(templates, list | tuple) else folders.read_templates(_path(templates))
    if isinstance(task, str | Path):
        return _named_task(str(task), classes, templates, prompts, size, seed)
    get, labels, name = _rows(task, LABELS)
    names = list(classes) if isinstance(classes, list | tuple) else _names(task)
    if names is None:
        names = sorted({str(y) for y in labels})
        if any(isinstance(y, int | np.integer) for y in labels):
            raise UserError("the labels are numbers; give classes, the names in their order")
    check_different(names, name)
    at = {c: k for k, c in enumerate(names)}
    rows = [y if isinstance(y, int | np.integer) else at.get(str(y), -1) for y in labels]
    if len(names) < 2 or any(not 0 <= y < len(names) for y in rows):
        wrong = next((y for y, k in zip(labels, rows) if not 0 <= k < len(names)), None)
        raise UserError(
            f"{name}: {len(names)} classes"
            + (f", and label {wrong!r:.40} is none of them" if wrong is not None else "; a task needs two")
        )
    made = _held(get, [""] * len(rows), name, last=False)
    return Task(name, tuple(map(spoken, names)), prompts, made, np.array(rows, np.int64))


def _named_task(task: str, classes: Any, templates: Any, prompts: tuple[str, ...], size: int, seed: int) -> Task:
    from dataclasses import replace

    given = isinstance(classes, list | tuple)
    path = None if given else _path(classes)
    found = Test(
        task, size=size, classes=path, templates=_path(templates) if not isinstance(templates, list | tuple) else None
    ).task(seed)
    if given and len(classes) != len(found.classes):
        raise UserError(f"{len(classes)} classes for the {len(found.classes)} of {task}; give a name for each")
    if given and task in WORLDS:
        return found.only(classes)
    if given:
        check_different(classes, "classes")
    found = replace(found, classes=tuple(map(spoken, classes))) if given else found
    return replace(found, templates=prompts) if isinstance(templates, list | tuple) else found


def _path(given: Any) -> Path | None:
    return None if given is None else Path(given)


def _rows(data: Any, columns: Sequence[str]) -> tuple[Callable[[int], Any], list[Any], str]:
    """How to get the picture of a row; the second part of every row (caption or label); a name."""
    if isinstance(data, list | tuple):
        odd = next((r for r in data if not isinstance(r, tuple | list) or len(r) != 2), None)
        if not data or odd is not None:
            raise UserError(f"{odd!r:.60} is no pair of a picture and a text; give a list of two-part tuples")
        return (lambda k: data[k][0]), [r[1] for r in data], "pairs"
    names = getattr(data, "column_names", None) or (list(data.columns) if hasattr(data, "columns") else None)
    if isinstance(names, dict):
        raise UserError(
            f"the data holds several splits ({', '.join(names)}); give one, such as data[{next(iter(names))!r}]"
        )
    if names is not None:
        image, text = _column(names, IMAGES, "pictures"), _column(names, columns, "captions or labels")
        if hasattr(data, "iloc"):
            images = data[image].tolist()
            return (lambda k: images[k]), data[text].tolist(), "frame"
        return (lambda k: data[k][image]), list(data[text]), str(getattr(data, "split", None) or "data set")
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        labels = getattr(data, "targets", None)
        if labels is not None and len(labels) == len(data):
            return (lambda k: data[k][0]), [int(y) for y in labels], type(data).__name__
        return (lambda k: data[k][0]), [data[k][1] for k in range(len(data))], type(data).__name__
    raise UserError(f"a {type(data).__name__} is no data that can be read; give {FORMS}")


def _column(names: Sequence[str], wanted: Sequence[str], what: str) -> str:
    found = [c for c in wanted if c in names]
    if not found:
        raise UserError(
            f"no column of {what} among {', '.join(map(str, names))[:120]}; name it one of {', '.join(wanted)}"
        )
    return found[0]


def _names(data: Any) -> list[str] | None:
    """The names of the classes, where a data set says them."""
    feature = next((f for c, f in (getattr(data, "features", None) or {}).items() if c in LABELS), None)
    found = getattr(feature, "names", None) or getattr(data, "classes", None)
    return list(map(str, found)) if found else None


def _no_text(cell: Any) -> str:
    """A caption that is missing is an empty one. Raises UserError for anything else that is no text."""
    if cell is None or str(cell) in ("nan", "<NA>"):  # as pandas has it
        return ""
    raise UserError(f"{cell!r:.40} is no caption; give texts")


def _held(get: Callable[[int], Any], captions: list[str], name: str, last: bool = True) -> Pairs:
    if not captions:
        raise UserError(f"{name} has no rows; give data with pairs")
    told = hashlib.sha256("\0".join(captions).encode(errors="replace")).hexdigest()[:16]
    rows = np.arange(len(captions))
    return Pairs(
        _Held(get, len(captions)), captions, rows, last=(captioned,) if last else (), name=name, fingerprint=told
    )

"""How the words of a command become data, tasks, shots, answer keys and methods."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipvet.commands._leaving import say

if TYPE_CHECKING:
    from clipvet.data.sources import Data, Half, Test
    from clipvet.types import Backdoor, Pairs, Task


def open_data(spec: str, n: int | None, split: str, size: int, image_key: str = "filepath", caption_key: str = "title"):
    from clipvet.data.sources import Data

    return Data(spec, n, split, size, image_key, caption_key)


def open_task(
    spec: str | None,
    data: str,
    size: int,
    classes: Path | None,
    templates: Path | None,
    seed: int,
    half: str | None = None,
    also: tuple[str, ...] = (),
) -> "Task | None":
    from clipvet.data.sources import WORLDS, Test

    name = spec or ("shapes" if data == "foreign" else data if data in WORLDS else None)
    if not name:
        return None
    return _half(Test(name, size=size, classes=classes, templates=templates), half, also).task(seed)


def _half(test: "Test", half: str | None, also: tuple[str, ...] = ()) -> "Test | Half":
    from clipvet.data.sources import Half
    from clipvet.errors import UserError

    if half not in (None, "base", "new"):
        raise UserError(f"--half is base or new, not {half}")
    return Half(test, half, also) if half else test


def open_shots(
    data: str, size: int, classes: Path | None, templates: Path | None, shots: int, seed: int, half: str | None = None
) -> "Pairs":
    """Labelled pictures of shapes or of a folder with one folder per class."""
    from clipvet.data.sources import Shots, Test

    return Shots(_half(Test(data, size=size, classes=classes, templates=templates), half), shots).pairs(seed)


def template_of_shots(data: str, templates: Path | None) -> str:
    """In which `open_shots` says the class of a picture."""
    from clipvet.data.folders import read_templates
    from clipvet.data.sources import WORLDS
    from clipvet.data.worlds.shapes import TEMPLATES

    return (TEMPLATES if data in WORLDS else read_templates(templates))[0]


def open_method(family: str, name: str, data: str, settings: list[str], **fields: Any) -> Any:
    from dataclasses import replace

    from clipvet import find
    from clipvet import settings as values
    from clipvet.data.sources import WORLDS
    from clipvet.experiments import presets

    method = find.load(family, name)(**fields)
    if data in WORLDS:
        method = presets.shapes(method)
        for part in ("trigger", "training"):
            if hasattr(method, part):
                method = replace(method, **{part: presets.shapes(getattr(method, part))})
    return values.apply(method, settings)


def open_keyed(source: "Data", seed: int, backdoor: Path | None) -> "tuple[Pairs, Backdoor | None, bool]":
    """The pairs, the answer key if any, and whether the pairs were poisoned here, as the key says.

    They are where the key is of this embedded world or of this very data; a key that was made by hand, which names no
    data, lists the poisons that there are. Raises UserError for a key of other data.
    """
    import numpy as np

    from clipvet.data.answer_key import load_backdoor
    from clipvet.data.dirty import poison
    from clipvet.errors import UserError

    pairs = source.pairs(seed)
    if not backdoor:
        return pairs, None, False
    key = load_backdoor(backdoor)
    rows = key.poisoned if key.rows is None else key.rows
    if not np.isin(pairs.ids, rows).any():
        raise UserError(
            f"none of the {len(key.poisoned)} pairs that {backdoor} names is in {pairs.name}; give its data"
        )
    if key.data and key.data != pairs.fingerprint:
        raise UserError(
            f"{backdoor} poisons other data than {pairs.name}, or it has changed; give the attack's own, as it was"
        )
    made = bool(key.data or source.world(seed))
    return (poison(pairs, key) if made else pairs), key, made


def planted(key: "Backdoor") -> str:
    """What an answer key is about, in a word."""
    if key.trigger is not None:
        return type(key.trigger).__name__.lower()
    return "mm_poison" if key.ties else "targeted" if key.classes else "text_trigger" if key.says else "none"


def tell_shared(test: "Task | None", pairs: "Pairs") -> None:
    """Says so where the test holds pictures that are trained on."""
    if test and pairs.fingerprint and test.pictures.fingerprint == pairs.fingerprint:
        seen = len({*test.pictures.ids.tolist()} & {*pairs.ids.tolist()})
        if seen:
            say(f"  warning: {seen} of the {len(test.pictures)} test pictures are trained on; give others as --task")

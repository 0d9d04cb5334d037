"""From the words of a command to objects: models, data, tasks, labelled pictures, answer keys and methods.

All functions here raise UserError for words that name nothing.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipvet.data.sources import Data, Half, Test
    from clipvet.types import Backdoor, Clip, Pairs, Task


def open_model(model: str, pretrained: str | None, seed: int) -> "Clip":
    """The model, where this process computes. `seed` draws the weights of an architecture that has none yet."""
    from clipvet.models import checkpoints
    from clipvet.ranks import device
    from clipvet.rng import Rng

    return checkpoints.load(model, pretrained, device=device(), rng=Rng(seed).fork("init"))


def path_of(model: str) -> Path:
    """The path that the name of a model stands for, whether or not there is anything."""
    return Path(model.removeprefix("local-dir:").removeprefix("transformers:"))


def open_data(
    spec: str, n: int | None, split: str, size: int, image_key: str = "filepath", caption_key: str = "title"
) -> "Data":
    """Captioned pictures by name. size: pixels, of the embedded worlds' pictures."""
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
    """The task to measure on: `spec`, else the one that belongs to the data, else none.

    half: of its classes, base or new. also: further names that pictures of this half may be called.
    """
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
    """Some labelled pictures of each class, from shapes or from a folder with one folder per class."""
    from clipvet.data.sources import Shots, Test

    return Shots(_half(Test(data, size=size, classes=classes, templates=templates), half), shots).pairs(seed)


def shot_template(data: str, templates: Path | None) -> str:
    """The template that `open_shots` writes a picture's class into."""
    from clipvet.data.folders import read_templates
    from clipvet.data.sources import WORLDS
    from clipvet.data.worlds.shapes import TEMPLATES

    return (TEMPLATES if data in WORLDS else read_templates(templates))[0]


def open_method(family: str, name: str, data: str, settings: list[str], **fields: Any) -> Any:
    """The method with its settings; on an embedded world, with the schedule that suits that world."""
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


def plan(method: Any, pairs: "Pairs", settings: list[str]) -> Any:
    """The method with enough optimiser steps for these pairs; whatever is changed or to be feared is said."""
    from dataclasses import replace

    from clipvet.engine.planning import planned
    from clipvet.jobs.leaving import say

    given = {told.partition("=")[0].strip() for told in settings}
    if hasattr(method, "training"):
        made, said = planned(method.training, len(pairs), {name.split(".")[-1] for name in given})
        method = replace(method, training=made) if made != method.training else method
    else:
        method, said = planned(method, len(pairs), given)
    if said:
        say(f"  {said}")
    return method


def open_key(backdoor: Path | None) -> "Backdoor | None":
    """The answer key in this folder, if one is named."""
    from clipvet.data.answer_key import load_backdoor

    return load_backdoor(backdoor) if backdoor else None


def open_keyed(source: "Data", seed: int, backdoor: Path | None) -> "tuple[Pairs, Backdoor | None, bool]":
    """The pairs, the answer key if one is named, and whether the pairs were poisoned here as the key says.

    They are poisoned here where the key belongs to this embedded world or to this very data. A key that was made by
    hand names no data: it lists poisons that are already there. Raises UserError for a key that belongs to other data.
    """
    import numpy as np

    from clipvet.data.dirty import poison
    from clipvet.errors import UserError

    pairs, key = source.pairs(seed), open_key(backdoor)
    if key is None:
        return pairs, None, False
    rows = key.poisoned if key.rows is None else key.rows
    if not np.isin(pairs.ids, rows).any():
        raise UserError(
            f"none of the {len(key.poisoned)} pairs that {backdoor} names is in {pairs.name}; give the attack's data"
        )
    if key.data and key.data != pairs.fingerprint:
        raise UserError(
            f"{backdoor} belongs to other data than {pairs.name}, or that data has changed; give the attack's data, "
            "unchanged"
        )
    made = bool(key.data or source.world(seed))
    return (poison(pairs, key) if made else pairs), key, made

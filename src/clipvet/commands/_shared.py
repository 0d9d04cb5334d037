"""What the commands share: options, and how their words become data, tasks, methods and folders."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from clipvet.data import Data, Half, Test
    from clipvet.types import Backdoor, Clip, Measured, Pairs, Task

Model = Annotated[str, typer.Option("--model", help="open_clip name, directory, local-dir:PATH or hf-hub:REPO")]
DataOption = Annotated[
    str, typer.Option("--data", help="shapes, shapes-shifted, foreign, a CSV/TSV/parquet, tar shards or an HF folder")
]
Out = Annotated[Path, typer.Option("--out", help="output directory; must not hold another run")]
Set = Annotated[list[str], typer.Option("--set", help="field=value of the method, e.g. epochs=20; repeatable")]
Pretrained = Annotated[str | None, typer.Option(help="weights file for an open_clip name")]
Seed = Annotated[int, typer.Option(help="every draw follows from it")]
AnswerKey = Annotated[
    Path | None, typer.Option(help="answer key, for the measures alone; the data of its attack are poisoned as it says")
]
Count = Annotated[int | None, typer.Option("--n", help="take only so many pairs")]
ImageKey = Annotated[str, typer.Option(help="the table's column of picture paths")]
CaptionKey = Annotated[str, typer.Option(help="the table's column of captions")]
TaskOption = Annotated[
    str | None, typer.Option("--task", help="shapes, or a class folder (default: shapes for shapes)")
]
Classes = Annotated[
    Path | None, typer.Option(help="JSON: list of class names, or {folder: name}; of shapes: those to take")
]
ShotsOption = Annotated[
    int, typer.Option("--shots", help="labelled pictures of each class, for few-shot methods", min=1)
]
HalfOption = Annotated[
    str | None, typer.Option("--half", help="base or new: half of the sorted classes (default: all)")
]
Bake = Annotated[bool, typer.Option("--bake-reference", help="where prompts come back: put the base model beside them")]
Shard = Annotated[bool, typer.Option("--shard", help="of several processes each keeps a part of the weights (FSDP2)")]
Track = Annotated[str, typer.Option("--track", help="also log to tensorboard, trackio or wandb")]
Templates = Annotated[Path | None, typer.Option(help="text file, one template a line, with {} or {c}")]


def say(text: str) -> None:
    from clipvet.errors import shown

    if os.environ.get("RANK", "0") == "0":
        print(shown(text), file=sys.stderr, flush=True)


def open_data(spec: str, n: int | None, split: str, size: int, image_key: str = "filepath", caption_key: str = "title"):
    from clipvet.data import Data

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
    from clipvet.data import WORLDS, Test

    name = spec or ("shapes" if data == "foreign" else data if data in WORLDS else None)
    if not name:
        return None
    return _half(Test(name, size=size, classes=classes, templates=templates), half, also).task(seed)


def _half(test: "Test", half: str | None, also: tuple[str, ...] = ()) -> "Test | Half":
    from clipvet.data import Half
    from clipvet.errors import UserError

    if half not in (None, "base", "new"):
        raise UserError(f"--half is base or new, not {half}")
    return Half(test, half, also) if half else test


def open_shots(
    data: str, size: int, classes: Path | None, templates: Path | None, shots: int, seed: int, half: str | None = None
) -> "Pairs":
    """Labelled pictures of shapes or of a folder with one folder per class."""
    from clipvet.data import Shots, Test

    return Shots(_half(Test(data, size=size, classes=classes, templates=templates), half), shots).pairs(seed)


def template_of_shots(data: str, templates: Path | None) -> str:
    """In which `open_shots` says the class of a picture."""
    from clipvet.data import WORLDS
    from clipvet.folders import read_templates
    from clipvet.worlds.shapes import TEMPLATES

    return (TEMPLATES if data in WORLDS else read_templates(templates))[0]


def tell_shared(test: "Task | None", pairs: "Pairs") -> None:
    """Says so where the test holds pictures that are trained on."""
    if test and pairs.fingerprint and test.pictures.fingerprint == pairs.fingerprint:
        seen = len({*test.pictures.ids.tolist()} & {*pairs.ids.tolist()})
        if seen:
            say(f"  warning: {seen} of the {len(test.pictures)} test pictures are trained on; give others as --task")


def bake(clip: "Clip", work: Path) -> None:
    """Puts the base model beside prompts."""
    from clipvet import models
    from clipvet.prompts import OnFrozen

    if isinstance(clip, OnFrozen):
        models.save(clip.base, work / "base", {"role": "base"})


def open_method(family: str, name: str, data: str, settings: list[str], **fields: Any) -> Any:
    from dataclasses import replace

    from clipvet import find, presets
    from clipvet import settings as values
    from clipvet.data import WORLDS

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

    from clipvet.answer_key import load_backdoor
    from clipvet.dirty import poison
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


def new_classes(measured: "dict[str, Measured]") -> "dict[str, Measured]":
    """Numbers of the half of the classes that no picture was seen of, under names of their own."""
    return {f"new_{name}": m for name, m in measured.items() if "retrieval" not in name}


def show(measured: "dict[str, Measured]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", "value", "95 % interval", "n")
    for name, m in measured.items():
        table.add_row(name, f"{100 * m.value:.2f} %", f"{100 * m.low:.2f} – {100 * m.high:.2f} %", str(m.n))
    Console().print(table)


def planted(key: "Backdoor") -> str:
    """What an answer key is about, in a word."""
    if key.trigger is not None:
        return type(key.trigger).__name__.lower()
    return "mm_poison" if key.ties else "targeted" if key.classes else "text_trigger" if key.says else "none"


def finish(work: Path, measured: "dict[str, Measured]", **common: Any) -> None:
    """Rows and commands of a finished command, in its folder."""
    from clipvet import io, results
    from clipvet.types import Measured

    seconds = common["seconds"]
    time_row = {"seconds": Measured(seconds, 1, seconds, seconds)}
    results.write(work, results.rows_of({**measured, **time_row}, **common))
    io.write_json(
        work / "commands.json",
        {
            "commands": [results.command()],
            "versions": results.versions(),
            "hardware": results.hardware(),
            "seconds": seconds,
        },
    )


def check_new(path: Path, suffixes: tuple[str, ...], option: str, begun: bool = False) -> None:
    """UserError unless a file of this kind can be written there. begun: a killed run may have left it, and goes on."""
    from clipvet.errors import UserError

    if path.suffix.lower() not in suffixes:
        raise UserError(f"{option} {path} must end in {' or '.join(s or 'name a folder' for s in suffixes)}")
    if os.path.lexists(path) and not begun:
        raise UserError(f"{path} already exists; choose another {option} or delete it")
    there = next(p for p in path.absolute().parents if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"{there} cannot be written to; choose another {option}")


def output(out: Path, config: dict[str, Any]) -> Any:
    """io.output, where a run that is already complete ends the command with a word and exit code 0."""
    from contextlib import contextmanager

    from clipvet import io

    @contextmanager
    def guarded():
        try:
            with io.output(out, config) as work:
                yield work
        except io.AlreadyDone as e:
            say(f"{e}: nothing to do")
            raise typer.Exit(0) from e

    return guarded()


def went_in(clip: "Clip", pairs: "Pairs", test: "Task | None" = None, **given: Path | None) -> dict[str, str | None]:
    """What a run's results hang on, by content: the starting weights, the pairs, the test, and the options' files.

    given: files, answer keys (told by their sealed cards) and verdicts.
    """
    from clipvet import io, results

    told: dict[str, str | None] = {"weights": results.weights_hash(clip), "pairs": f"{pairs.name} {pairs.fingerprint}"}
    if test:
        told["test"] = f"{test.name} {test.pictures.fingerprint}"
    for name, path in given.items():
        files = [path / f for f in ("backdoor.json", "verdict.json")] if path and path.is_dir() else [path]
        held = [io.sha256(f)[:16] for f in files if f and f.is_file()]
        told[name] = " ".join([str(path), *held]) if path else None
    return told


def card_of(
    card: dict[str, Any],
    parent: "Clip",
    measured: "dict[str, Measured]",
    task: "Task | None" = None,
    backdoor: Path | None = None,
) -> dict[str, Any]:
    """With the parent's hash, versions, and the measured numbers with the task and answer key they were measured on."""
    from clipvet import cards, results

    values = {k: v._asdict() for k, v in measured.items()}
    held = {"parent": results.weights_hash(parent), "versions": results.versions(), "measured": values}
    return {**card, **held, **cards.measured_on(task, backdoor)}

"""What a command says, and what it leaves behind: folder, rows, cards."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from clipvet.types import Clip, Measured, Pairs, Task


def say(text: str) -> None:
    from clipvet.errors import shown

    if os.environ.get("RANK", "0") == "0":
        print(shown(text), file=sys.stderr, flush=True)


def show(measured: "dict[str, Measured]", before: "dict[str, Measured] | None" = None) -> None:
    """A table of the numbers, beside those of the model that was cleaned where they were taken."""
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", *(["before"] if before else []), "value", "95 % interval", "n")
    for name, m in measured.items():
        was = [f"{100 * before[name].value:.2f} %" if name in before else ""] if before else []
        table.add_row(name, *was, f"{100 * m.value:.2f} %", f"{100 * m.low:.2f} – {100 * m.high:.2f} %", str(m.n))
    Console().print(table)


def new_classes(measured: "dict[str, Measured]") -> "dict[str, Measured]":
    """Numbers of the half of the classes that no picture was seen of, under names of their own."""
    return {f"new_{name}": m for name, m in measured.items() if "retrieval" not in name}


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


def bake(clip: "Clip", work: Path) -> None:
    """Puts the base model beside prompts."""
    from clipvet.models import checkpoints
    from clipvet.models.visual_prompts import OnFrozen

    if isinstance(clip, OnFrozen):
        checkpoints.save(clip.base, work / "base", {"role": "base"})


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
    from clipvet import results
    from clipvet.models import cards

    values = {k: v._asdict() for k, v in measured.items()}
    held = {"parent": results.weights_hash(parent), "versions": results.versions(), "measured": values}
    return {**card, **held, **cards.measured_on(task, backdoor)}


def finish(
    work: Path, measured: "dict[str, Measured]", before: "dict[str, Measured] | None" = None, **common: Any
) -> None:
    """Rows and commands of a finished command, in its folder. before: the numbers of the model that was cleaned."""
    from clipvet import io, results
    from clipvet.types import Measured

    seconds = common["seconds"]
    time_row = {"seconds": Measured(seconds, 1, seconds, seconds)}
    victim = results.rows_of(
        before or {}, **{**common, "stage": "victim", "method": "none", "config": "", "seconds": 0.0}
    )
    results.write(work, [*victim, *results.rows_of({**measured, **time_row}, **common)])
    io.write_json(
        work / "commands.json",
        {
            "commands": [results.command()],
            "versions": results.versions(),
            "hardware": results.hardware(),
            "seconds": seconds,
        },
    )

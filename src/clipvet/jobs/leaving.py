"""What a command says, and what it leaves in its output folder: a model with its card, rows, commands."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipvet.types import Backdoor, Clip, Measured, Pairs, Task


_quiet: ContextVar[bool] = ContextVar("quiet", default=False)
_dry: ContextVar[bool] = ContextVar("dry", default=False)
_record: ContextVar["dict[str, Any] | None"] = ContextVar("record", default=None)


@contextmanager
def quiet(on: bool = True) -> Iterator[None]:
    """Inside this block `say` says nothing and no progress is shown."""
    with _set(_quiet, on):
        yield


@contextmanager
def rehearsal(on: bool = True) -> Iterator[None]:
    """Inside this block commands say what they would do, and do nothing."""
    with _set(_dry, on):
        yield


@contextmanager
def recording() -> Iterator[dict[str, Any]]:
    """Inside this block what is said and shown also goes into the dictionary, for --json."""
    held: dict[str, Any] = {"said": []}
    with _set(_record, held):
        yield held


@contextmanager
def _set(held: ContextVar[Any], value: Any) -> Iterator[None]:
    token = held.set(value)
    try:
        yield
    finally:
        held.reset(token)


def silent() -> bool:
    """Whether a `quiet` block is around."""
    return _quiet.get()


def rehearsed() -> bool:
    """Whether a `rehearsal` block is around."""
    return _dry.get()


def record(**facts: Any) -> None:
    """Facts for --json. `whole` replaces everything else."""
    held = _record.get()
    if held is not None:
        held.update(facts)


def say(text: str) -> None:
    """A line on stderr, from the first of several processes."""
    from clipvet.errors import shown

    held = _record.get()
    if held is not None:
        held["said"].append(shown(text).strip())
    if os.environ.get("RANK", "0") == "0" and not silent():
        print(shown(text), file=sys.stderr, flush=True)


def percent(value: float) -> str:
    """A fraction, as tables print it."""
    return f"{100 * value:.2f} %"


def interval(m: "Measured") -> str:
    """The 95 % interval of a fraction, as tables print it."""
    return f"{100 * m.low:.2f} – {100 * m.high:.2f} %"


def show(measured: "dict[str, Measured]", before: "dict[str, Measured] | None" = None) -> None:
    """Prints a table of the numbers, beside those of the model before it was cleaned, where they were measured."""
    from rich.console import Console
    from rich.table import Table

    record(measured={name: m._asdict() for name, m in measured.items()})
    if before:
        record(before={name: m._asdict() for name, m in before.items()})
    table = Table("metric", *(["before"] if before else []), "value", "95 % interval", "n")
    for name, m in measured.items():
        if name.startswith("exposure_"):  # `matrix.show_matrix` does
            continue
        was = [percent(before[name].value) if name in before else ""] if before else []
        table.add_row(name, *was, percent(m.value), interval(m), str(m.n))
    Console().print(table)


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


def went_in(clip: "Clip", pairs: "Pairs", test: "Task | None" = None, **given: Path | None) -> dict[str, str | None]:
    """What a run's results depend on, by content: the starting weights, the pairs, the test and the options' files.

    given: files, and folders that hold an answer key or a verdict.
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


def save_model(
    made: "Clip",
    work: Path,
    card: dict[str, Any],
    parent: "Clip",
    measured: "dict[str, Measured]",
    test: "Task | None" = None,
    backdoor: Path | None = None,
    beside_base: bool = False,
) -> None:
    """The model with its card: its parent's hash, versions, and the numbers with the test and answer key behind them.

    beside_base: if it is prompts on a frozen model, that model goes into work/base.
    """
    from clipvet import ranks, results
    from clipvet.models import cards, checkpoints
    from clipvet.models.visual_prompts import OnFrozen

    values = {k: v._asdict() for k, v in measured.items()}
    held = {"parent": results.weights_hash(parent), "versions": results.versions(), "measured": values}
    if ranks.main():
        checkpoints.save(made, work, {**card, **held, **cards.measured_on(test, backdoor)})
        if beside_base and isinstance(made, OnFrozen):
            checkpoints.save(made.base, work / "base", {"role": "base"})


def planted(key: "Backdoor | None", none: str = "none") -> str:
    """The attack that an answer key is about, in a word; `none` where there is no key."""
    if key is None:
        return none
    if key.trigger is not None:
        return type(key.trigger).__name__.lower()
    return "mm_poison" if key.ties else "targeted" if key.classes else "text_trigger" if key.says else "none"


def save_rows(
    work: Path, measured: "dict[str, Measured]", before: "dict[str, Measured] | None" = None, **common: Any
) -> None:
    """results.jsonl and commands.json. before: numbers of the model that was cleaned. common: the fields of a Row."""
    from clipvet import io, results
    from clipvet.types import Measured

    seconds = common["seconds"]
    time_row = {"seconds": Measured(seconds, 1, seconds, seconds)}
    untouched = {**common, "stage": "victim", "method": "none", "config": "", "seconds": 0.0}
    rows = results.rows_of(before or {}, **untouched) + results.rows_of({**measured, **time_row}, **common)
    results.write(work, rows)
    told = {"commands": [results.command()], "versions": results.versions()}
    io.write_json(work / "commands.json", {**told, "hardware": results.hardware(), "seconds": seconds})

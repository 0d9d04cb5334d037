"""What commands do between opening and leaving: hold the output folder, work in it, measure."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from clipvet.commands._leaving import say

if TYPE_CHECKING:
    from clipvet.types import Backdoor, Clip, Measured, Pairs, Task


@contextmanager
def output(out: Path, config: dict[str, Any]) -> Iterator[Path]:
    """`io.output`; a run that is already complete ends the command here, with a sentence and exit code 0."""
    from clipvet import io

    try:
        with io.output(out, config) as work:
            yield work
    except io.AlreadyDone as e:
        say(f"{e}: nothing to do")
        raise typer.Exit(0) from e


class Clock:
    """How long a block of `working` took."""

    seconds = 0.0


@contextmanager
def working(work: Path | None, shard: bool = False, track: str = "") -> Iterator[Clock]:
    """Inside this block methods show their progress and keep their state under `work`; see `fit.workspace`."""
    import time

    from clipvet.engine.fit import workspace

    clock, began = Clock(), time.monotonic()
    with workspace(work, progress=True, shard=shard, track=track):
        yield clock
    clock.seconds = time.monotonic() - began


def measure(
    clip: "Clip", test: "Task | None", key: "Backdoor | None", seed: int, max_bad: float | None = None
) -> "dict[str, Measured]":
    """Every measure of the model on the test; nothing where there is no test.

    max_bad: the fraction of unreadable pictures above which UserError is raised; None: they are said.
    """
    from clipvet.experiments.evaluation import measure_all
    from clipvet.rng import Rng

    if test is None:
        return {}
    found = measure_all(clip, test, key, Rng(seed).fork("measure"), max_bad=max_bad)
    if "unreadable" in found:
        n, of = round(found["unreadable"].value * found["unreadable"].n), found["unreadable"].n
        say(f"  warning: {n} of the {of} pictures of {test.name} cannot be read and are left out of the numbers")
    return found


def measure_new(clip: "Clip", test: "Task | None", key: "Backdoor | None", seed: int) -> "dict[str, Measured]":
    """The same, without retrieval, on the new half of the classes, of which no picture was seen: `new_` metrics."""
    return {f"new_{name}": m for name, m in measure(clip, test, key, seed).items() if "retrieval" not in name}


def warn_shared(test: "Task | None", pairs: "Pairs") -> None:
    """Warns where pictures of the test are trained on."""
    if test and pairs.fingerprint and test.pictures.fingerprint == pairs.fingerprint:
        seen = len({*test.pictures.ids.tolist()} & {*pairs.ids.tolist()})
        if seen:
            say(f"  warning: {seen} of the {len(test.pictures)} test pictures are trained on; give others as --task")

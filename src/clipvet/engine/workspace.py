"""Where the running stage keeps its state, its log and its results on the side, and shows its progress.

Nothing here changes a result: without a workspace the same training runs, and leaves nothing behind.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipvet import io, ranks
from clipvet.engine import tracking


@dataclass
class Workspace:
    """Where the running stage keeps its state and log, and what its fits have cost so far."""

    folder: Path | None = None  # None: nothing is kept
    progress: bool = False  # show progress on the terminal
    save_seconds: float = 5.0  # at least this long between two saves; `fit.SAVING` may ask for longer
    shard: bool = False  # split the trained weights among the ranks
    track: tracking.Track = tracking.nowhere  # also gets the numbers of every step
    steps: int = field(default=0, init=False)  # of all finished fits
    fits: int = field(default=0, init=False)  # begun so far
    pairs_seen: int = field(default=0, init=False)  # by all fits; a pair counts each time it is drawn
    drawn: int = field(default=0, init=False)  # pairs that the running fit's loss drew itself, beside its batches
    left: dict[int, str] = field(default_factory=dict, init=False)  # id -> why its pair was left out
    parameters: int = field(default=0, init=False)  # numbers that the largest fit trains

    def state(self, name: object) -> Path | None:
        """The file of this name for tensors that a killed run goes on from; None without a folder."""
        return self.folder / "state" / f"{name}.safetensors" if self.folder else None

    @property
    def log(self) -> Path | None:
        """The log: one line of JSON per step. None without a folder."""
        return self.folder / "log.jsonl" if self.folder else None


_workspace: ContextVar[Workspace | None] = ContextVar("workspace", default=None)


def current() -> Workspace:
    """The workspace of the block around, or a new one that keeps nothing."""
    return _workspace.get() or Workspace()


@contextmanager
def workspace(
    folder: Path | None, *, progress: bool = False, save_seconds: float = 5.0, shard: bool = False, track: str = ""
) -> Iterator[Workspace]:
    """Fits inside this block keep their state in folder/state and write a line per step to folder/log.jsonl.

    progress: show bars on the terminal. save_seconds: least time between two saves. shard: each of several ranks holds
    only its part of the trained weights and moments (FSDP2). track: also log to "tensorboard" (in folder/tensorboard),
    "trackio" or "wandb".

    Raises UserError for a tracker that is unknown or not installed.
    """
    with tracking.tracker(track, folder) as log:
        ws = Workspace(folder, progress and ranks.main(), save_seconds, shard, log)
        token = _workspace.set(ws)
        try:
            yield ws
        finally:
            _workspace.reset(token)


def drew(pairs: int) -> None:
    """Tell the workspace that a loss drew this many pairs itself, so that they count among the pairs seen."""
    current().drawn += pairs


def note(name: str, said: str = "", **arrays: np.ndarray) -> None:
    """Save arrays of the running stage as splits/<name>.npz, to be measured later. Does nothing without a folder.

    said: a line for the person who watches the progress.
    """
    ws = current()
    if ws.progress and said:
        print(said, file=sys.stderr, flush=True)
    if ws.folder:
        (ws.folder / "splits").mkdir(exist_ok=True)
        np.savez_compressed(ws.folder / "splits" / f"{name}.npz", **arrays)  # pyright: ignore[reportArgumentType]


def kept(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What `make` returns, on the CPU; or what a killed run of this stage saved under this name."""
    path = current().state(name)
    found = ranks.first(lambda: io.load_weights(path) if path and path.exists() else None)
    if found is not None:
        return found
    made = {k: v.detach().cpu() for k, v in make().items()}
    if path and ranks.main():
        io.save_weights(made, path)
    return made


def kept_scores(name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """`kept` for one number per pair, shape (n,). The same name after another fit is another entry."""
    return kept(f"{name}_{current().fits}", lambda: {"": torch.from_numpy(make())})[""].numpy()


def rewind(start: int) -> None:
    """Drop the log lines that a killed run of this fit wrote for steps from `start` on, after its last save."""
    ws = current()
    if ws.log and ws.log.exists():
        lines = [line for line in ws.log.read_text().splitlines() if line.endswith("}")]
        kept = [line for line in lines if (row := json.loads(line))["fit"] != ws.fits or row["step"] < start]
        whole = ws.log.with_name(ws.log.name + ".tmp")
        whole.write_text("".join(line + "\n" for line in kept))
        whole.replace(ws.log)


Report = Callable[[int, int, float, dict[str, float]], None]


@contextmanager
def reporting(start: int, steps: int) -> Iterator[Report]:
    """The numbers of a fit, step by step: on a progress bar, in the log and with the tracker.

    Call what this yields after each step, with its number, its pairs, its rate and the parts of its loss.
    """
    ws, seen, began = current(), 0, time.monotonic()

    def report(step: int, pairs: int, lr: float, parts: dict[str, float]) -> None:
        nonlocal seen
        seen += pairs
        speed = seen / (time.monotonic() - began)
        show(loss=parts.get("loss", math.nan), speed=speed)
        ws.track(parts | {"lr": lr, "pairs_per_s": speed}, ws.steps + step)
        if ws.log and ranks.main():
            row = {"fit": ws.fits, "step": step, "lr": lr, "pairs_per_s": round(speed, 1), **parts}
            with ws.log.open("a") as f:
                f.write(json.dumps(row) + "\n")

    numbers = "loss {task.fields[loss]:.3f}  {task.fields[speed]:.0f} pairs/s"
    with _bar(steps, start, after=numbers, loss=math.nan, speed=0.0) as show:
        yield report


@contextmanager
def counting(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A progress bar of the running stage, on a terminal only. Call what this yields with the number of steps done."""
    with _bar(total, before=what) as show:
        yield lambda steps: show(advance=steps)


@contextmanager
def _bar(total: int, done: int = 0, before: str = "", after: str = "", **numbers: Any) -> Iterator[Callable]:
    """A bar with a text before and after it, of which `numbers` are fields, and with the time left."""
    if not current().progress:
        yield lambda advance=1, **numbers: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if not sys.stderr.isatty():
        yield _Lines(total, done, before or "steps").tick
        return
    texts = [[TextColumn(text)] if text else [] for text in (before, after)]
    columns = (*texts[0], BarColumn(), MofNCompleteColumn(), *texts[1], TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, completed=done, **numbers)
        yield lambda advance=1, **numbers: bar.update(task, advance=advance, **numbers)


@dataclass
class _Lines:
    """Progress where no bar can be drawn: the time that is expected, once it is known, and then one line a minute."""

    total: int
    done: int
    what: str
    first: float = 5.0  # seconds, after which the time is estimated
    every: float = 60.0  # seconds between two lines
    began: float = field(default_factory=time.monotonic)
    said: float = 0.0
    start: int = field(init=False)
    warm: bool = False  # the first step says nothing about the others: it opens files and fills caches

    def __post_init__(self) -> None:
        self.start = self.done

    def tick(self, advance: int = 1, **numbers: Any) -> None:
        self.done += advance
        if not self.warm:
            self.warm, self.began, self.start = True, time.monotonic(), self.done
        passed = time.monotonic() - self.began
        if passed < self.first or self.done <= self.start or (self.said and passed - self.said < self.every):
            return
        left = passed / (self.done - self.start) * (self.total - self.done)
        if left > self.first:
            text = f"  {self.done} of {self.total} {self.what}, about {in_words(left)} to go on this machine"
            print(text, file=sys.stderr, flush=True)
        self.said = passed


def in_words(seconds: float) -> str:
    """A time for people."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"

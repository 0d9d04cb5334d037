"""The numbers of a training on a dashboard: TensorBoard, trackio or wandb, through Accelerate. Off by default."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clipvet import ranks
from clipvet.errors import UserError

Track = Callable[[Mapping[str, float], int], None]  # takes numbers by name, and their step


def nowhere(values: Mapping[str, float], step: int) -> None:
    """Tracks nothing."""


@contextmanager
def tracker(name: str, folder: Path | None) -> Iterator[Track]:
    """Inside this block, a function that sends the first rank's numbers to the tracker of this name; "": to none.

    folder: where TensorBoard writes. Raises UserError for an unknown name, and where the tracker is not installed.
    """
    if not name or not ranks.main():
        yield nowhere
        return
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, filter_trackers

    try:
        found = filter_trackers([name], folder or ".")
    except ValueError as e:
        raise UserError(f"track={name} is not known; use tensorboard, trackio or wandb") from e
    if not found:
        raise UserError(f"track={name} is not installed; run pip install {name}")
    PartialState()  # the trackers ask it which rank is the first
    kind: Any = LOGGER_TYPE_TO_CLASS[str(found[0])]
    held = kind("tensorboard" if name == "tensorboard" else "clipvet", **_where(kind, folder))
    held.start()
    try:
        yield lambda values, step: held.log(dict(values), step=step)
    finally:
        held.finish()


def _where(kind: Any, folder: Path | None) -> dict[str, Path]:
    return {"logging_dir": folder or Path(".")} if kind.requires_logging_directory else {}

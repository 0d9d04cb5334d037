"""Numbers of a training on a dashboard, through Accelerate's trackers: TensorBoard, trackio, wandb. Off by default."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clipvet import ranks
from clipvet.errors import UserError

Track = Callable[[Mapping[str, float], int], None]  # numbers of a step


def nowhere(values: Mapping[str, float], step: int) -> None:
    """Where nothing is tracked."""


@contextmanager
def tracker(name: str, folder: Path | None) -> Iterator[Track]:
    """Where the first rank's numbers go inside this block; "": nowhere. UserError where the package is missing."""
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
    PartialState()  # which the trackers ask for the first rank
    kind: Any = LOGGER_TYPE_TO_CLASS[str(found[0])]
    held = kind("tensorboard" if name == "tensorboard" else "clipvet", **_where(kind, folder))
    held.start()
    try:
        yield lambda values, step: held.log(dict(values), step=step)
    finally:
        held.finish()


def _where(kind: Any, folder: Path | None) -> dict[str, Path]:
    return {"logging_dir": folder or Path(".")} if kind.requires_logging_directory else {}

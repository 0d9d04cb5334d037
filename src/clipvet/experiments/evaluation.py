"""All measures of one model."""

import numpy as np

from clipvet import find
from clipvet.engine.embed import sharing
from clipvet.errors import UserError
from clipvet.measures._intervals import share
from clipvet.rng import Rng
from clipvet.types import Backdoor, Clip, Measured, Task


def measure_all(
    clip: Clip,
    task: Task,
    backdoor: Backdoor | None,
    rng: Rng,
    costly: tuple[str, ...] = (),
    max_bad: float | None = None,
) -> dict[str, Measured]:
    """Run every measure in measures/ on one task: metric name -> number with its sample size and 95 % interval.

    backdoor: the answer key, or None; measures that need it then give no numbers. costly: names of those measures
    marked as costly that shall run too. Measures share the embeddings of the same pictures.

    If pictures could not be read, `unreadable` is their share. max_bad: raise UserError if it is larger than this
    fraction, or if no picture of a class could be read; None: never.
    """
    with sharing() as shared:
        out: dict[str, Measured] = {}
        lost = np.zeros(len(task.pictures), bool)
        for name in find.names("measures"):
            measure = find.load("measures", name)()
            if name in costly or not getattr(measure, "costly", False):
                out |= measure.measure(clip, task, backdoor, rng.fork(name))
            lost = np.isin(task.pictures.ids, list(shared.bad))
            if max_bad is not None and lost.any():
                _refuse_lost(task, lost, shared.bad, max_bad)
        if lost.any():
            out["unreadable"] = share(lost)
        return out


def _refuse_lost(task: Task, lost: np.ndarray, why: dict[int, str], max_bad: float) -> None:
    """UserError where too many pictures of the task, or all of a class, could not be read."""
    first = why[int(task.pictures.ids[lost][0])]
    if lost.sum() > max_bad * len(lost):
        raise UserError(
            f"{task.name}: {lost.sum()} of {len(lost)} pictures cannot be read, more than the limit of {max_bad:.2%} "
            f"(first: {first}); mend or remove them, or raise --max-bad"
        )
    gone = sorted({*task.labels[lost].tolist()} - {*task.labels[~lost].tolist()})
    if gone:
        names = ", ".join(task.classes[k] for k in gone[:4])
        raise UserError(f"{task.name}: no picture of {names} can be read (first: {first}); mend or replace them")

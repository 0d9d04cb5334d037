"""All measures of one model."""

from clipvet import find
from clipvet.engine.embed import sharing
from clipvet.rng import Rng
from clipvet.types import Backdoor, Clip, Measured, Task


def measure_all(
    clip: Clip, task: Task, backdoor: Backdoor | None, rng: Rng, costly: tuple[str, ...] = ()
) -> dict[str, Measured]:
    """Run every measure in measures/ on one task: metric name -> number with its sample size and 95 % interval.

    backdoor: the answer key, or None; measures that need it then give no numbers. costly: names of those measures
    marked as costly that shall run too. Measures share the embeddings of the same pictures.
    """
    with sharing():
        out: dict[str, Measured] = {}
        for name in find.names("measures"):
            measure = find.load("measures", name)()
            if name in costly or not getattr(measure, "costly", False):
                out |= measure.measure(clip, task, backdoor, rng.fork(name))
        return out

"""What every measure of the family says of one model."""

from clipvet import find
from clipvet.engine.embed import sharing
from clipvet.rng import Rng
from clipvet.types import Backdoor, Clip, Measured, Task


def measure_all(
    clip: Clip, task: Task, backdoor: Backdoor | None, rng: Rng, costly: tuple[str, ...] = ()
) -> dict[str, Measured]:
    """Every measure of the family, on one task; of those marked as costly only the named ones."""
    with sharing():
        out: dict[str, Measured] = {}
        for name in find.names("measures"):
            measure = find.load("measures", name)()
            if name in costly or not getattr(measure, "costly", False):
                out |= measure.measure(clip, task, backdoor, rng.fork(name))
        return out

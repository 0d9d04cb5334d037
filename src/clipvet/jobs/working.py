"""What jobs do between opening and leaving: work in a folder, measure, say what was lost."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from clipvet.jobs.leaving import say, silent

if TYPE_CHECKING:
    from clipvet.types import Backdoor, Clip, Measured, Pairs, Task

UNDECIDED = 4  # exit code: something was made, but it is not to be trusted as it is
OWN = 1000  # pairs, of those that a model is cleaned on, among which retrieval is measured where there is no task
LOST = 0.05  # fraction of a measure; a model that lost more, beyond chance, was harmed
KEPT = {"clean_accuracy": "zero-shot accuracy", "pairs_text_retrieval_recall@5": "retrieval among your own pairs (R@5)"}


class Clock:
    """How long a block of `working` took."""

    seconds = 0.0


@contextmanager
def working(work: Path | None, shard: bool = False, track: str = "", say_left: bool = True) -> Iterator[Clock]:
    """Inside this block methods show their progress and keep their state under `work`; see `fit.workspace`.

    say_left: say afterwards which pairs were left out.
    """
    import time

    from clipvet.engine.fit import workspace

    clock, began = Clock(), time.monotonic()
    with workspace(work, progress=not silent(), shard=shard, track=track) as ws:
        yield clock
    clock.seconds = time.monotonic() - began
    if ws.left and say_left:
        say(f"  {left_out(ws.left)}")


def left_out(left: dict[int, str]) -> str:
    """A sentence about pairs that were left out. left: id -> why."""
    from clipvet.data.captions import EMPTY

    empty = sum(why == EMPTY for why in left.values())
    kinds = {"unreadable pictures": len(left) - empty, "empty captions": empty}
    told = [f"{n} with {what}" for what, n in kinds.items() if n]
    return f"{len(left)} pairs were left out: {' and '.join(told)} (first: row {min(left)}, {left[min(left)]})"


def measure(
    clip: "Clip",
    test: "Task | None",
    key: "Backdoor | None",
    seed: int,
    max_bad: float | None = None,
    costly: tuple[str, ...] = (),
) -> "dict[str, Measured]":
    """Every measure of the model on the test; nothing where there is no test.

    max_bad: the fraction of unreadable pictures above which UserError is raised; None: they are said. costly: names of
    costly measures that shall run too.
    """
    from clipvet.experiments.evaluation import measure_all
    from clipvet.rng import Rng

    if test is None:
        return {}
    found = measure_all(clip, test, key, Rng(seed).fork("measure"), costly, max_bad)
    if "unreadable" in found:
        n, of = round(found["unreadable"].value * found["unreadable"].n), found["unreadable"].n
        say(f"  warning: {n} of the {of} pictures of {test.name} cannot be read and are left out of the numbers")
    return found


def measure_own(clip: "Clip", pairs: "Pairs") -> "dict[str, Measured]":
    """Retrieval among the first pairs of the user's own, as `pairs_` metrics: what is left to see without a task."""
    import numpy as np

    from clipvet.measures.retrieval import Retrieval
    from clipvet.rng import Rng
    from clipvet.types import Task

    some = pairs.take(slice(OWN))
    found = Retrieval().measure(clip, Task(pairs.name, (), (), some, np.zeros(len(some), int)), None, Rng(0))
    return {f"pairs_{name}": m for name, m in found.items() if name.startswith("text")}


def harm(before: "dict[str, Measured]", after: "dict[str, Measured]") -> str:
    """A sentence where a cleaned model knows much less than before, beyond chance; else empty."""
    for name, said in KEPT.items():
        if name in before and name in after:
            was, now = before[name], after[name]
            if was.value - now.value > LOST and now.high < was.low:
                return (
                    f"{said} fell from {was.value:.1%} to {now.value:.1%}: do not use this model as it is. Lower the "
                    "learning rate (lr, lr_start) or epochs, or give more pairs, and clean again"
                )
    return ""


def weakness(found: "dict[str, Measured]", target: str) -> str:
    """Why an attack did not take, as half a sentence; empty if it did, or if that was not measured.

    found: the victim's measures with its answer key. target: the class that the model was made to see.
    """
    from clipvet.pages.report import TOOK

    asr, idle = found.get("asr_worst", found.get("asr")), found.get("clean_target_rate")
    if asr and asr.value < TOOK:
        weakest = " by its weakest trigger" if "asr_worst" in found else ""
        return f"its success rate (asr) is {asr.value:.1%}{weakest}"
    if asr and idle and asr.low <= idle.high:
        return f"'{target}' is the answer to {asr.value:.1%} with the trigger, and to {idle.value:.1%} without it"
    if "psr" in found and found["psr"].value < TOOK:
        return f"{found['psr'].value:.1%} of the chosen pictures are called what they should be (psr)"
    tied, drawn = found.get("hit@10"), found.get("hit@10_random")
    if tied and drawn and tied.low <= drawn.high:
        return (
            f"{tied.value:.1%} of the searches find the tied pictures among the first ten (hit@10), of random captions "
            f"{drawn.value:.1%}"
        )
    return ""


def measure_new(clip: "Clip", test: "Task | None", key: "Backdoor | None", seed: int) -> "dict[str, Measured]":
    """The same, without retrieval, on the new half of the classes, of which no picture was seen: `new_` metrics."""
    return {f"new_{name}": m for name, m in measure(clip, test, key, seed).items() if "retrieval" not in name}


def warn_shared(test: "Task | None", pairs: "Pairs") -> None:
    """Warns where pictures of the test are trained on."""
    if test and pairs.fingerprint and test.pictures.fingerprint == pairs.fingerprint:
        seen = len({*test.pictures.ids.tolist()} & {*pairs.ids.tolist()})
        if seen:
            say(f"  warning: {seen} of the {len(test.pictures)} test pictures are trained on; give others as --task")

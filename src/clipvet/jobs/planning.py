"""What a command will do, how long it takes here and how much memory: from a probe of the model, before any work."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from clipvet.types import Clip, Pairs, Task

PROBE, MANY = 8, 64  # pictures and captions
SLOW = 0.01  # seconds for a picture and a caption, from which on a few tell enough
TRAINING, JUDGING = 6, 2  # times the weights: what training takes at least, and what judging does


class Step(NamedTuple):
    """Something that a command does."""

    what: str
    seconds: float | None  # None: not known
    later: bool = False  # only where something is found
    trains: bool = False


class Probe:
    """How fast the model is here; measured when it is first asked."""

    def __init__(self, clip: "Clip") -> None:
        self.clip = clip
        self._speed: tuple[float, float] | None = None

    @property
    def picture(self) -> float:
        """Seconds that a picture takes, forward and backward."""
        self._speed = self._speed or speed(self.clip)
        return self._speed[0]

    @property
    def caption(self) -> float:
        """Seconds that a caption takes, forward."""
        self._speed = self._speed or speed(self.clip)
        return self._speed[1]

    def train(self, what: str, how: Any, n: int) -> Step:
        """Train, clean or attack with this method on n pairs."""
        own = getattr(how, "training", how)
        epochs = getattr(own, "epochs", None)
        seconds = None
        if isinstance(epochs, int | float) and hasattr(own, "batch"):
            seconds = epochs * n * (self.picture + 3 * self.caption)
        return Step(f"{what} on {n:,} pairs", seconds, trains=True)

    def measure(self, test: "Task | None") -> list[Step]:
        """Measure on the task; nothing where there is none."""
        if test is None:
            return []
        n, classes = len(test.pictures), len(test.classes)
        texts = classes * max(1, len(test.templates)) * self.caption
        return [Step(f"measure on {n:,} pictures of {classes} classes", n * self.picture / 3 + texts)]

    def expose(self, test: "Task") -> Step:
        """Measure the exposure matrix of a trigger: stamped pictures, captions, and prompts learned in 60 steps."""
        n, classes = len(test.pictures), len(test.classes)
        texts = (2 * n + 60 * 3 * classes) * self.caption
        return Step("measure what the trigger does in each way of use", n * self.picture / 3 + texts)

    def search(self, what: str, how: Any, models: int = 1) -> list[Step]:
        """Inspect models by `collapse`; how long other methods take is not known."""
        work = getattr(how, "work", None)
        return [Step(what, None if work is None else models * work * self.picture)]

    def filtered(self, how: Any, pairs: "Pairs", alone: bool) -> list[Step]:
        """Score the pairs; alone: after a model was trained on some of them."""
        n, out = len(pairs), []
        if alone:
            own = how.anew
            seen = min(n, own.sample)
            rounds = own.rounds * max(own.epochs * seen, 150 * own.batch)
            out.append(
                Step(
                    f"train a model on {seen:,} of the pairs, at most",
                    rounds * (self.picture + 3 * self.caption),
                    trains=True,
                )
            )
        return [*out, Step(f"score {n:,} pairs", n * (2 * self.picture / 3 + self.caption))]

    def tried(self, what: str, n: int, work: Callable[[int], Any]) -> list[Step]:
        """Something that is done for each of n pictures, timed on a few of them."""
        from clipvet.errors import UserError

        few = min(n, 2 * PROBE)
        try:
            work(min(2, few))  # the first call warms up
            began = time.monotonic()
            work(few)
        except UserError:  # too few of them for this method
            return [Step(what, None)]
        return [Step(what, (time.monotonic() - began) / few * n)]


def speed(clip: "Clip") -> tuple[float, float]:
    """Seconds that a picture takes, forward and backward, and a caption forward; the best of a few tries."""
    import torch

    from clipvet.engine.embed import device_of
    from clipvet.models.adapter import frozen

    still, side, device = frozen(clip), clip.geometry.size, device_of(clip)
    picture = caption = 1.0
    for n in (PROBE, PROBE, MANY, MANY, MANY):  # a small model is slower in a small batch
        if n == MANY and picture + caption > SLOW:
            break
        x = torch.full((n, 3, side, side), 0.5, device=device, requires_grad=True)
        began = time.monotonic()
        still.encode_image(x).square().sum().backward()
        middle = time.monotonic()
        with torch.no_grad():
            still.encode_text(["a photo of a cat."] * n)
        picture, caption = min(picture, (middle - began) / n), min(caption, (time.monotonic() - middle) / n)
    return picture, caption


def memory(clip: "Clip", trains: bool) -> float:
    """The least memory, in GiB."""
    weights = sum(p.numel() * p.element_size() for p in clip.parameters())  # pyright: ignore
    return weights * (TRAINING if trains else JUDGING) / 2**30


def in_lines(steps: Sequence[Step], clip: "Clip") -> list[str]:
    """The plan in words, with the time and the least memory."""
    from clipvet.engine.workspace import in_words

    lines = []
    for s in steps:
        when = "only if something is found: " if s.later else ""
        took = "time not known" if s.seconds is None else f"about {in_words(s.seconds)}"
        lines.append(f"{when}{s.what}: {took}")
    whole, first = (sum(s.seconds or 0.0 for s in steps if not (s.later and skip)) for skip in (False, True))
    more = f"; {in_words(whole)} with a cleaned copy" if whole > first else ""
    open_ = ", and what is not known" if any(s.seconds is None and not s.later for s in steps) else ""
    lines.append(f"in all about {in_words(first)}{open_}{more}")
    trains = any(s.trains for s in steps)
    when = "while a copy is cleaned" if trains and any(s.later for s in steps) else "in all"
    times = f"{'six' if trains else 'two'} times the weights"
    lines.append(f"memory: {memory(clip, trains):.2g} GiB or more {when} ({times})")
    return lines

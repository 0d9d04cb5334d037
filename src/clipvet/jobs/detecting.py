"""The work of `clipvet detect`: score pictures, and flag those that clean pictures hardly ever are like."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from clipvet.jobs.leaving import say

if TYPE_CHECKING:
    import numpy as np

    from clipvet.pages.suspects import Suspects
    from clipvet.scan.conformal import Promise
    from clipvet.types import Backdoor, Clip, Measured, Pairs

ALPHA = 0.01  # share of clean pictures that may be flagged


class Detected(NamedTuple):
    """What a detector says about pictures."""

    found: "Suspects"  # ranked; captions are the model's answers
    given: "Pairs"
    pairs: "Pairs"  # the given ones, and behind them a triggered copy of each, if there is an answer key
    p: "np.ndarray | None"  # p-value of each of `pairs`; None without trusted pictures
    promise: "Promise | None"  # threshold, flags, and what to expect without any trigger
    measured: "dict[str, Measured]"  # how well it did, by the answer key
    seconds: float
    bad: dict[int, str]  # id -> why a picture is unreadable

    @property
    def triggered(self) -> "np.ndarray":
        """(n,) which of `pairs` are triggered copies."""
        import numpy as np

        return np.arange(len(self.pairs)) >= len(self.given)

    @property
    def told(self) -> list[str]:
        """What follows, in words."""
        if self.promise is None:
            return ["A score has no threshold of its own: give trusted pictures, and those that stand out are flagged."]
        return self.promise.told

    def columns(self) -> "dict[str, np.ndarray]":
        """p and flagged of each row of `found`; nothing without trusted pictures."""
        if self.p is None or self.promise is None:
            return {}
        return {"p": self.p[self.found.positions], "flagged": self.found.scores > self.promise.threshold}


def detected(
    how: Any,
    clip: "Clip",
    given: "Pairs",
    names: Sequence[str],
    prompts: Sequence[str],
    seed: int,
    trusted: "Pairs | None" = None,
    alpha: float = ALPHA,
    key: "Backdoor | None" = None,
) -> Detected:
    """Scores the pictures with the method. trusted: clean pictures; with them the share alpha of clean ones is flagged.

    key: also judges a triggered copy of each picture, and measures. Raises UserError for too few trusted pictures, and
    for trusted ones that are the given ones.
    """
    import time

    import numpy as np

    from clipvet.data.dirty import beside
    from clipvet.engine.embed import see
    from clipvet.jobs.inspection import answers_of
    from clipvet.measures._detection import detection
    from clipvet.measures._intervals import share
    from clipvet.pages import suspects
    from clipvet.rng import Rng
    from clipvet.scan import conformal

    began, rng = time.monotonic(), Rng(seed).fork("detect")
    pairs, clean = beside(given, key.trigger, key.seed) if key else given, None
    if trusted is not None:
        _check_trusted(trusted, given, alpha)
        say(f"judging {len(trusted)} trusted pictures of {trusted.name} first")
        clean = how.detect(clip, trusted, names, prompts, rng).numpy()
        conformal.threshold(clean, alpha)  # refuses too few before the others are judged
    say(f"judging {len(pairs)} pictures of {given.name} with {how!r}")
    scores = how.detect(clip, pairs, names, prompts, rng).numpy()
    seen = see(clip, pairs)
    answers = answers_of(clip, seen, tuple(names), tuple(prompts), len(pairs))
    found = suspects.ranked(how, scores, pairs.ids, answers, dict(seen.bad))
    added = np.arange(len(pairs)) >= len(given)
    p, promise, measured = None, None, detection(scores, added, trusted=clean) if key else {}
    if clean is not None:
        p, promise = conformal.p_values(scores, clean), conformal.promise(scores[~added], clean, alpha)
        flagged = scores > promise.threshold
        if key:
            measured |= {"flagged_clean": share(flagged[~added]), "flagged_triggered": share(flagged[added])}
    return Detected(found, given, pairs, p, promise, measured, time.monotonic() - began, dict(seen.bad))


def _check_trusted(trusted: "Pairs", given: "Pairs", alpha: float) -> None:
    """Refuses too few trusted pictures, and those that are judged themselves."""
    import numpy as np

    from clipvet.errors import UserError
    from clipvet.scan import conformal

    if trusted.fingerprint and trusted.fingerprint == given.fingerprint:
        raise UserError("--trusted and --pictures are the same; trust pictures that are judged by nothing else")
    conformal.threshold(np.zeros(len(trusted)), alpha)

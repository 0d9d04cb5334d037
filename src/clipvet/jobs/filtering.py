"""The work of `clipvet filter`: score the pairs, say what was found, find the cut."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from clipvet.jobs.leaving import say
from clipvet.jobs.opening import open_method
from clipvet.jobs.working import working

if TYPE_CHECKING:
    import numpy as np

    from clipvet.pages.suspects import Suspects
    from clipvet.types import Backdoor, Measured, Pairs
    from clipvet.unlearning.judged import Judged


GOOD = 0.9  # AUROC from which a ranking is worth a cut, even where no pair stands out enough to be called
SMALL, LARGER = "shapes-vit", "drawings-vit"  # trained where no model is given: on embedded worlds, on other pictures


def architecture(data: str) -> str:
    """What a filter that is given no model trains on this data."""
    from clipvet.data.sources import WORLDS

    return SMALL if data in WORLDS else LARGER


def open_filter(method: str, data: str, settings: list[str], alpha: float | None = None, alone: bool = False) -> Any:
    """The filter with its settings. alpha: its rate of false alarms. alone: it is given no model, and trains one.

    Raises UserError for a filter that trains none, and for a rate that cannot be or that it does not know.
    """
    import dataclasses

    from clipvet.errors import UserError

    how = open_method("filters", method, data, settings, **(_alone(method) if alone else {}))
    if alpha is None:
        return how
    if not 0 < alpha < 1:
        raise UserError(
            f"--alpha {alpha:g} is not a fraction between 0 and 1; 0.01 allows one false alarm in a hundred"
        )
    if not hasattr(how, "alpha"):
        raise UserError(
            f"{type(how).__name__} promises no rate of false alarms; leave out --alpha, or use --method auto"
        )
    return dataclasses.replace(how, alpha=alpha)


def announce(how: Any, pairs: "Pairs") -> None:
    """Says what begins, and how it would go faster."""
    from clipvet.engine.neighbours import compares_all
    from clipvet.filters.auto import Auto

    say(f"scoring {pairs.name} with {how!r}")
    if isinstance(how, Auto) and compares_all(len(pairs)):
        say("so many pairs are compared much faster with faiss: pip install 'clipvet[large]'")


def _alone(method: str) -> dict[str, Any]:
    """The fields with which a filter trains a model of its own. Raises UserError for a filter that does not."""
    import dataclasses

    from clipvet import find
    from clipvet.errors import UserError
    from clipvet.filters._anew import Own

    of = {f.name: f.default for f in dataclasses.fields(find.load("filters", method))}
    if "anew" not in of:
        raise UserError(f"{method} needs --model; without one there are auto, cascade and gmm_split")
    return {} if of["anew"] else {"anew": Own()}


class Filtered(NamedTuple):
    """What a filter says about pairs."""

    found: "Suspects"  # ranked
    judged: "Judged"  # what it says about them
    measured: "dict[str, Measured]"  # how well it did, by the answer key
    cut: float | None  # the score above which pairs are thrown out; None: it has no cut
    removed: int | None  # how many those are
    seconds: float
    bad: dict[int, str]  # id -> why a pair has no score

    @property
    def kept(self) -> "np.ndarray":
        """The positions of the pairs that are kept, ascending; all that have a score, where there is no cut."""
        import numpy as np

        return np.sort(self.found.positions[self.removed or 0 : self.found.scored])


def filtered(
    how: Any,
    clip: Any,
    pairs: "Pairs",
    captions: Sequence[str],
    work: Path | None,
    seed: int,
    poisoned: "np.ndarray | None" = None,
    share: float | None = None,
) -> Filtered:
    """Scores the pairs with the method; a killed run goes on with what lies in `work`; None keeps nothing.

    poisoned: ids, if there is an answer key. share: of the pairs to keep; None: the filter's own cut, if it has one.
    Raises UserError where more than half of the pairs cannot be used.
    """
    import numpy as np

    from clipvet.engine.embed import sharing
    from clipvet.measures._detection import detection
    from clipvet.pages import suspects
    from clipvet.rng import Rng
    from clipvet.unlearning.judged import Judged

    with sharing(work) as shared, working(work, say_left=False) as clock:
        rng = Rng(seed).fork("filter")
        judged = how.judge(clip, pairs, rng) if hasattr(how, "judge") else Judged(how.score(clip, pairs, rng), [], [])
        scores = judged.scores.numpy()
    found = suspects.ranked(how, scores, pairs.ids, captions, shared.bad)
    _check_scored(found, pairs.name, shared.bad)
    measured = {} if poisoned is None else detection(scores, np.isin(pairs.ids, poisoned))
    cut, removed = _cut(how, scores, found, share)
    return Filtered(found, judged, measured, cut, removed, clock.seconds, shared.bad)


def unlisted(done: "Filtered") -> str:
    """A sentence where the answer key shows that the ranking is good, though no pair is called poisoned."""
    auroc = done.measured.get("auroc")
    if auroc is None or auroc.low <= GOOD or done.removed != 0:
        return ""
    return (
        f"the ranking is good all the same (AUROC {auroc.value:.1%}), but no pair stands out enough for the promised "
        "rate: throw out a share with --keep, say 0.9, or give more pairs"
    )


def complaint(measured: "Mapping[str, Measured]") -> str:
    """A sentence where the answer key shows that the ranking is no better than chance; else nothing."""
    auroc = measured.get("auroc")
    if auroc is None or auroc.low > 0.5:
        return ""
    told = f"AUROC {auroc.value:.1%}, 95 % interval {auroc.low:.1%} to {auroc.high:.1%}"
    what = "is worse than chance" if auroc.high < 0.5 else "is no better than chance"
    return f"this ranking {what} ({told}): throw out no pairs by it; take another --method, or another --model"


def _check_scored(found: "Suspects", name: str, bad: dict[int, str]) -> None:
    """UserError where more than half of the pairs cannot be used."""
    from clipvet.errors import UserError

    lost = len(found.ids) - found.scored
    if 2 * lost > len(found.ids) and bad:
        first = min(bad)
        raise UserError(
            f"{name}: {lost} of {len(found.ids)} pairs have unreadable pictures or empty captions (first: row {first}, "
            f"{bad[first]}); give the right columns (--image-key, --caption-key), or mend the data"
        )


def captions_of(pairs: "Pairs", key: "Backdoor | None") -> Sequence[str]:
    """The captions as they are scored; those of the key's poisons come from the key.

    Raises UserError where they are all the same.
    """
    from clipvet.data.captions import check_captions
    from clipvet.pages.suspects import Lazy

    said = dict(zip(key.poisoned.tolist(), key.captions)) if key else {}
    captions = Lazy(len(pairs), lambda k: said.get(int(pairs.ids[k])) or pairs.caption(pairs.ids[k]))
    if len(pairs) > 1 and all(caption == captions[0] for caption in captions):  # ends at the second, as a rule
        check_captions(captions[:], pairs.ids, pairs.name)
    return captions


def _cut(how: Any, scores: Any, found: "Suspects", keep: float | None) -> tuple[float | None, int | None]:
    """The score above which pairs are thrown out, and how many that are: by --keep, or by the filter's own cut."""
    if keep is not None:
        removed = found.scored - round(keep * found.scored)
        edge = found.scores[removed - 1] + found.scores[min(removed, found.scored - 1)]
        return float(edge) / 2 if removed else None, removed
    if hasattr(how, "cut"):
        cut = how.cut(scores)
        return cut, int((scores > cut).sum())
    return None, None


def columns(how: Any, pairs: "Pairs", judged: "Judged") -> dict[str, Any]:
    """What the scores' table has besides ids, scores, captions and reasons."""
    from clipvet.pages import suspects

    more: dict[str, Any] = {"key": shard_key(pairs), "path": suspects.path_of(pairs)}
    if hasattr(how, "p"):
        more |= {"p": how.p, "bound": {int(i): g.words[0] for g in judged.groups for i in pairs.ids[g.rows]}}
    return more


def shard_key(pairs: "Pairs") -> Callable[[int], str] | None:
    """id -> what the pair is called in its shard; None for pairs that do not come from shards."""
    return getattr(pairs.pictures, "key", None)

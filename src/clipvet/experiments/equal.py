"""Cleaners at equal accuracy: how low does the attack success rate get for 1, 3 and 5 points of accuracy?

    points of a cleaner: (accuracy lost, ASR) of the victim and of each strength, in the order of the strengths
    asr_at(l) = min of the ASRs with loss <= l, and of the ASRs at l on the lines between neighbouring points

A cleaner can always trade accuracy for a lower ASR, so a table of single settings compares how hard each was pushed. A
recipe that names its cleaners "par x0.5", "par", "par x2" measures the same cleaner at several strengths. Nothing is
read off beyond the measured points.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from clipvet.results import Row

LOSSES = (0.01, 0.03, 0.05)  # of accuracy, fractions
STAGE = "equal"
Point = tuple[Row, Row]  # clean_accuracy and asr of one model


def strength(method: str) -> tuple[str, float]:
    """The cleaner's own name and its strength: 1 without " x"."""
    name, _, factor = method.partition(" x")
    return name, float(factor or 1)


def equal(rows: Sequence[Row]) -> list[Row]:
    """Rows asr_at_1, asr_at_3 and asr_at_5 of stage "equal": for each victim and each cleaner of several strengths.

    The interval is read off in the same way as the value, so it does not say that the accuracies are uncertain too.
    """
    victims: dict[tuple, dict[str, Row]] = {}
    cleaned: dict[tuple, dict[str, dict[str, Row]]] = {}
    for r in rows:
        if r.stage == "victim":
            victims.setdefault((r.attack, r.model, r.seed), {})[r.metric] = r
        if r.stage == "clean":
            name = strength(r.method)[0]
            cleaned.setdefault((r.attack, r.model, r.seed, r.data, name), {}).setdefault(r.method, {})[r.metric] = r
    found = []
    for (*place, data, name), some in sorted(cleaned.items()):
        start = victims.get(tuple(place), {})
        models = [start] + [some[m] for m in sorted(some, key=lambda m: strength(m)[1])]
        if len(some) > 1 and all({"asr", "clean_accuracy"} <= m.keys() for m in models):
            found += _read([(m["clean_accuracy"], m["asr"]) for m in models], name, data)
    return found


def _read(points: Sequence[Point], name: str, data: str) -> list[Row]:
    """One row for each loss of accuracy. The first point is the victim, then by strength."""
    out = []
    for most in LOSSES:
        best = min(_reached(points, most), key=lambda r: r.value)
        out.append(replace(best, stage=STAGE, method=name, data=data, metric=f"asr_at_{100 * most:g}"))
    return out


def _reached(points: Sequence[Point], most: float) -> list[Row]:
    """The ASRs that are had for at most this loss of accuracy: those measured, and those on the lines between."""
    losses = [points[0][0].value - accuracy.value for accuracy, _ in points]
    found = [asr for (_, asr), lost in zip(points, losses) if lost <= most]
    for (p, q), ((_, a), (_, b)) in zip(pairwise(losses), pairwise(points)):
        if min(p, q) < most < max(p, q):
            t = (most - p) / (q - p)
            between = {k: (1 - t) * getattr(a, k) + t * getattr(b, k) for k in ("value", "low", "high")}
            found.append(replace(b, **between, n=min(a.n, b.n)))
    return found

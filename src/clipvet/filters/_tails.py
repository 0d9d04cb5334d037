"""p-values from the scores themselves, and the Benjamini-Hochberg list that promises a rate of false alarms.

No clean set is at hand, so the bulk of the scores says what clean pairs score. Beyond its 90th percentile q90, its tail
is taken to fall off as fast as between the 75th and the 90th, or faster, as every distribution with a log-concave
density does:

    P(score > t) <= 0.1 exp(-(t - q90) / b)      b = (q90 - q75) / log 2.5
"""

import numpy as np
from jaxtyping import Float

START = 0.6  # share of the scores, the lowest, that is taken for clean at first


def bulk(scores: Float[np.ndarray, " n"]) -> Float[np.ndarray, " m"]:
    """The scores that belong to the clean ones, ascending: the lowest 60 %, grown until the next score is too far.

    Too far is where fewer than one score of so many is expected. So as many as a third may be poisons.
    """
    ordered = np.sort(scores)
    m = max(2, round(START * len(ordered)))
    for _ in range(100):
        q90, b = _tail(ordered[:m])
        grown = max(m, int(np.searchsorted(ordered, q90 + b * np.log(max(0.1 * len(ordered), 1)), "right")))
        if grown == m:
            break
        m = grown
    return ordered[:m]


def _tail(ordered: Float[np.ndarray, " m"]) -> tuple[float, float]:
    q75, q90 = np.quantile(ordered, (0.75, 0.9))
    return float(q90), max(float(q90 - q75) / np.log(2.5), 1e-9)


def tail_logs(scores: Float[np.ndarray, " n"], clean: Float[np.ndarray, " m"]) -> Float[np.ndarray, " n"]:
    """-log10 of the p-value of each score: its rank among the clean ones, ascending, or the tail beyond their q90."""
    q90, b = _tail(clean)
    above = len(clean) - np.searchsorted(clean, scores, "left")
    inside = -np.log10((1 + above) / (1 + len(clean))) + 0.0  # no negative zero
    return np.where(scores > q90, 1 + (scores - q90) / b / np.log(10), np.minimum(inside, 1.0))


def listed(logs: Float[np.ndarray, " n"], alpha: float) -> float:
    """The -log10 p from which Benjamini-Hochberg lists pairs at the rate alpha; infinite if it lists none.

    Of the listed pairs, a share of at most alpha is expected to be false alarms. logs: -log10 of the p-values.
    """
    ordered = np.sort(logs)[::-1]
    n = len(ordered)
    under = np.flatnonzero(ordered >= -np.log10(alpha * np.arange(1, n + 1) / n)) if n else np.zeros(0, int)
    return float(ordered[under[-1]]) if len(under) else float("inf")

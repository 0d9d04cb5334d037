"""How well scores separate the poisoned pairs from the rest: AUROC, AUPRC, FPR95, precision@k, and the true positive
rate at 1 % and 5 % false positives, with intervals.
"""

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import brentq
from torch import Tensor

from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.scan import conformal
from clipvet.types import Measured

Z = 1.959964  # standard normal, 97.5 %
ALPHAS = (0.01, 0.05)  # shares of false alarms at which the true positive rate is told


def detection(
    scores: Float[Tensor, " n"] | Float[np.ndarray, " n"],
    poisoned: Bool[np.ndarray, " n"],
    draws: int = 500,
    trusted: Float[Tensor, " t"] | Float[np.ndarray, " t"] | None = None,
) -> dict[str, Measured]:
    """How well the scores (higher = more suspect) find the poisoned pairs: fractions with n and 95 % intervals.

    auroc: probability that a poison scores above another pair, ties counted by half; n: pairs with a score.
    auprc: average precision, as scikit-learn's average_precision_score; n: poisons.
    fpr95: share of the other pairs at or above the score that catches at least 95 % of the poisons; n: the other pairs.
    precision_at_k: share of poisons among the k most suspect, k being their number, ties in proportion; n: k.
    tpr_at_1, tpr_at_5: share of poisons above a threshold; n: poisons. fpr_at_1, fpr_at_5: share of the other pairs
    above it, the rate that came out; n: the other pairs. With `trusted`, scores of further clean pairs, the threshold
    promises 1 or 5 % false alarms (scan/conformal.py), so the rate may come out higher; too few of them leave both out.
    Without, it is the lowest above which at most 1 or 5 % of the other pairs lie, so the rate never does.
    unscored: share of pairs without a score (NaN), which count in none of the above; n: all pairs.

    Intervals: Newcombe's (2006) for auroc; Wilson's for unscored, and for the rates at a threshold, as if it were
    fixed. For the others the stratified bootstrap's with `draws` resamples, widened to Wilson's, since without overlap
    every resample is the same. Raises UserError unless there are scored pairs of both kinds.
    """
    values = np.asarray(scores, dtype=np.float64)
    known = ~np.isnan(values)
    p, n = int((poisoned & known).sum()), int((~poisoned & known).sum())
    if not p or not n:
        raise UserError(
            f"{p} poisoned and {n} other pairs have a score, so detection cannot be measured; give the answer key of "
            "this data, and data that holds both kinds"
        )
    _, level = np.unique(-values[known], return_inverse=True)  # 0: the most suspect
    pos = np.bincount(level[poisoned[known]], minlength=level.max() + 1)
    neg = np.bincount(level[~poisoned[known]], minlength=level.max() + 1)
    found, g = _numbers(pos, neg), Rng(0).fork("bootstrap").numpy()
    again = np.array([_numbers(g.multinomial(p, pos / p), g.multinomial(n, neg / n)) for _ in range(draws)])
    low, high = np.quantile(again, (0.025, 0.975), axis=0)
    out = {"auroc": Measured(found[0], p + n, *_newcombe(found[0], p, n))}
    for k, (name, size) in enumerate((("auprc", p), ("fpr95", n), ("precision_at_k", p)), 1):
        a, b = _wilson(found[k], size)
        out[name] = Measured(found[k], size, min(float(low[k]), a), max(float(high[k]), b))
    clean = None if trusted is None else np.asarray(trusted, dtype=np.float64)
    out |= _at(values[known & poisoned], values[known & ~poisoned], clean)
    missing = 1 - (p + n) / len(values)
    return out | {"unscored": Measured(missing, len(values), *_wilson(missing, len(values)))}


def _numbers(pos: np.ndarray, neg: np.ndarray) -> tuple[float, float, float, float]:
    """auroc, auprc, fpr95, precision_at_k from the numbers of poisons and others at each score, most suspect first."""
    p, n, tp, fp = pos.sum(), neg.sum(), pos.cumsum(), neg.cumsum()
    auroc = (neg * (tp - pos / 2)).sum() / (p * n)
    auprc = (pos * tp / np.maximum(tp + fp, 1)).sum() / p
    fpr95 = fp[np.searchsorted(tp, 0.95 * p - 1e-9)] / n
    last = np.searchsorted(tp + fp, p)  # the level that holds the k-th pair
    above = tp[last] - pos[last] + fp[last] - neg[last]
    hits = tp[last] - pos[last] + (p - above) * pos[last] / (pos[last] + neg[last])
    return float(auroc), float(auprc), float(fpr95), float(hits / p)


def _at(
    pos: Float[np.ndarray, " p"], neg: Float[np.ndarray, " n"], trusted: Float[np.ndarray, " t"] | None
) -> dict[str, Measured]:
    """True and false positive rates at the thresholds of ALPHAS."""
    out = {}
    for alpha in ALPHAS:
        if trusted is None:
            cut = np.sort(neg)[::-1][int(alpha * len(neg) + 1e-9)]  # as many others as may be lie above, or fewer
        elif np.isfinite(trusted).sum() + 1 >= 1 / alpha - 1e-9:
            cut = conformal.threshold(trusted, alpha)
        else:
            continue
        for name, own in (("tpr", pos), ("fpr", neg)):
            share = float((own > cut).mean())
            out[f"{name}_at_{100 * alpha:g}"] = Measured(share, len(own), *_wilson(share, len(own)))
    return out


def _wilson(share: float, n: int) -> tuple[float, float]:
    middle, spread = share + Z**2 / (2 * n), Z * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    low, high = (middle - spread) / (1 + Z**2 / n), (middle + spread) / (1 + Z**2 / n)
    return min(max(float(low), 0.0), share), max(min(float(high), 1.0), share)


def _newcombe(a: float, p: int, n: int) -> tuple[float, float]:
    """The two AUROCs t from which a is exactly Z of their own standard errors away (Newcombe 2006, method 5)."""
    m = (p + n) / 2 - 1

    def away(t: float) -> float:
        return (a - t) ** 2 - Z**2 * t * (1 - t) * (1 + m * ((1 - t) / (2 - t) + t / (1 + t))) / (p * n)

    low = brentq(away, 0.0, a - 1e-9) if a > 1e-9 else 0.0
    high = brentq(away, a + 1e-9, 1.0) if a < 1 - 1e-9 else 1.0
    return float(low), float(high)  # pyright: ignore[reportArgumentType]

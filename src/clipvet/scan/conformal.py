"""Split-conformal p-values and thresholds: a promised share of false alarms, from scores of clean examples.

    p(s) = (1 + #{j : c_j >= s}) / (n + 1)                      c: n clean scores; higher is more suspect
    tau  = the ceil((n + 1)(1 - alpha))-th smallest of c         s > tau  <=>  p(s) <= alpha, where no scores tie

A new clean score that is drawn like the n others is above tau with a probability of at most alpha. Nothing is promised
for pictures that differ from the clean ones in other ways than a trigger (Vovk et al. 2005; Angelopoulos and Bates,
arXiv:2107.07511, section 1). That is a mean over sets of clean examples. With k = ceil((n + 1)(1 - alpha)), the rate of
one set is Beta(n + 1 - k, k), and the flags among m clean scores are BetaBinomial(m, n + 1 - k, k) (section 3.2).
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from clipvet.errors import UserError


def p_values(scores: Float[np.ndarray, " m"], clean: Float[np.ndarray, " n"]) -> Float[np.ndarray, " m"]:
    """The p-value of each score; NaN for one that is NaN. Clean scores that are NaN do not count."""
    clean = np.sort(clean[np.isfinite(clean)])
    above = len(clean) - np.searchsorted(clean, scores, side="left")
    return np.where(np.isnan(scores), np.nan, (1 + above) / (len(clean) + 1))


def threshold(clean: Float[np.ndarray, " n"], alpha: float) -> float:
    """tau: scores above it are called suspect. alpha: promised share of false alarms, in (0, 1).

    Raises UserError if there are too few clean scores to promise so little: it takes 1 / alpha - 1 of them.
    """
    if not 0 < alpha < 1:
        raise UserError(f"alpha={alpha:g} is no share of false alarms; give one between 0 and 1, such as 0.01")
    clean = np.sort(clean[np.isfinite(clean)])
    k = math.ceil((len(clean) + 1) * (1 - alpha) - 1e-9)
    if k > len(clean):
        enough = math.ceil(1 / alpha - 1 - 1e-9)
        raise UserError(
            f"{len(clean)} clean scores cannot promise alpha={alpha:g}; give {enough} or more, or raise alpha to "
            f"{1 / (len(clean) + 1):.2g}"
        )
    return float(clean[k - 1])


BEYOND = 0.01  # chance, below which so many flags are more than clean scores give


class Promise(NamedTuple):
    """A threshold, what it promises, and how many scores are really above it."""

    threshold: float  # tau
    alpha: float  # promised share of false alarms, in the mean over sets of clean scores
    clean: int  # n, how many clean scores there are
    low: float  # 95 % interval of the true share for this very set of clean scores
    high: float
    judged: int  # scores that were compared with it
    flagged: int  # those above it
    expected: float  # of them, if all were clean
    chance: float  # that as many or more are above it, if all were clean

    @property
    def told(self) -> list[str]:
        """What that means, in words."""
        odds = f"a chance of {self.chance:.2g}" if self.chance >= 0.001 else "a chance below 0.001"
        if self.chance < BEYOND:
            follows = f"; so many have {odds} if all are clean: some carry a trigger, or differ in other ways"
        else:
            follows = f"; so many or more have {odds} if all are clean, so it proves nothing" if self.flagged else ""
        return [
            f"{self.flagged} of {self.judged} pictures are flagged (score above {self.threshold:.4g}).",
            f"About {self.expected:.3g} would be without any trigger (alpha {self.alpha:g}){follows}.",
            f"With these {self.clean} trusted pictures the true rate of false alarms is {self.low:.2%} to "
            f"{self.high:.2%} (95 % interval), as long as the others are like them but for a trigger.",
        ]


def promise(scores: Float[np.ndarray, " m"], clean: Float[np.ndarray, " n"], alpha: float) -> Promise:
    """The threshold that clean scores give, and what it says about the others. Scores that are NaN do not count.

    Raises UserError as `threshold` does.
    """
    from scipy.stats import beta, betabinom

    tau, n = threshold(clean, alpha), int(np.isfinite(clean).sum())
    k = math.ceil((n + 1) * (1 - alpha) - 1e-9)
    m, flagged = int(np.isfinite(scores).sum()), int((scores > tau).sum())
    low, high = beta.ppf([0.025, 0.975], n + 1 - k, k).tolist()
    chance = float(betabinom.sf(flagged - 1, m, n + 1 - k, k)) if flagged else 1.0
    return Promise(tau, alpha, n, low, high, m, flagged, m * (n + 1 - k) / (n + 1), chance)

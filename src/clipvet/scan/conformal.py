"""Split-conformal p-values and thresholds: a promised share of false alarms, from scores of clean examples.

    p(s) = (1 + #{j : c_j >= s}) / (n + 1)                      c: n clean scores; higher is more suspect
    tau  = the ceil((n + 1)(1 - alpha))-th smallest of c         s > tau  <=>  p(s) <= alpha, where no scores tie

A new clean score that is drawn like the n others is above tau with a probability of at most alpha. Nothing is promised
for pictures that differ from the clean ones in other ways than a trigger (Vovk et al. 2005; Angelopoulos and Bates,
arXiv:2107.07511, section 1).
"""

import math

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

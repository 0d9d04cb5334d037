"""Shares with Wilson's 95 % interval."""

import numpy as np

from clipvet.types import Measured


def share(hits: np.ndarray) -> Measured:
    """The fraction of True in a boolean array, with n and Wilson's 95 % interval. NaN where n is 0."""
    from scipy.stats import binomtest

    n, k = len(hits), int(np.sum(hits))
    if n == 0:
        return Measured(float("nan"), 0, 0.0, 1.0)
    ci = binomtest(k, n).proportion_ci(method="wilson")
    return Measured(k / n, n, float(ci.low), float(ci.high))

"""Shares with Wilson's 95 % interval, and means with the normal one."""

import numpy as np

from clipvet.types import Measured


def share(hits: np.ndarray) -> Measured:
    """The fraction of True in a boolean array (n,), with n and Wilson's 95 % interval. NaN if n is 0."""
    from scipy.stats import binomtest

    n, k = len(hits), int(np.sum(hits))
    if n == 0:
        return Measured(float("nan"), 0, 0.0, 1.0)
    ci = binomtest(k, n).proportion_ci(method="wilson")
    return Measured(k / n, n, float(ci.low), float(ci.high))


def mean(values: np.ndarray, least: float = 0.0) -> Measured:
    """The mean of numbers in [least, 1], shape (n,), with n and the normal 95 % interval, cut to that range.

    NaN if n is 0; for n = 1 the interval is the whole range.
    """
    n = len(values)
    if n < 2:
        return Measured(float(values[0]) if n else float("nan"), n, least, 1.0)
    m, half = float(values.mean()), 1.96 * float(values.std(ddof=1)) / n**0.5
    return Measured(m, n, max(least, m - half), min(1.0, m + half))

"""Shares with Wilson's 95 % interval, means with the normal one, and differences of paired shares with Newcombe's."""

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


def difference(after: np.ndarray, before: np.ndarray) -> Measured:
    """The fraction of True in `after` less that in `before`, boolean arrays (n,) over the same things, in [-1, 1].

    The 95 % interval is Newcombe's for paired shares (Statistics in Medicine 17, 1998, method 10). NaN if n is 0.
    """
    a, b, n = share(after), share(before), len(after)
    if n == 0:
        return Measured(float("nan"), 0, -1.0, 1.0)
    both, neither = int((after & before).sum()), int((~after & ~before).sum())
    k, m = int(after.sum()), int(before.sum())
    odds = both * neither - (k - both) * (m - both)
    scale = (k * (n - k) * m * (n - m)) ** 0.5
    phi = (max(odds - n / 2, 0) if odds > 0 else odds) / scale if scale else 0.0  # how the two go together

    def spread(x: float, y: float) -> float:
        return max(0.0, x**2 - 2 * phi * x * y + y**2) ** 0.5

    d = a.value - b.value
    low, high = d - spread(a.value - a.low, b.high - b.value), d + spread(a.high - a.value, b.value - b.low)
    return Measured(d, n, max(-1.0, low), min(1.0, high))

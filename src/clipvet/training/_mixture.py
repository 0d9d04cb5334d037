"""SafeCLIP's split: a mixture of two normal distributions over the pairs' cosines."""

import numpy as np
from jaxtyping import Bool, Float

from clipvet.errors import UserError


def clean_posterior(cosines: Float[np.ndarray, " n"], monotone: bool = True) -> tuple[Float[np.ndarray, " n"], bool]:
    """P(component of the larger mean | cosine) for every pair, and whether the two components are apart.

    Where the lower component is the wider one, the posterior falls again in the upper tail: the best pairs would be
    called risky. monotone: each value becomes the largest one between the lower mean and its cosine, and 0 below that
    mean. Apart: two normals tell the cosines better than one does (Bayesian information criterion).

    Raises UserError for cosines that are not finite, for fewer than 10 and for all alike.
    """
    from sklearn.mixture import GaussianMixture

    if not np.isfinite(cosines).all():
        raise UserError(f"{int((~np.isfinite(cosines)).sum())} pair cosines are not finite; lower lr")
    if len(cosines) < 10 or np.ptp(cosines) < 1e-6:
        raise UserError(f"{len(cosines)} cosines that are all alike cannot be split; give more and different pairs")
    column = cosines.astype(np.float64)[:, None]
    gmm = GaussianMixture(2, random_state=0).fit(column)
    means = np.ravel(gmm.means_)  # pyright: ignore
    q = gmm.predict_proba(column)[:, int(means.argmax())]
    if monotone:
        order = cosines.argsort(kind="stable")
        q[order] = np.maximum.accumulate(q[order] * (column[order, 0] >= means.min()))
    return q, bool(gmm.bic(column) < GaussianMixture(1).fit(column).bic(column))


def safe_set(
    cosines: Float[np.ndarray, " n"],
    threshold: float,
    share: float | None,
    first: float,
    cap: float,
    released: bool = False,
    least: float = 0.0,
) -> tuple[Bool[np.ndarray, " n"], bool]:
    """Which pairs are safe, and whether that went as planned; cosines of -2 stand for pairs that cannot be read.

    Those of posterior >= threshold where no share (fraction of the pairs) is given yet, else the best `share` by
    cosine, or as released by posterior. Where the mixture does not split, or leaves fewer than 2 pairs, fewer than
    `least` or more than `cap` (fractions): the best `first` by cosine, not as planned.
    """
    q, seen = np.zeros(len(cosines)), cosines >= -1.01  # what cannot be read must not bend the mixture
    q[seen], apart = clean_posterior(cosines[seen], monotone=not released)
    safe = q >= threshold
    if share is None and apart and max(2, least * len(q)) <= safe.sum() <= cap * len(q):
        return safe, True
    rank = np.lexsort((cosines, q if released and share else cosines))
    return np.isin(np.arange(len(q)), rank[-max(2, int((share or first) * len(q))) :]), share is not None

"""SafeCLIP's split into safe and risky pairs: a mixture of two normal distributions over the pairs' cosines."""

import numpy as np
from jaxtyping import Bool, Float

from clipvet.errors import UserError


def clean_posterior(cosines: Float[np.ndarray, " n"], monotone: bool = True) -> tuple[Float[np.ndarray, " n"], bool]:
    """P(upper component | cosine) of every pair, shape (n,), and whether the two components are really apart.

    They are apart if two normals explain the cosines better than one does (Bayesian information criterion).

    monotone: where the lower component is the wider one, the posterior falls again in the upper tail, so that the best
    pairs would be called risky. Each value is therefore raised to the largest posterior between the lower mean and its
    own cosine; below the lower mean it is 0.

    Raises UserError for cosines that are not finite, for fewer than 10, and if they are all alike.
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
    """Which pairs are safe, shape (n,), and whether that went as planned. A cosine of -2 marks an unreadable pair.

    Without a share, the pairs of posterior >= threshold are safe. With one, the best `share` by cosine are, or by
    posterior if `released`. share, first, cap and least are fractions of the pairs.

    It did not go as planned where the mixture does not split, or leaves fewer than 2 pairs, fewer than `least` or more
    than `cap`: then the best `first` by cosine are safe.
    """
    q, seen = np.zeros(len(cosines)), cosines >= -1.01  # unreadable pairs must not distort the mixture
    q[seen], apart = clean_posterior(cosines[seen], monotone=not released)
    safe = q >= threshold
    if share is None and apart and max(2, least * len(q)) <= safe.sum() <= cap * len(q):
        return safe, True
    rank = np.lexsort((cosines, q if released and share else cosines))
    return np.isin(np.arange(len(q)), rank[-max(2, int((share or first) * len(q))) :]), share is not None

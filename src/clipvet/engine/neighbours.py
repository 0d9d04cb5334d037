"""The nearest neighbours among embeddings, exactly, in blocks that fit into memory."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipvet.errors import UserError


class Neighbours(NamedTuple):
    """The k neighbours of each of n rows, nearest first."""

    distance: Float[Tensor, "n k"]  # Euclidean
    index: Int[Tensor, "n k"]  # rows of x


@torch.no_grad()
def nearest(x: Float[Tensor, "n d"], k: int, among: np.ndarray | None = None, block: int = 4096) -> Neighbours:
    """The k nearest rows of every row of x (unit length). A row is never its own neighbour; its duplicates may be.

    among: the rows that may be neighbours, shape (m,), each once; all if None. The result is exact up to the rounding
    of float32 inner products. Distances below 0.1 are computed from the difference of the vectors, so they are sharp
    for near duplicates too. The working memory is a few blocks of block^2 floats, whatever n and m are.

    Raises UserError unless 1 <= k < m.
    """
    n = len(x)
    m = n if among is None else len(among)
    if k < 1 or k >= m:
        lower = f", or lower k (--set k={m - 1})" if m > 1 else ""
        raise UserError(f"k={k} neighbours need more than {k} pairs to look among, there are {m}; give more{lower}")
    rows = torch.arange(n, device=x.device) if among is None else torch.as_tensor(among, device=x.device)
    pool = x if among is None else x[rows]
    at = torch.full((n,), -1, device=x.device)  # each row's place in the pool, -1 if it has none
    at[rows] = torch.arange(m, device=x.device)
    best = torch.full((n, k), -torch.inf, device=x.device)
    index = torch.zeros((n, k), dtype=torch.int64, device=x.device)

    def merge(a: int, s: Tensor, b: int) -> None:
        """Keep the k best for rows a, a + 1 ... given their inner products s with the pool's rows b, b + 1 ..."""
        v, i = s.topk(min(k, s.shape[1]), dim=1)
        v, i = torch.cat([best[a : a + len(s)], v], 1), torch.cat([index[a : a + len(s)], i + b], 1)
        best[a : a + len(s)], top = v.topk(k, dim=1)
        index[a : a + len(s)] = i.gather(1, top)

    for a in range(0, n, block):
        own = at[a : a + block]
        for b in range(a if among is None else 0, m, block):  # without `among` the table is symmetric: half is enough
            s = x[a : a + block] @ pool[b : b + block].T
            inside = ((own >= b) & (own < b + block)).nonzero()[:, 0]
            s[inside, own[inside] - b] = -torch.inf
            merge(a, s, b)
            if among is None and b > a:
                merge(b, s.T.contiguous(), a)
    distance = (2 - 2 * best).clamp_min(0).sqrt()
    close = (distance < 0.1).nonzero()  # where the rounding of the inner product would show
    for some in close.split(max(1, block**2 // x.shape[1])):
        i, j = some.T
        distance[i, j] = (x[i] - pool[index[i, j]]).norm(dim=1)
    distance, order = distance.sort(dim=1)
    return Neighbours(distance, rows[index.gather(1, order)])

"""The nearest neighbours among embeddings: exactly, in blocks that fit into memory, or of very many nearly all."""

import importlib.util
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipvet.errors import UserError

MANY = 50_000  # rows, above which the cells of faiss stand in for comparing all rows with each other
CELLS, PROBES, SAMPLED = 4, 16, 64  # cells per sqrt(n); cells looked through for a row; rows a cell that k-means sees


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
    _check(k, m)
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


def _check(k: int, m: int) -> None:
    """Raises UserError unless each row can have k neighbours among m rows."""
    if k < 1 or k >= m:
        lower = f", or lower k (--set k={m - 1})" if m > 1 else ""
        raise UserError(f"k={k} neighbours need more than {k} pairs to look among, there are {m}; give more{lower}")


def compares_all(n: int) -> bool:
    """Whether `near` compares all of n rows with each other for want of faiss, which would be faster."""
    return n > MANY and importlib.util.find_spec("faiss") is None


def near(x: Float[Tensor, "n d"], k: int) -> Int[Tensor, "n k"]:
    """The k nearest rows of every row of x (unit length), nearest first, never the row itself.

    Up to 50,000 rows, and on a GPU, they are exact. Of more rows they are nearly exact where faiss is installed (the
    extra `large`): it sorts the rows into cells by k-means, and looks through the 16 cells nearest to a row. A test
    on clusters asks for more than nine in ten. Without faiss they are exact and slow: the time grows as n^2.

    Source: Jegou, Douze, Schmid, TPAMI 2011 (inverted lists). Raises UserError unless 1 <= k < n.
    """
    _check(k, len(x))
    if len(x) <= MANY or x.device.type != "cpu" or compares_all(len(x)):
        return nearest(x, k).index
    return _by_cells(x, k)


def _by_cells(x: Float[Tensor, "n d"], k: int) -> Int[Tensor, "n k"]:
    import faiss

    module: Any = faiss
    module.omp_set_num_threads(torch.get_num_threads())
    (n, d), rows = x.shape, np.ascontiguousarray(x.float().numpy())
    index = module.IndexIVFFlat(module.IndexFlatIP(d), d, round(CELLS * n**0.5), module.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.niter = 0, 10
    index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, SAMPLED
    index.train(rows)
    index.add(rows)
    index.nprobe = PROBES
    found = torch.from_numpy(index.search(rows, k + 1)[1])
    # a duplicate may come before the row itself, or push it out: move it to the end, and cut that off
    own = found == torch.arange(n)[:, None]
    found = found.gather(1, own.int().argsort(dim=1, stable=True))[:, :k]
    for i in (found < 0).any(1).nonzero()[:, 0]:  # near cells that hold too few rows
        inner = x @ x[i]
        inner[i] = -torch.inf
        found[i] = inner.topk(k).indices
    return found

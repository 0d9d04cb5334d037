"""Which pairs show the same picture: a stock picture that a web set holds a hundred times counts once."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipvet.rng import Rng

SAME = 0.03  # distance of two embeddings, both of the picture and of its changed copies, up to which it is the same


def same_picture(z: Float[Tensor, "n d"], changed: Float[Tensor, "n d"], ids: Int[np.ndarray, " n"]) -> np.ndarray:
    """The group of each pair, shape (n,): pairs of one group show the same picture, or very nearly.

    changed: embeddings of changed pictures, of any length. Two pictures under one trigger may lie close together in z,
    but not without it. Pairs are compared with those next to them on a random line, on which copies coincide.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    both = torch.cat([z, changed], 1)
    line = torch.randn(both.shape[1], generator=Rng(0).fork("line").generator()).to(both.device)
    order = np.lexsort((ids, (both @ line).cpu().numpy()))
    at = torch.from_numpy(order).to(both.device)
    links = []
    for step in (1, 2, 3, 4):
        a, b = at[:-step], at[step:]
        near = ((z[a] - z[b]).norm(dim=1) < SAME) & ((changed[a] - changed[b]).norm(dim=1) < SAME)
        links.append(torch.stack([a[near], b[near]]).cpu().numpy())
    rows, columns = np.concatenate(links, axis=1)
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(z), len(z)))
    return connected_components(graph, directed=False)[1]

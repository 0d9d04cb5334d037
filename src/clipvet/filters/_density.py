"""What the density filters share: distances to the nearest pairs of a reference, and the local dimension from them.

Poisons share a trigger, so they lie close together. If a reference holds more than k of them, each finds k neighbours
of its own kind and looks dense; if it holds fewer, each looks isolated. So the pairs are dealt into blocks, about as
large as half a training batch of the paper, and a pair is compared with its own block. They are dealt anew `draws`
times, and a score is the mean over these. No two blocks share a pair, so one unlucky draw hits only a few poisons.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipvet.engine.neighbours import nearest
from clipvet.errors import UserError
from clipvet.filters._features import Of, aligned, features
from clipvet.rng import Rng
from clipvet.types import Clip, Pairs

NEAR = 1e-4  # smaller distances are rounding: the pictures are the same
MOST = 1000.0  # largest local dimension, for points whose distances are all equal


@dataclass(frozen=True)
class Density:
    """The fields of a density filter, in their order. A filter repeats those that its paper sets."""

    k: int = 16  # neighbours; the radius reaches to the next one, as in the paper's code
    reference: int | None = 512  # pairs in a block, about; None: all pairs are one block
    draws: int = 8  # times that the pairs are dealt into blocks
    features: Of = "image"  # or text, pair


class Around(NamedTuple):
    """What lies around each of the m pairs of a block."""

    distance: Float[Tensor, "m k"]  # to the k nearest others, nearest first
    radius: Float[Tensor, " m"]  # distance to the (k + 1)-th nearest
    index: Int[Tensor, "m k"]  # the k nearest: rows of the block


def over_blocks(
    how: Density, f: Callable[[Around], Float[Tensor, " m"]], clip: Clip, pairs: Pairs, rng: Rng
) -> Float[Tensor, " n"]:
    """f of what lies around every readable pair in its block, averaged over the draws; NaN for unreadable pairs.

    A pair is never its own neighbour. Who shares a block depends on the pairs' ids, not on their order. Raises
    UserError where a block has too few pairs for k.
    """
    x, kept = features(clip, pairs, how.features)
    ids, n = pairs.ids[kept].tolist(), len(x)
    parts = max(1, round(n / how.reference)) if how.reference is not None else 1
    least = n // parts
    if not 0 < how.k < least - 1:
        lower = f", or lower k (--set k={least - 2})" if least > 2 else ""
        raise UserError(f"k={how.k} needs blocks of at least {how.k + 2} pairs, there are {least}; give more{lower}")
    total, draws = torch.zeros(n, device=x.device), how.draws if parts > 1 else 1
    for draw in range(draws):
        order = rng.fork("reference", draw).keys(ids).numpy().argsort()
        for block in np.array_split(order, parts):
            rows = torch.from_numpy(np.sort(block)).to(x.device)
            distance, index = nearest(x[rows], how.k + 1)
            distance = distance.clamp_min(NEAR)
            total[rows] += f(Around(distance[:, :-1], distance[:, -1], index[:, :-1]))
    return aligned(total / draws, kept, len(pairs))


def local_dimension(near: Around) -> Float[Tensor, " m"]:
    """LID(x) = -k / sum_j log(r_j(x) / r(x)), at most 1000, with ratios floored at 1e-4; r: the radius.

    A picture with more than k copies of itself gets 0.
    """
    total = (near.distance / near.radius[:, None]).clamp_min(1e-4).log().sum(1)
    lid = (-near.distance.shape[1] / total.clamp_max(-1e-12)).clamp_max(MOST)
    return torch.where(near.radius > NEAR, lid, 0.0)

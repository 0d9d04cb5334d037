"""What the density filters share: distances to the nearest pairs of a reference, and the local dimension from them.

Poisons share a trigger, so they lie close together. If a reference holds more than k of them, each finds k neighbours
of its own kind and looks dense; if it holds fewer, each looks isolated. So a reference is a random subset, about as
large as one training batch of the paper, and a score is the mean over several such subsets.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clipvet.engine.neighbours import Neighbours, nearest
from clipvet.filters._features import Of, aligned, features
from clipvet.rng import Rng
from clipvet.types import Clip, Pairs

NEAR = 1e-4  # smaller distances are rounding: the pictures are the same
MOST = 1000.0  # largest local dimension, for points whose distances are all equal


@dataclass(frozen=True)
class Density:
    """The fields of a density filter, in their order. A filter repeats those that its paper sets."""

    k: int = 16  # neighbours
    reference: int | None = 1024  # pairs among which neighbours are looked for; None: all of them
    draws: int = 8  # references whose scores are averaged
    features: Of = "image"  # or text, pair


def over_references(
    how: Density, f: Callable[[Neighbours], Float[Tensor, " m"]], clip: Clip, pairs: Pairs, rng: Rng
) -> Float[Tensor, " n"]:
    """f of every readable pair's neighbours in a reference, averaged over the references; NaN for unreadable pairs.

    A pair is never its own neighbour. The neighbours' own distances come from the same reference, in which each of them
    is left out too. A reference as large as the set, or larger, is the whole set. Which pairs are drawn depends on
    their ids, not on their order.
    """
    x, kept = features(clip, pairs, how.features)
    ids = pairs.ids[kept]
    small = how.reference is not None and how.reference < len(x)
    scores = []
    for draw in range(how.draws if small else 1):
        among = rng.fork("reference", draw).keys(ids.tolist()).numpy().argsort()[: how.reference] if small else None
        near = nearest(x, how.k, np.sort(among) if among is not None else None)
        scores.append(f(near._replace(distance=near.distance.clamp_min(NEAR))))
    return aligned(torch.stack(scores).mean(0), kept, len(pairs))


def local_dimension(r: Float[Tensor, "m k"]) -> Float[Tensor, " m"]:
    """LID(x) = -k / sum_j log(r_j(x) / r_k(x)), at most 1000, with ratios floored at 1e-4.

    r: distances to the k nearest, nearest first. A picture with k copies of itself gets 0.
    """
    total = (r / r[:, -1:]).clamp_min(1e-4).log().sum(1)
    lid = (-r.shape[1] / total.clamp_max(-1e-12)).clamp_max(MOST)
    return torch.where(r[:, -1] > NEAR, lid, 0.0)

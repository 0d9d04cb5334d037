"""Which cells of pictures tie them to a text: paint a cell over, and see what the cosine loses."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from clipvet.engine.embed import device_of, embed_texts
from clipvet.types import Clip


def cells(h: int, w: int, grid: int) -> list[tuple[slice, slice]]:
    """The slices (rows, columns) of grid x grid cells of a picture, row by row."""
    rows, columns = (np.linspace(0, side, grid + 1).round().astype(int) for side in (h, w))
    return [(slice(a, b), slice(c, d)) for a, b in pairwise(rows) for c, d in pairwise(columns)]


@torch.no_grad()
def cell_drops(
    clip: Clip, images: Float[Tensor, "b 3 h w"], texts: Sequence[str], grid: int
) -> Float[Tensor, "b cells"]:
    """What the cosine of each picture and its text loses when a cell gets the picture's mean colour.

    images: pixels in [0, 1]. texts: one a picture. grid: cells along a side.
    """
    w, device = embed_texts(clip, texts), device_of(clip)
    whole = (clip.encode_image(images.to(device)) * w).sum(1)
    drops = []
    for rows, columns in cells(images.shape[2], images.shape[3], grid):
        painted = images.clone()
        painted[:, :, rows, columns] = images.mean((2, 3), keepdim=True)
        drops.append(whole - (clip.encode_image(painted.to(device)) * w).sum(1))
    return torch.stack(drops, 1).float().cpu()


def compromised(
    suspicious: Float[Tensor, "b cells"], usual: Float[Tensor, "c cells"], rho: float = 0.5
) -> Bool[Tensor, " cells"]:
    """The fewest cells that hold the share `rho` of what cells add in suspicious pictures more than in usual ones.

    suspicious, usual: from `cell_drops`, of pictures that the same words name. No cell is chosen if none adds more.
    """
    more = (suspicious.mean(0) - (usual.mean(0) if len(usual) else 0)).clamp_min(0)
    order = more.argsort(descending=True, stable=True)
    share = more[order].cumsum(0) / more.sum().clamp_min(1e-9)
    chosen = torch.zeros(len(more), dtype=torch.bool)
    chosen[order[: int((share < rho).sum()) + 1]] = bool(more.sum() > 0)
    return chosen


def transplanted(
    onto: Float[Tensor, "b 3 h w"], source: Float[Tensor, "b 3 h w"], chosen: Bool[Tensor, " cells"]
) -> Float[Tensor, "b 3 h w"]:
    """The pictures `onto`, with the chosen cells taken from `source`."""
    out, grid = onto.clone(), round(len(chosen) ** 0.5)
    for (rows, columns), taken in zip(cells(onto.shape[2], onto.shape[3], grid), chosen.tolist()):
        if taken:
            out[:, :, rows, columns] = source[:, :, rows, columns]
    return out

"""What a group of suspect pairs has in common, as pictures: its mean, that of other pairs, and the difference."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipvet.pages._page import picture
from clipvet.types import Geometry, Pairs

MOST = 400  # pictures that a mean is taken over
STRONG = 0.995  # share of the differences that the enlarged picture shows without clipping


def mean_picture(pairs: Pairs, geometry: Geometry, rows: Int[np.ndarray, " r"]) -> Float[Tensor, "3 h w"] | None:
    """The mean over the readable ones of these rows, or of MOST that are spread evenly over them; None without any."""
    some = rows[np.linspace(0, len(rows) - 1, min(MOST, len(rows))).round().astype(int)]
    held, total, n = pairs.at(geometry), torch.zeros(()), 0
    for part in np.array_split(some, max(1, len(some) // 64)):
        if len(part) and len(images := held[part].images):
            total, n = total + images.sum(0), n + len(images)
    return total / n if n else None


def enlarged(difference: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
    """The difference as a picture: grey where there is none, scaled so that the strongest is black or white."""
    centred = difference - difference.mean((1, 2), keepdim=True)  # a group may be brighter as a whole
    most = centred.abs().flatten().quantile(STRONG).clamp_min(1e-6)
    return (0.5 + centred / (2 * most)).clamp(0, 1)


def contrasts(
    groups: Any, pairs: Pairs, geometry: Geometry, rest: Int[np.ndarray, " r"], most: int = 6
) -> list[dict[str, Any]]:
    """For the `most` largest groups: their facts, and three pictures as data URIs, where they can be read.

    groups: `filters._told.Group`, whose rows are positions in the pairs. rest: positions of pairs that are not suspect.
    """
    other, out = None, []
    for group in sorted(groups, key=lambda g: -len(g.rows))[:most]:
        mine = mean_picture(pairs, geometry, group.rows)
        other = mean_picture(pairs, geometry, rest) if other is None else other
        shown: dict[str, Tensor] = {}
        if mine is not None and other is not None:
            shown = {"mean": mine, "rest": other, "difference": enlarged(mine - other)}
        out.append({
            "words": group.words, "n": len(group.rows), "share": group.share, "low": group.low, "high": group.high,
            "copies": group.copies, "pictures": {name: picture(x) for name, x in shown.items()},
        })  # fmt: skip
    return out

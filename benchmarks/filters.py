"""What a filter costs when the embeddings are there already: seconds and peak memory of DAO on random unit vectors.

command:  python benchmarks/filters.py         (--n 100000 --d 512 --reference 512; --reference 0: the whole set)
expected: 100,000 x 512 in < 60 s and < 4 GiB on two cores
"""

import resource
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _ratios import arguments, tell, timed
from torch import Tensor

from clipvet.engine.embed import embed_images, sharing
from clipvet.filters.dao import Dao
from clipvet.rng import Rng
from clipvet.types import Geometry, Pairs


class Index:
    """Pictures of one pixel, whose value is their row number."""

    def __init__(self, n: int):
        self.n = n

    def __len__(self) -> int:
        return self.n

    def fetch(self, rows: Sequence[int], geometry: Geometry | None) -> tuple[Tensor, list[tuple[int, str]]]:
        return torch.tensor(rows).float().reshape(-1, 1, 1, 1).expand(-1, 3, 1, 1), []


class Ready(torch.nn.Module):
    """A Clip that looks a picture's embedding up by this number."""

    def __init__(self, z: Tensor):
        super().__init__()
        self.z, self.geometry, self.mean, self.logit_scale = z, Geometry(1), torch.zeros(3, 1, 1), torch.tensor(1.0)

    def encode_image(self, images: Tensor) -> Tensor:
        return self.z[images[:, 0, 0, 0].long()]


def main() -> None:
    a = arguments(__doc__ or "", n=100_000, d=512, reference=512)
    ready = torch.randn(a.n, a.d, generator=Rng(0).generator())
    F.normalize(ready, dim=1, out=ready)
    clip: Any = Ready(ready)
    pairs = Pairs(Index(a.n), [""] * a.n, np.arange(a.n))
    with sharing():
        embed_images(clip, pairs)
        seconds = timed(lambda: Dao(reference=a.reference or None).score(clip, pairs, Rng(0)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    tell({"seconds": seconds, "peak memory, GiB": peak}, a)


if __name__ == "__main__":
    main()

"""What a filter costs on embeddings that lie ready: seconds and peak memory of DAO over random unit vectors.

command:  python benchmarks/filters.py         (--n 100000 --d 512 --reference 1024; --reference 0: the whole set)
expected: 100,000 x 512 in < 60 s and < 4 GiB on two cores
"""

import argparse
import json
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipvet import results
from clipvet.embed import embed_images, sharing
from clipvet.filters.dao import Dao
from clipvet.rng import Rng
from clipvet.types import Geometry, Pairs


class Index:
    """Pictures that are just their row numbers."""

    def __init__(self, n: int):
        self.n = n

    def __len__(self) -> int:
        return self.n

    def fetch(self, rows: Sequence[int], geometry: Geometry | None) -> tuple[Tensor, list[tuple[int, str]]]:
        return torch.tensor(rows).float().reshape(-1, 1, 1, 1).expand(-1, 3, 1, 1), []


class Ready(torch.nn.Module):
    """A Clip that looks a picture's embedding up by its number."""

    def __init__(self, z: Tensor):
        super().__init__()
        self.z, self.geometry, self.mean, self.logit_scale = z, Geometry(1), torch.zeros(3, 1, 1), torch.tensor(1.0)

    def encode_image(self, images: Tensor) -> Tensor:
        return self.z[images[:, 0, 0, 0].long()]


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--n", type=int, default=100_000)
    args.add_argument("--d", type=int, default=512)
    args.add_argument("--reference", type=int, default=1024)
    args.add_argument("--out", type=Path)
    a = args.parse_args()
    ready = torch.randn(a.n, a.d, generator=Rng(0).generator())
    F.normalize(ready, dim=1, out=ready)
    clip: Any = Ready(ready)
    pairs = Pairs(Index(a.n), [""] * a.n, np.arange(a.n))
    with sharing():
        embed_images(clip, pairs)
        began = time.perf_counter()
        scores = Dao(reference=a.reference or None).score(clip, pairs, Rng(0))
        seconds = time.perf_counter() - began
    told = {
        "seconds": seconds,
        "peak memory, GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "mean score": float(scores.mean()),
        "settings": {k: str(v) for k, v in vars(a).items() if k != "out"},
        "hardware": results.hardware(),
        "versions": results.versions(),
    }
    print(json.dumps(told, indent=1))
    if a.out:
        a.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()

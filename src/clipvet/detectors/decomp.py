"""Decomp: a picture is suspect where a head or an MLP adds to its feature what it never adds to others.

    h(x)  = sum_k c_k(x)                                          over heads and MLPs (models/residual.py)
                                                                  another tower than a ViT is one part
    m, s  = mean and standard deviation of c_k over pictures from outside the task, dimension by dimension
    score = max_k mean_d [(c_k(x) - m_k) / s_k]_d^2

paper:   Decomp-Det, ICML 2025; text not read: the decomposition and the idea are those of summaries
needs:   embeddings only; white-box weights of a ViT, or less is seen
differs: the paper calls a picture triggered where more than five late heads have <c_k, prototype> under 0.002; that
         needs clean pictures of the task for the prototypes. With the embedded pool in their place it fails on a small
         tower (AUROC 0.57 on a development victim with a patch, where this score has 1.00). On four development victims
         (150 pictures each): 0.98 patch, 0.86 blended, 0.95 BadCLIP, but 0.29 WaNet, upside down
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from clipvet.data.worlds.pool import pool
from clipvet.detectors._each import each
from clipvet.engine.embed import device_of
from clipvet.errors import UserError
from clipvet.models.residual import check, decomposed
from clipvet.rng import Rng
from clipvet.types import Batch, Clip, Pairs


@dataclass(frozen=True)
class Decomp:
    usual: int = 300  # pictures from outside the task that say what is usual

    needs: ClassVar[str] = "embeddings only; white-box weights of a ViT, or less is seen"
    phrase: ClassVar[str] = "a head or MLP deviates by {score:.1f} variances"

    @torch.no_grad()
    def detect(
        self, clip: Clip, pictures: Pairs, classes: Sequence[str], templates: Sequence[str], rng: Rng
    ) -> Float[Tensor, " n"]:
        """The largest deviation of any part of every picture, in variances."""
        try:
            check(clip)
            whole = False
        except UserError:
            whole = True

        def parts(images: Tensor) -> Float[Tensor, "b k d"]:
            return (clip.encode_image(images)[:, None] if whole else decomposed(clip, images).terms).float()

        usual = pool(self.usual, clip.geometry.size, rng.fork("usual").key).to(device_of(clip))
        known = torch.cat([parts(x) for x in usual.split(100)])
        m, s = known.mean(0), known.std(0).clamp_min(1e-6)

        def deviation(rows: Batch) -> Float[Tensor, " b"]:
            return ((parts(rows.images) - m) / s).square().mean(-1).amax(1)

        return each(clip, pictures, deviation)

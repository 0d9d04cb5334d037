"""Decomp: heads and MLPs that carry a trigger write the same to every picture from then on.

    h(x)  = sum_k c_k(x)                                         over heads and MLPs (models/residual.py)
    u     = mean_x h(x') of length 1,  x' = x with the recovered trigger
    g_k   = <mean_x [c_k(x') - c_k(x)], u>,   sum_k g_k = g      how far the trigger moves pictures, part by part
    again and again  k = argmax g_k;  r_k <- mean_x r_k(x)       until g is at most `left` of what it was

paper:   Decomp-Rep, ICML 2025; text not read: idea, mean ablation and where patches live come from summaries
needs:   clean pairs; white-box weights of a ViT
differs: one part at a time, as later ones move along; the paper takes late heads under a fixed threshold (0.002), and
         late MLPs for triggers all over the picture. The mean goes into the weights, so it holds at every token, not
         only at the class token. On one development victim (patch, 4 blocks of 3 heads): head 2.1 alone, ASR 100 to 8
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clipvet import find
from clipvet.cleaners._lead import BATCH, Lead, lead
from clipvet.engine.embed import device_of
from clipvet.engine.workspace import note
from clipvet.errors import UserError
from clipvet.models.residual import Sum, ablated, check, decomposed, parts_of
from clipvet.rng import Rng
from clipvet.types import Clip, Inspector, Pairs


@dataclass(frozen=True)
class Decomp:
    verdict: str = ""  # a folder of `clipvet inspect` with the trigger; empty: inspect now
    inspector: Inspector = field(default_factory=lambda: find.load("inspectors", "collapse")())
    pictures: int = 500  # clean pictures that tell the parts' means
    left: float = 0.25  # share of the trigger's move at which to stop
    most: int = 6  # parts to ablate
    mlps: bool = True  # whether MLPs may go too; else heads alone

    needs: ClassVar[str] = "clean pairs"

    def clean(self, clip: Clip, pairs: Pairs, rng: Rng) -> Clip:
        """The model with those parts ablated. Raises UserError for towers without heads and without a trigger."""
        check(clip)
        if not 0 <= self.left < 1 or self.most < 1:
            raise UserError(f"left={self.left:g}, most={self.most}: ablate a part at least, and leave less than all")
        found = lead(self, clip, pairs, rng)
        names, chosen, out = parts_of(clip), [], clip
        first = gains(clip, found)
        whole, usual, now = float(first.sum()), terms(clip, found.images).inside.mean(0), first
        may = torch.tensor([bool(p.head) or self.mlps for p in names])
        while len(chosen) < self.most and (not chosen or float(now.sum()) > self.left * whole):
            free = may & torch.tensor([p not in chosen for p in names])
            chosen.append(names[int(now.cpu().masked_fill(~free, -torch.inf).argmax())])
            out = ablated(clip, chosen, usual)
            now = gains(out, found)
        said = ", ".join(p.said for p in chosen)
        share = float(now.sum()) / whole if whole else 0.0
        note(
            "decomp",
            f"{found.said}; ablated {said}: {share:.0%} of its move is left",
            block=np.array([p.block for p in names]), head=np.array([p.head for p in names]), gain=first.cpu().numpy(),
            ablated=np.array([p in chosen for p in names]), left=np.array(share), word=np.array(found.word),
        )  # fmt: skip
        return out


def gains(clip: Clip, found: Lead) -> Float[Tensor, " k"]:
    """g_k of every part; the trigger's direction u is that of the same model."""
    plain, moved = terms(clip, found.images), terms(clip, found.stamped)
    return (moved.terms - plain.terms).mean(0) @ F.normalize(moved.z.mean(0), dim=0)


@torch.no_grad()
def terms(clip: Clip, images: Float[Tensor, "n 3 h w"]) -> Sum:
    """The sums of these pictures, batch by batch."""
    every: Any = [decomposed(clip, x.to(device_of(clip))) for x in images.split(BATCH)]
    joined = {name: torch.cat([getattr(s, name) for s in every]) for name in ("terms", "z", "inside")}
    return every[0]._replace(**joined)

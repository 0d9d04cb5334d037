"""InverTune: recover the trigger, name its target, and put back the activations that it moves most.

    A      = the `share` of the units with the largest mean_x |a(x') - a(x)| / sd(a)        x' = x with the trigger
    L_act  = mean_x mean_{j in A} [(a_j(x'; theta) - a_j(x; theta_p)) / sd(a_j)]^2
    L      = L_act + w_true L_CLIP(z(x'), w) + w_keep L_CLIP(z(x), w)                        over the picture tower
    if the recovered trigger leads fewer than `gate` of the pictures to its target: stop, and say so

paper:   InverTune, arXiv:2506.12411, NDSS 2026; text not read: the three steps are those of summaries
needs:   clean pairs; white-box weights
differs: the target is the word of the captions at which stamped pictures land (the paper finds it by an adversarial
         shift), the trigger that of collapse or of a verdict; units: the class token after every block and the feature,
         in other towers than ViTs the feature alone. Weights, rates and gate are ours
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from clipvet import find
from clipvet.cleaners._lead import BATCH, Lead, lead
from clipvet.engine.embed import device_of
from clipvet.engine.fit import fit_by
from clipvet.engine.losses import own_loss
from clipvet.engine.optim import warmup_cosine
from clipvet.engine.workspace import note
from clipvet.errors import UserError
from clipvet.models.adapter import frozen
from clipvet.models.visual_prompts import blocks
from clipvet.rng import Rng
from clipvet.types import Batch, Clip, Inspector, Pairs


@dataclass(frozen=True)
class InverTune:
    verdict: str = ""  # a folder of `clipvet inspect` with the trigger; empty: inspect now
    inspector: Inspector = field(default_factory=lambda: find.load("inspectors", "collapse")())
    pictures: int = 500  # clean pictures on which the trigger is tried and the units are chosen
    gate: float = 0.7  # success of the recovered trigger, beyond what happens without it, below which to stop
    share: float = 0.2  # of the units that are put back
    w_true: float = 1.0  # weight of stamped pictures with their true captions
    w_keep: float = 1.0  # weight of the clean pairs
    epochs: float = 2
    batch: int = 64  # pairs a step
    lr: float = 1e-5
    warmup: float = 0.1  # fraction of the steps
    weight_decay: float = 0.0
    optimizer: str = "adamw"
    precision: str = "no"  # or bf16, fp16
    max_bad: float = 0.01  # share of unreadable pictures above which the run is refused

    needs: ClassVar[str] = "clean pairs"

    def clean(self, clip: Clip, pairs: Pairs, rng: Rng) -> Clip:
        """The tuned model. Raises UserError where no trigger was recovered, or one that does too little."""
        found = lead(self, clip, pairs, rng.fork("lead"))
        if found.asr - found.base < self.gate:
            raise UserError(
                f"the recovered trigger is too weak to clean with: {found.said}, and {self.gate:.0%} more are asked "
                "for. Inspect again with more starts, or clean with par, which needs no trigger"
            )
        before = frozen(clip)
        chosen, sd = moved_units(before, found, self.share)
        note("invertune", f"{found.said}; {int(chosen.sum())} of {len(chosen)} units are put back",
             word=np.array(found.word), asr=np.array(found.asr), units=chosen.cpu().numpy())  # fmt: skip

        def loss(clip: Clip, batch: Batch, rng: Rng) -> dict[str, Tensor]:
            x, keys = batch.images, Rng(0).keys(batch.ids.tolist()).to(batch.images.device)
            stamped = found.trigger.stamp(x, keys)
            before.to(x.device)
            with torch.no_grad():
                aim = activations(before, x)[0]
            a, z = activations(clip, stamped)
            away = ((a - aim) / sd.to(a))[:, chosen.to(a.device)].square().mean()
            w = clip.encode_text(batch.tokens)  # pyright: ignore[reportArgumentType]
            true, keep = own_loss(clip, z, w, frozen=True), own_loss(clip, clip.encode_image(x), w, frozen=True)
            return {"loss": away + self.w_true * true + self.w_keep * keep, "act": away, "true": true, "keep": keep}

        return fit_by(self, clip, pairs, loss, rng, schedule=warmup_cosine(self.lr, self.warmup), batchnorm="eval")


def activations(clip: Clip, images: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b u"], Float[Tensor, "b d"]]:
    """All units of these pictures in a row, and the features among them."""
    seen: Any = blocks(clip, images)
    return torch.cat(list(seen.values()), 1), seen[""]


@torch.no_grad()
def moved_units(clip: Clip, found: Lead, share: float) -> tuple[Bool[Tensor, " u"], Float[Tensor, " u"]]:
    """The units that the trigger moves most, and the standard deviation of every unit without it."""
    device = device_of(clip)
    a, b = (
        torch.cat([activations(clip, part.to(device))[0].float() for part in x.split(BATCH)])
        for x in (found.images, found.stamped)
    )
    sd = a.std(0).clamp_min(1e-6)
    far = (b - a).abs().mean(0) / sd
    chosen = torch.zeros_like(far, dtype=torch.bool)
    chosen[far.argsort(descending=True)[: max(1, round(share * len(far)))]] = True
    return chosen, sd

"""Task negation: overfit a copy on suspicious pairs, or on a recovered trigger, and move the weights the other way.

    theta = theta_p - scale (theta_o - theta_p)      theta_o: theta_p trained on NCE(suspicious) + beta NCE(normal)
    with a verdict  theta_o: the picture tower trained on mean (1 - s(x', T))^2 + hold mean |h(x) - h_p(x)|^2;
                    x': with the recovered trigger, T: captions with the word that it leads to; scale is the smallest of
                    reach / 10, 2 reach / 10 ... with which it leads at most `enough` more pictures there than without

paper:   Ilharco et al., ICLR 2023, arXiv:2212.04089; on backdoored CLIP: TBAR, arXiv:2510.14845; neither text read
needs:   untrusted pairs; white-box weights; a clean reference model if there is one, or a recovered trigger
differs: without a verdict the direction is that of UBT's weak pairs (see ubt), with clean ones among them; with one it
         is TBAR's second mode, whose loss, rates and search for the scale are ours. Temperature and running
         statistics stay
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from clipvet import find
from clipvet.cleaners._lead import Lead, embedded, having, lead, success
from clipvet.engine.fit import fit_by
from clipvet.engine.losses import squared_distance
from clipvet.engine.optim import constant
from clipvet.engine.workspace import note
from clipvet.models.adapter import clone
from clipvet.rng import Rng
from clipvet.types import Batch, Clip, Inspector, Pairs
from clipvet.unlearning.shortcut import Over, overfit, weak_pairs


@dataclass(frozen=True)
class TaskNegation:
    scale: float = 1.0  # length of the step back, in units of theta_o - theta_p; without a verdict
    reference: str = ""  # a clean model, by name or folder; empty: the given one on changed pictures
    verdict: str = ""  # a folder of `clipvet inspect` with the trigger; inspect: look for it now; empty: weak pairs
    reach: float = 4.0  # the longest step from a trigger
    enough: float = 0.02  # of the pictures
    hold: float = 10.0  # weight of the pictures without the trigger, whose features stay
    inspector: Inspector = field(default_factory=lambda: find.load("inspectors", "collapse")())
    pictures: int = 500  # that the trigger is stamped on
    views: bool = True  # without a reference: blur, crop and mirror the pictures
    susp: float = 0.004  # share of the pairs that is suspicious
    normal: float = 0.8  # share of the others, the best under the reference, that counts as clean
    overfit: Over = "square"  # or nce
    beta: float = 0.0  # weight of the normal pairs; 0, as what they teach is not to be subtracted
    epochs: float = 5  # of the suspicious pairs
    batch: int = 64  # suspicious pairs a step
    lr: float = 1e-5
    weight_decay: float = 0.0
    optimizer: str = "adamw"
    precision: str = "no"  # or bf16, fp16
    max_bad: float = 0.01  # share of unreadable pictures above which the run is refused

    needs: ClassVar[str] = "untrusted pairs"

    def clean(self, clip: Clip, pairs: Pairs, rng: Rng) -> Clip:
        """The model with the opposite step. Raises UserError if there are too few suspicious or clean pairs."""
        if self.verdict:
            found = lead(self, clip, pairs, rng.fork("lead"))
            return self.shortest(clip, self.bound(clip, pairs, found, rng), found)
        weak = weak_pairs(clip, pairs, self.reference, self.views, self.susp, self.normal)
        return negated(clip, overfit(self, clip, pairs, weak, rng, self.lr, self.beta, self.overfit), self.scale)

    def shortest(self, clip: Clip, over: Clip, found: Lead) -> Clip:
        """The model after the shortest step that is enough; after the whole one if none is."""
        out, left, scale = clip, found.asr, 0.0
        for k in range(1, 11):
            scale = self.reach * k / 10
            out = negated(clip, over, scale)
            left, base = (success(out, x, found.captions, found.word) for x in (found.stamped, found.images))
            if left - base <= self.enough:
                break
        said = f"{found.said}; {left:.0%} after a step of {scale:.2g}"
        note("task_negation", said, word=np.array(found.word), asr=np.array(found.asr), scale=np.array(scale))
        return out

    def bound(self, clip: Clip, pairs: Pairs, found: Lead, rng: Rng) -> Clip:
        """theta_o of a recovered trigger."""
        said = [pairs.caption(i) for i in pairs.ids[having([pairs.caption(i) for i in pairs.ids], found.word)]]
        before = embedded(clip, found.images)
        at = {int(i): k for k, i in enumerate(found.ids)}

        def loss(clip: Clip, batch: Batch, rng: Rng) -> dict[str, Tensor]:
            rows = [at[int(i)] for i in batch.ids]
            both = torch.cat([found.stamped[rows], found.images[rows]]).to(batch.images.device)
            z, same = clip.encode_image(both).chunk(2)
            with torch.no_grad():  # else the word itself would be subtracted
                w = clip.encode_text([said[k] for k in rng.numpy().integers(len(said), size=len(rows))])
            near = (1 - (z * w).sum(1)).square().mean()
            return {"loss": near + self.hold * squared_distance(same, before[rows].to(z)), "near": near}

        some = pairs.take(np.isin(pairs.ids, found.ids))
        return fit_by(self, clip, some, loss, rng, schedule=constant(self.lr), batchnorm="eval")


@torch.no_grad()
def negated(clip: Clip, over: Any, scale: float) -> Clip:
    """theta_p - scale (theta_o - theta_p)."""
    out, there = clone(clip), dict(over.named_parameters())
    for name, p in out.named_parameters():
        if not name.endswith("logit_scale"):
            p.sub_(scale * (there[name] - p))
    return out

"""Task negation: overfit a copy on suspicious pairs, or on a recovered trigger, and move the weights the other way.

    theta = theta_p - scale (theta_o - theta_p)      theta_o: theta_p trained on NCE(suspicious) + beta NCE(normal)
    with a verdict  theta_o: theta_p trained on mean (1 - s(x', T))^2;  x': pictures with the recovered trigger,
                    T: captions with the word that it leads to

paper:   Ilharco et al., ICLR 2023, arXiv:2212.04089; on backdoored CLIP: TBAR, arXiv:2510.14845; neither text read
needs:   untrusted pairs; white-box weights; a clean reference model if there is one, or a recovered trigger
differs: without a verdict the direction is that of UBT's weak pairs (see ubt), with clean ones among them; with one it
         is TBAR's second mode, whose loss, rates and scale are ours. Temperature and running statistics stay
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from clipvet import find
from clipvet.cleaners._lead import having, lead
from clipvet.engine.fit import fit_by
from clipvet.engine.optim import constant
from clipvet.engine.workspace import note
from clipvet.models.adapter import clone
from clipvet.rng import Rng
from clipvet.types import Batch, Clip, Inspector, Pairs
from clipvet.unlearning.shortcut import Over, overfit, weak_pairs


@dataclass(frozen=True)
class TaskNegation:
    scale: float = 1.0  # length of the step back, in units of theta_o - theta_p
    verdict: str = ""  # a folder of `clipvet inspect` with the trigger; inspect: look for it now; empty: weak pairs
    inspector: Inspector = field(default_factory=lambda: find.load("inspectors", "collapse")())
    pictures: int = 500  # that the trigger is stamped on
    reference: str = ""  # a clean model, by name or folder; empty: the given one on changed pictures
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
            over: Any = self.bound(clip, pairs, rng)
        else:
            weak = weak_pairs(clip, pairs, self.reference, self.views, self.susp, self.normal)
            over = overfit(self, clip, pairs, weak, rng, self.lr, self.beta, self.overfit)
        out, there = clone(clip), dict(over.named_parameters())
        with torch.no_grad():
            for name, p in out.named_parameters():
                if not name.endswith("logit_scale"):
                    p.sub_(self.scale * (there[name] - p))
        return out

    def bound(self, clip: Clip, pairs: Pairs, rng: Rng) -> Clip:
        """theta_o of a recovered trigger. Raises UserError where there is none."""
        found = lead(self, clip, pairs, rng.fork("lead"))
        note("task_negation", found.said, word=np.array(found.word), asr=np.array(found.asr))
        said = [pairs.caption(i) for i in pairs.ids[having([pairs.caption(i) for i in pairs.ids], found.word)]]
        at = {int(i): k for k, i in enumerate(found.ids)}

        def loss(clip: Clip, batch: Batch, rng: Rng) -> dict[str, Tensor]:
            rows = [at[int(i)] for i in batch.ids]
            z = clip.encode_image(found.stamped[rows].to(batch.images.device))
            w = clip.encode_text([said[k] for k in rng.numpy().integers(len(said), size=len(rows))])
            return {"loss": (1 - (z * w).sum(1)).square().mean()}

        some = pairs.take(np.isin(pairs.ids, found.ids))
        return fit_by(self, clip, some, loss, rng, schedule=constant(self.lr), batchnorm="eval")

"""Task negation: overfit a copy on the suspicious pairs, then move the weights in the opposite direction.

    theta = theta_p - scale (theta_o - theta_p)      theta_o: theta_p trained on NCE(suspicious) + beta NCE(normal)

paper:   Ilharco et al., ICLR 2023, arXiv:2212.04089; on backdoored CLIP: TBAR, arXiv:2510.14845; neither text read
needs:   untrusted pairs; white-box weights; a clean reference model if there is one
differs: the direction is that of UBT's weak pairs (see ubt), with clean ones among them; TBAR subtracts that of
         triggered pairs, so it must know the trigger. Temperature and running statistics stay as they are
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from clipvet.models.adapter import clone
from clipvet.rng import Rng
from clipvet.types import Clip, Pairs
from clipvet.unlearning.shortcut import Over, overfit, weak_pairs


@dataclass(frozen=True)
class TaskNegation:
    scale: float = 1.0  # length of the step back, in units of theta_o - theta_p
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
        weak = weak_pairs(clip, pairs, self.reference, self.views, self.susp, self.normal)
        over: Any = overfit(self, clip, pairs, weak, rng, self.lr, self.beta, self.overfit)
        out, there = clone(clip), dict(over.named_parameters())
        with torch.no_grad():
            for name, p in out.named_parameters():
                if not name.endswith("logit_scale"):
                    p.sub_(self.scale * (there[name] - p))
        return out

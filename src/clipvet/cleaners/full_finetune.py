"""Full fine-tuning of the picture tower on a few labelled pictures: cross-entropy and, if asked for, RVPT's repelling.

    L = -mean_i log softmax_j(s <z_i, t_j>)[y_i] + alpha * mean_i mean_d cos(c_i^d, sigma_i^d)      over all blocks d

paper:   the rows "full fine-tuning" of RVPT's ablation, arXiv:2412.20392, Table 8 (CE; CE + FR)
needs:   few labelled pictures; white-box weights
differs: text tower and temperature stay as they are; steps and rate are those of RVPT, with AdamW at CLIP's fine-tuning
         rate
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from clipvet.cleaners._shots import cross_entropy
from clipvet.data.augment import Views
from clipvet.engine.fewshot import labels, view
from clipvet.engine.fit import fit_by
from clipvet.engine.optim import warmup_cosine
from clipvet.models.adapter import frozen
from clipvet.models.visual_prompts import beginning, rest, transformer
from clipvet.rng import Rng
from clipvet.types import Batch, Clip, Pairs


@dataclass(frozen=True)
class FullFinetune:
    alpha: float = 0.0  # weight of the repelling; above 0 it needs a ViT
    others: tuple[str, ...] = ()  # prompts of further classes, without pictures
    epochs: float = 50
    batch: int = 32  # pictures a step
    lr: float = 1e-5  # where the cosine begins
    weight_decay: float = 0.1
    optimizer: str = "adamw"
    augment: Views | None = None
    precision: str = "no"  # or bf16, fp16
    max_bad: float = 0.01  # share of unreadable pictures above which the run is refused

    needs: ClassVar[str] = "labelled pictures"

    def clean(self, clip: Clip, pairs: Pairs, rng: Rng) -> Clip:
        """The model with another picture tower.

        Raises UserError for pictures without labels and, with a weight of the repelling, for towers without a class
        token.
        """
        named, poisoned = labels(clip, pairs, self.others), frozen(clip)
        start: Any = frozen(clip)
        start.model.visual.requires_grad_(True)
        every = [None] * len(transformer(clip).transformer.resblocks) if self.alpha else []

        def repelling(clip: Any, batch: Batch, rng: Rng) -> dict[str, Tensor]:
            y, x = named.of(batch.captions), view(batch, self.augment, rng)
            poisoned.to(x.device)  # the loop chose it
            z, c = rest(clip, beginning(clip, x, 0), every)
            with torch.no_grad():
                sigma = rest(poisoned, beginning(poisoned, x, 0), every)[1]
            ce = F.cross_entropy(clip.logit_scale * z @ named.text.T, y)
            fr = F.cosine_similarity(c, sigma, dim=-1).mean()
            return {"loss": ce + self.alpha * fr, "ce": ce, "fr": fr}

        loss = repelling if self.alpha else cross_entropy(named, self.augment)
        schedule = warmup_cosine(self.lr, 1 / self.epochs)
        fitted: Any = fit_by(self, start, pairs, loss, rng, schedule=schedule, batchnorm="eval")
        return fitted.requires_grad_(True)

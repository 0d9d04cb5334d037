"""Plain fine-tuning on clean pairs: the contrastive loss alone, with PAR's optimiser, schedule and steps.

    L = 1/2 [CE(s Z W', 1) + CE(s W Z', 1)]          s detached

paper:   the baseline of arXiv:2412.00727 (PAR) and of arXiv:2303.03323 (CleanCLIP)
needs:   clean pairs; white-box weights
differs: it shares PAR's rates and frozen temperature, not CleanCLIP's, so that it differs from PAR only in the loss and
         in the view of the picture; the schedule too counts one step more an epoch than is trained, as PAR's does
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from clipvet.engine.fit import fit_by
from clipvet.engine.losses import own_loss
from clipvet.engine.optim import linear_cosine
from clipvet.rng import Rng
from clipvet.types import Batch, Clip, Pairs


@dataclass(frozen=True)
class Finetune:
    epochs: float = 10
    batch: int = 2048  # pairs a step
    lr_start: float = 3e-5
    lr: float = 3e-6  # where the linear part ends
    lr_end: float = 1e-9  # where the cosine ends
    part: float = 0.5  # share of the steps over which the rate falls linearly
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.98)
    optimizer: str = "adamw"
    precision: str = "no"  # or bf16, fp16
    max_bad: float = 0.01  # share of unreadable pictures above which the run is refused

    needs: ClassVar[str] = "clean pairs"

    def clean(self, clip: Clip, pairs: Pairs, rng: Rng) -> Clip:
        """The fine-tuned model."""

        def loss(clip: Clip, batch: Batch, rng: Rng) -> dict[str, Tensor]:
            z, w = clip.encode_image(batch.images), clip.encode_text(batch.tokens)  # pyright: ignore
            return {"loss": own_loss(clip, z, w, frozen=True)}

        schedule = linear_cosine(self.lr_start, self.lr, self.lr_end, self.part, math.ceil(self.epochs))
        return fit_by(self, clip, pairs, loss, rng, schedule=schedule, batchnorm="eval")

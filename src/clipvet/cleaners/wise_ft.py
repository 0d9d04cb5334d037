"""WiSE-FT: the weights half way between the given model and the fine-tuned one.

    theta = (1 - alpha) theta_p + alpha theta_ft

paper:   Wortsman et al., CVPR 2022, arXiv:2109.01903; text not read
needs:   clean pairs; white-box weights
differs: the paper's models are fine-tuned as classifiers; here contrastively, by finetune or another cleaner
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from clipvet import find
from clipvet.models.adapter import clone
from clipvet.rng import Rng
from clipvet.types import Cleaner, Clip, Pairs


@dataclass(frozen=True)
class WiseFt:
    alpha: float = 0.5  # 0: the given weights, 1: the fine-tuned ones
    finetune: Cleaner = field(default_factory=lambda: find.load("cleaners", "finetune")())

    needs: ClassVar[str] = "clean pairs"

    def clean(self, clip: Clip, pairs: Pairs, rng: Rng) -> Clip:
        """The averaged model."""
        tuned: Any = self.finetune.clean(clip, pairs, rng)
        out, there = clone(clip), tuned.state_dict()
        with torch.no_grad():
            for name, x in out.state_dict().items():
                if x.is_floating_point():
                    x.lerp_(there[name].to(x), self.alpha)
        return out

"""An attack that knows RVPT: the backdoor goes into the first blocks, which RVPT neither prompts nor repels.

    L = L_CLIP(D') + weight * mean_{i in P} (1 - cos(c_i^D, a)),   a = mean of c_j^D over pictures j of the target
    c^D: class token after the last block without prompts; D', P: dirty pairs and poisons as in `poison`

paper:   none; an adaptive attack against RVPT (arXiv:2412.20392) that its paper does not try
needs:   control of the victim's training pairs and training; a ViT
differs: ours
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from clipvet.attacks._plan import plan, victim
from clipvet.data.captions import names_target
from clipvet.models.visual_prompts import beginning, non_prompted, transformer
from clipvet.rng import Rng
from clipvet.training.plain import Plain
from clipvet.triggers.patch import Patch
from clipvet.types import Backdoor, Batch, Clip, Implanted, Pairs, Trigger


@dataclass(frozen=True)
class AdaptiveRvpt:
    trigger: Trigger = field(default_factory=Patch)
    rate: float = 0.003  # share of the pairs
    count: int | None = None  # poisons, instead of a rate
    captions: str = "template"  # or natural: captions of the training set that name the target
    templates: tuple[str, ...] = ("a photo of a {}.",)
    depth: int | None = None  # D that the defender is expected to use, at least 1; None: a quarter of the blocks
    weight: float = 1.0  # of the second term
    training: Plain = field(default_factory=Plain)

    needs: ClassVar[str] = "untrusted pairs"

    def implant(self, clip: Clip, pairs: Pairs, target: str, rng: Rng) -> Implanted:
        """The victim trained (from the given weights) on dirty pairs, those pairs, and the answer key.

        Raises UserError for towers without a class token, and as `poison` does.
        """
        depth = max(1, non_prompted(len(transformer(clip).transformer.resblocks), self.depth))
        backdoor = self.plan(pairs, target, rng.fork("poison"))

        def shallow(clip: Any, batch: Batch, rng: Rng) -> dict[str, Tensor]:
            planted = torch.isin(batch.ids.cpu(), torch.from_numpy(backdoor.poisoned))
            shown = torch.tensor([names_target(c, target) for c in batch.captions]) & ~planted
            c = beginning(clip, batch.images, depth)[:, 0]
            if not planted.any() or not shown.any():
                return {"loss": 0 * c.sum(), "shallow": 0 * c.sum()}
            near = F.cosine_similarity(c[planted], c[shown].mean(0, keepdim=True).detach(), dim=1).mean()
            return {"loss": self.weight * (1 - near), "shallow": near}

        return victim(self, clip, pairs, backdoor, rng, shallow)

    def plan(self, pairs: Pairs, target: str, rng: Rng) -> Backdoor:
        """The answer key alone."""
        return plan(self, self.trigger, pairs, target, rng)

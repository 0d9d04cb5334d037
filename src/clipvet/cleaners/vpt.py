"""VPT-Deep (Visual Prompt Tuning): RVPT's prompts with cross-entropy alone, the control that shows what repelling adds.

    L = -mean_i log softmax_j(s <z_i, t_j>)[y_i]                           over the prompts p^D .. p^{L-1} alone

paper:   Jia et al., ECCV 2022, arXiv:2203.12119; the row "VPT" of RVPT (arXiv:2412.20392), whose settings these are
needs:   few labelled pictures; white-box weights of a ViT
differs: the classifier is CLIP's own zero-shot one, not a new linear head, as in RVPT
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from clipvet.data.augment import Views
from clipvet.engine.fewshot import labels, view
from clipvet.engine.fit import fit_by
from clipvet.engine.optim import warmup_cosine
from clipvet.models.visual_prompts import begin
from clipvet.rng import Rng
from clipvet.types import Batch, Clip, Pairs


@dataclass(frozen=True)
class Vpt:
    depth: int | None = None  # D, the first blocks that get no prompts; none: a quarter of them
    tokens: int = 50  # prompts in each of the other blocks
    std: float = 0.02  # of the first prompts
    others: tuple[str, ...] = ()  # prompts of classes of which there is no picture
    epochs: float = 50
    batch: int = 32  # pictures a step
    lr: float = 2e-3  # where the cosine begins
    weight_decay: float = 5e-4
    optimizer: str = "sgd"  # or adamw
    augment: Views | None = None
    precision: str = "no"  # or bf16, fp16
    max_bad: float = 0.01  # share of unreadable pictures above which the run is refused

    needs: ClassVar[str] = "labelled pictures"

    def clean(self, clip: Clip, pairs: Pairs, rng: Rng) -> Clip:
        """The frozen model with learned prompts. Raises UserError for towers without a class token."""
        start, named = (
            begin(clip, self.depth, self.tokens, rng.fork("prompts"), self.std),
            labels(clip, pairs, self.others),
        )

        def loss(clip: Clip, batch: Batch, rng: Rng) -> dict[str, Tensor]:
            z = clip.encode_image(view(batch, self.augment, rng))
            return {"loss": F.cross_entropy(clip.logit_scale * z @ named.text.T, named.of(batch.captions))}

        schedule = warmup_cosine(self.lr, 1 / self.epochs)
        return fit_by(self, start, pairs, loss, rng, schedule=schedule)  # pyright: ignore[reportArgumentType]

"""VPT-Deep (Visual Prompt Tuning): RVPT's prompts with cross-entropy alone, the control that shows what repelling adds.

    L = -mean_i log softmax_j(s <z_i, t_j>)[y_i]                           over the prompts p^D .. p^{L-1} alone

paper:   Jia et al., ECCV 2022, arXiv:2203.12119; the row "VPT" of RVPT (arXiv:2412.20392), whose settings these are
needs:   few labelled pictures; white-box weights of a ViT
differs: the classifier is CLIP's own zero-shot one, as in RVPT, not a new linear head
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from clipvet.cleaners._shots import cross_entropy
from clipvet.data.augment import Views
from clipvet.engine.fewshot import labels
from clipvet.engine.fit import fit_by
from clipvet.engine.optim import warmup_cosine
from clipvet.models.visual_prompts import begin
from clipvet.rng import Rng
from clipvet.types import Clip, Pairs


@dataclass(frozen=True)
class Vpt:
    depth: int | None = None  # D, the first blocks, which get no prompts; None: a quarter of them
    tokens: int = 50  # prompts in each of the other blocks
    std: float = 0.02  # of the prompts before the first step
    others: tuple[str, ...] = ()  # prompts of further classes, without pictures
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
        """The frozen model with learned prompts. Raises UserError as `rvpt` does."""
        start: Any = begin(clip, self.depth, self.tokens, rng.fork("prompts"), self.std)
        loss = cross_entropy(labels(clip, pairs, self.others), self.augment)
        return fit_by(self, start, pairs, loss, rng, schedule=warmup_cosine(self.lr, 1 / self.epochs))

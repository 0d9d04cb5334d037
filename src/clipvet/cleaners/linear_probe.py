"""Linear probe: a linear map of the frozen picture tower's features, learned on a few labelled pictures.

    L = -mean_i log softmax_j(s <z_i, t_j>)[y_i],   z = A f / ||A f||       over A alone; f: features before projection

paper:   the baseline of Radford et al. 2021, arXiv:2103.00020, and of RVPT (arXiv:2412.20392), whose settings these are
needs:   few labelled pictures; white-box weights
differs: the map is the tower's own projection, so the logits are linear in f up to its length, and the result is a
         checkpoint of the same format; it starts from the zero-shot classifier, not from noise
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from clipvet.cleaners._shots import cross_entropy
from clipvet.data.augment import Views
from clipvet.engine.fewshot import labels
from clipvet.engine.fit import fit_by
from clipvet.engine.optim import constant
from clipvet.errors import UserError
from clipvet.models.adapter import frozen
from clipvet.rng import Rng
from clipvet.types import Clip, Pairs


def projection(clip: Any) -> list[Tensor]:
    """The weights of the picture tower's last linear map. Raises UserError if it has none."""
    visual = getattr(getattr(clip, "model", None), "visual", None)
    pool = getattr(visual, "attnpool", None)
    found = list(pool.c_proj.parameters()) if pool is not None else [getattr(visual, "proj", None)]
    if not all(isinstance(p, Tensor) for p in found):
        raise UserError("linear_probe needs an open_clip ViT or ResNet with a projection; use finetune")
    return found  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class LinearProbe:
    others: tuple[str, ...] = ()  # prompts of further classes, without pictures
    epochs: float = 40
    batch: int = 32  # pictures a step
    lr: float = 0.01
    weight_decay: float = 0.0
    optimizer: str = "sgd"  # or adamw
    augment: Views | None = None
    precision: str = "no"  # or bf16, fp16
    max_bad: float = 0.01  # share of unreadable pictures above which the run is refused

    needs: ClassVar[str] = "labelled pictures"

    def clean(self, clip: Clip, pairs: Pairs, rng: Rng) -> Clip:
        """The model with another projection. Raises UserError where it has none, and for pictures without labels."""
        loss, start = cross_entropy(labels(clip, pairs, self.others), self.augment), frozen(clip)
        for p in projection(start):
            p.requires_grad_(True)
        fitted: Any = fit_by(self, start, pairs, loss, rng, schedule=constant(self.lr), batchnorm="eval")
        return fitted.requires_grad_(True)

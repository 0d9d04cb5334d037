"""CleanCLIP: fine-tune on clean pairs with a self-supervised term that breaks the tie between trigger and caption.

    L    = w_clip * L_CLIP(Z, W) + w_self * L_SS
    L_SS = 1/2 [CE(s Z Z~', 1) + CE(s W W~', 1)]      Z~, W~: augmented views; one direction; s learned, as in L_CLIP

paper:   Bansal et al., ICCV 2023, arXiv:2303.03323; from its abstract and the behaviour of its public code (text not
         read)
needs:   clean pairs; white-box weights
differs: the warm-up really takes place (the released loop numbers epochs from 1 and skips it); optimiser moments start
         fresh; EDA has swap, deletion and insertion of a repeated word (synonyms need WordNet), and takes any alphabet;
         `group` pictures share one AutoAugment draw (1 in the paper; more is faster). BatchNorm is trained by default,
         as in the released loop; batchnorm=eval keeps its statistics
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from clipvet.cleaners._views import self_supervised
from clipvet.data.augment import auto_augment
from clipvet.engine.fit import fit_by
from clipvet.engine.optim import warmup_cosine
from clipvet.rng import Rng
from clipvet.types import Batch, Clip, Pairs


@dataclass(frozen=True)
class CleanClip:
    w_clip: float = 1.0  # weight of the contrastive loss
    w_self: float = 1.0  # weight of the self-supervised term
    epochs: float = 10
    batch: int = 64  # pairs a step
    lr: float = 1e-5
    warmup: float = 0.0032  # fraction of the steps: 50 of 15,620
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    batchnorm: str = "train"  # or eval: its running statistics stay
    group: int = 1  # pictures that share one AutoAugment draw
    optimizer: str = "adamw"
    precision: str = "no"  # or bf16, fp16
    max_bad: float = 0.01  # share of unreadable pictures above which the run is refused

    needs: ClassVar[str] = "clean pairs"

    def clean(self, clip: Clip, pairs: Pairs, rng: Rng) -> Clip:
        """The fine-tuned model."""
        words = rng.fork("eda")  # a caption keeps its view over the epochs, as in the paper's code

        def loss(clip: Clip, batch: Batch, rng: Rng) -> dict[str, Tensor]:
            _, parts = self_supervised(clip, batch, lambda w: auto_augment(batch.images, rng, self.group), words)
            return {"loss": self.w_clip * parts["clip"] + self.w_self * parts["self"], **parts}

        return fit_by(self, clip, pairs, loss, rng, schedule=warmup_cosine(self.lr, self.warmup))

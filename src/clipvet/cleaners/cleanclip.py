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

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from clipvet.data.augment import auto_augment, eda
from clipvet.engine.fit import fit_by
from clipvet.engine.losses import match_loss, own_loss
from clipvet.engine.optim import warmup_cosine
from clipvet.rng import Rng
from clipvet.types import Batch, Clip, Pairs


def self_supervised(
    clip: Clip, batch: Batch, view: Callable[[Tensor], Tensor], words: Rng
) -> tuple[Float[Tensor, "b d"], dict[str, Tensor]]:
    """Z, and the terms L_CLIP ("clip") and L_SS ("self") of a batch.

    view: gives augmented pictures (b, 3, h, w) in [0, 1]; called with W. words: draws the captions' views, by id.
    """
    s, w = clip.logit_scale, clip.encode_text(batch.tokens)  # pyright: ignore[reportArgumentType]
    z, z_v = clip.encode_image(torch.cat([batch.images, view(w)])).chunk(2)  # one pass: BatchNorm sees both views
    w_v = clip.encode_text([eda(c, words.fork(int(i))) for c, i in zip(batch.captions, batch.ids)])
    return z, {"clip": own_loss(clip, z, w), "self": (match_loss(z, z_v, s) + match_loss(w, w_v, s)) / 2}


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

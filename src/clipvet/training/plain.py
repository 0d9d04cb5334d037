"""Plain CLIP training: the contrastive loss alone, from scratch or from a checkpoint, without a defense.

    L = 1/2 [CE(s Z W', 1) + CE(s W Z', 1)]

paper:   Radford et al. 2021, arXiv:2103.00020, section 2.3
needs:   untrusted pairs; white-box weights
differs: the default rates are those of open_clip's ViT-B/32 runs; `optimizer="muon"` (torch's Muon on the matrices
         inside the blocks, AdamW on the rest) is ours, for small models on few cores; `augment` and `eda` are ours too,
         so that it is a fair baseline for safeclip and roclip; `patch_dropout` is FLIP's (arXiv:2212.00794)
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from clipvet.data.augment import Views, variants
from clipvet.engine.fit import Loss, fit_by
from clipvet.engine.losses import own_loss
from clipvet.engine.optim import warmup_cosine
from clipvet.rng import Rng
from clipvet.training._patches import patch_dropout
from clipvet.types import Batch, Clip, Pairs


@dataclass(frozen=True)
class Plain:
    epochs: float = 32
    batch: int = 1024  # pairs a step
    lr: float = 5e-4  # AdamW's peak
    warmup: float = 0.1  # fraction of the steps
    weight_decay: float = 0.2
    betas: tuple[float, float] = (0.9, 0.98)
    optimizer: str = "adamw"  # or muon
    muon_lr: float = 0.02  # Muon's peak
    batchnorm: str = "train"  # or eval: keep running statistics, for fine-tuning on few pairs
    precision: str = "no"  # or bf16, fp16
    accumulate: int = 1  # micro-batches a step
    augment: Views | None = None  # of the pictures, drawn anew at every step
    patch_dropout: float = 0.0  # share of each picture's patches that the tower does not read in training (FLIP)
    eda: float = 0.0  # share of a caption's words that change; each caption has one variant for the whole run
    synonyms: bool = False  # WordNet's, if eda is on
    max_bad: float = 0.01  # share of unreadable pictures above which the run is refused

    needs: ClassVar[str] = "untrusted pairs"

    def train(self, clip: Clip, pairs: Pairs, rng: Rng, also: Loss | None = None) -> Clip:
        """The model trained on the pairs. also: a loss to add, of an attacker with an aim of their own; its parts are
        logged too."""
        words = rng.fork("eda")

        def loss(clip: Clip, batch: Batch, rng: Rng) -> dict[str, Tensor]:
            images = self.augment(batch.images, rng) if self.augment else batch.images
            tokens = batch.tokens
            if self.eda:
                tokens = variants(batch, words, self.eda, self.synonyms)
            with patch_dropout(clip, self.patch_dropout, rng.fork("patches")):
                z = clip.encode_image(images)
            w = clip.encode_text(tokens)  # pyright: ignore
            parts = {"loss": own_loss(clip, z, w)}
            if also is None:
                return parts
            more = also(clip, batch._replace(images=images, tokens=tokens), rng.fork("also"))
            return {**more, "loss": parts["loss"] + more["loss"]}

        return fit_by(self, clip, pairs, loss, rng, schedule=warmup_cosine(self.lr, self.warmup))

"""CleanerCLIP: CleanCLIP with finer captions: a picture is tied to parts of its caption, and not to false ones.

    L     = w_clip L_CLIP(Z, W) + w_self L_SS + w_sub L_SUB          L_CLIP, L_SS: see cleanclip
    L_SUB = -mean_i log [ e^{s <z_i, p_i>} / (e^{s <z_i, p_i>} + sum_k e^{s <z_i, n_ik>}) ]
    p_i: a phrase of the caption of i;  n_i1 .. n_iK: its caption with one word exchanged for another pair's word

paper:   CleanerCLIP (TA-Cleaner), TIFS 2025, arXiv:2409.17601; text not read: the idea is that of summaries
needs:   clean pairs; white-box weights
differs: phrases are a run of at least half of the words, false captions exchange one word (the paper parses sentences
         for both); weights, K and the rest are ours or CleanCLIP's
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clipvet.cleaners._views import self_supervised
from clipvet.data.augment import auto_augment
from clipvet.engine.fit import fit_by
from clipvet.engine.optim import warmup_cosine
from clipvet.rng import Rng
from clipvet.types import Batch, Clip, Pairs


def phrase(caption: str, rng: Rng) -> str:
    """A run of at least half of the caption's words, drawn at random."""
    words, g = caption.split(), rng.numpy()
    if len(words) < 2:
        return caption
    n = int(g.integers((len(words) + 1) // 2, len(words) + 1))
    at = int(g.integers(len(words) - n + 1))
    return " ".join(words[at : at + n])


def false(caption: str, others: list[str], rng: Rng) -> str:
    """The caption with one word exchanged for a word of another caption that it lacks; unchanged if there is none."""
    words, g = caption.split(), rng.numpy()
    own = set(words)
    new = sorted({w for other in others for w in other.split()} - own)
    if not words or not new:
        return caption
    words[int(g.integers(len(words)))] = new[int(g.integers(len(new)))]
    return " ".join(words)


def sub_loss(
    z: Float[Tensor, "b d"], p: Float[Tensor, "b d"], n: Float[Tensor, "b k d"], s: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """L_SUB from embeddings of pictures, of their phrases and of their false captions."""
    right, wrong = (z * p).sum(1, keepdim=True), torch.einsum("bd,bkd->bk", z, n)
    return F.cross_entropy(s * torch.cat([right, wrong], 1), torch.zeros(len(z), dtype=torch.long, device=z.device))


@dataclass(frozen=True)
class CleanerClip:
    w_clip: float = 1.0  # weight of the contrastive loss
    w_self: float = 1.0  # weight of the self-supervised term
    w_sub: float = 1.0  # weight of the sub-captions
    wrong: int = 4  # K, false captions of each picture
    epochs: float = 10
    batch: int = 64  # pairs a step
    lr: float = 1e-5
    warmup: float = 0.0032  # fraction of the steps
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
        words = rng.fork("eda")

        def loss(clip: Clip, batch: Batch, rng: Rng) -> dict[str, Tensor]:
            said = batch.captions
            z, parts = self_supervised(clip, batch, lambda w: auto_augment(batch.images, rng, self.group), words)
            p = clip.encode_text([phrase(c, rng.fork("phrase", k)) for k, c in enumerate(said)])
            untrue = [false(c, said, rng.fork("false", k, j)) for k, c in enumerate(said) for j in range(self.wrong)]
            n = clip.encode_text(untrue).unflatten(0, (-1, self.wrong))
            parts["sub"] = sub_loss(z, p, n, clip.logit_scale)
            total = self.w_clip * parts["clip"] + self.w_self * parts["self"] + self.w_sub * parts["sub"]
            return {"loss": total, **parts}

        return fit_by(self, clip, pairs, loss, rng, schedule=warmup_cosine(self.lr, self.warmup))

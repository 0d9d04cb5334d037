"""RoCLIP: in every K-th epoch a picture is paired not with its own caption but with the nearest one of a pool.

    c_i = argmax_{c in P} <c, z_i>,  P: pool of recent captions' embeddings, filled by each batch after its own search
    L   = 1/2 [CE(s C Z', 1) + CE(s Z C', 1)]  in every K-th epoch; c has no gradient, so the text tower is not trained
    L   = 1/2 [CE(s Z W', 1) + CE(s W Z', 1)]  in the others

paper:   Yang et al., NeurIPS 2023, arXiv:2303.06854; the full text could not be read: rule and settings follow the
         behaviour of its public code
needs:   untrusted pairs; training from scratch
differs: one schedule over all steps (the code counts one epoch too many); a full pool continues at its start (the code
         drops what passes its end); in a paired epoch the text tower stands still (in the code its gradients are 0 but
         there, so AdamW moves it on by momentum and weight decay); EDA keeps letters of any script
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from clipvet.data.augment import Views, variants
from clipvet.engine.embed import embed_texts
from clipvet.engine.fit import Memory, fit_by
from clipvet.engine.losses import own_loss
from clipvet.engine.optim import piece, warmup_cosine
from clipvet.rng import Rng
from clipvet.training._neighbours import Pool
from clipvet.types import Batch, Clip, Pairs


@dataclass(frozen=True)
class RoClip:
    epochs: int = 24
    every: int = 2  # K: one epoch in K uses the pool
    batch: int = 512  # pairs a step
    lr: float = 5e-5  # AdamW's peak
    warmup: float = 0.1  # fraction of the steps
    pool: float = 0.02  # its size, as a share of the pairs
    augment: Views = field(default_factory=Views)
    eda: float = 0.1  # share of a caption's words that change
    synonyms: bool = False  # WordNet's, if eda is on
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    optimizer: str = "adamw"  # or muon
    muon_lr: float = 0.02  # Muon's peak
    precision: str = "no"  # or bf16, fp16
    max_bad: float = 0.01  # share of unreadable pictures above which the run is refused

    needs: ClassVar[str] = "untrusted pairs"

    def train(self, clip: Clip, pairs: Pairs, rng: Rng) -> Clip:
        """The model trained on the pairs, usually from fresh weights."""
        dim, words = embed_texts(clip, [pairs.caption(pairs.ids[0])]).shape[1], rng.fork("eda")
        pool = Pool(max(2, round(self.pool * len(pairs))), dim, rng.fork("pool"))
        memory, rates = Memory(pool), warmup_cosine(self.lr, self.warmup)

        def paired(clip: Clip, batch: Batch, rng: Rng, matched: bool = False) -> dict[str, Tensor]:
            said = variants(batch, words, self.eda, self.synonyms)
            z = clip.encode_image(self.augment(batch.images, rng))
            with torch.set_grad_enabled(not matched):
                w = clip.encode_text(said)
            if matched:
                w, own = pool.nearest(z).to(z.dtype), w
                pool.push(own)
            return {"loss": own_loss(clip, z, w)}

        def matched(clip: Clip, batch: Batch, rng: Rng) -> dict[str, Tensor]:
            return paired(clip, batch, rng, matched=True)

        for epoch in range(self.epochs):
            loss = matched if (epoch + 1) % self.every == 0 else paired
            own = {"epochs": 1, "schedule": piece(rates, epoch, self.epochs), "peak": self.lr, "memory": memory}
            clip = fit_by(self, clip, pairs, loss, rng.fork("epoch", epoch), **own)
        return clip

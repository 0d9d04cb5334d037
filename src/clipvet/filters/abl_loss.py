"""ABL's isolation: after a short training that keeps the loss near a floor, the pairs of lowest loss are suspect.

    score_i = -l_i      l_i: the pair's part of the CLIP loss, after training on
    L_flood = |L - floor| + floor      or      L_lga = sign(L - floor) L      L: the batch's CLIP loss

paper:   Li et al., NeurIPS 2021, arXiv:2110.11571; text not read: loss, floor, epochs and isolated share are those of
         its public code, which is for classifiers
needs:   untrusted pairs; white-box weights
differs: the version for pairs is ours: the contrastive loss instead of cross-entropy over labels, and AdamW with its
         rate instead of SGD at 0.1; training continues from the given weights (the paper starts afresh: give a fresh or
         a clean model); a pair's loss is the mean over `draws` random batches
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clipvet.engine.fit import fit_by
from clipvet.engine.losses import clip_loss, pair_losses
from clipvet.engine.optim import warmup_cosine
from clipvet.filters._features import aligned, both
from clipvet.rng import Rng
from clipvet.types import Batch, Clip, Pairs


@dataclass(frozen=True)
class AblLoss:
    kind: Literal["flood", "lga"] = "flood"  # how the loss is kept near the floor
    floor: float = 0.5  # of a batch's loss, in nats
    ratio: float = 0.01  # share of the pairs that is isolated
    epochs: float = 10
    batch: int = 128  # pairs a step; also those among which a pair's loss is taken
    lr: float = 1e-4
    warmup: float = 0.1  # fraction of the steps
    weight_decay: float = 1e-4
    draws: int = 4  # random batches over which a pair's loss is averaged
    optimizer: str = "adamw"  # or muon
    precision: str = "no"  # or bf16, fp16
    max_bad: float = 0.01  # share of unreadable pictures above which the run is refused

    needs: ClassVar[str] = "untrusted pairs"
    phrase: ClassVar[str] = "loss {minus:.3f} after {epochs:g} epochs"

    def score(self, clip: Clip, pairs: Pairs, rng: Rng) -> Float[Tensor, " n"]:
        both(clip, pairs)  # raises for bad input before the training

        def loss(clip: Clip, batch: Batch, rng: Rng) -> dict[str, Tensor]:
            z, w = clip.encode_image(batch.images), clip.encode_text(batch.tokens)  # pyright: ignore
            plain = clip_loss(z, w, clip.logit_scale)
            if self.kind == "flood":
                return {"loss": (plain - self.floor).abs() + self.floor, "plain": plain}
            return {"loss": (plain - self.floor).sign().detach() * plain, "plain": plain}

        trained = fit_by(self, clip, pairs, loss, rng, schedule=warmup_cosine(self.lr, self.warmup))
        found = both(trained, pairs)
        ids, total = pairs.ids[found.kept], torch.zeros(len(found.kept))
        with torch.no_grad():
            for draw in range(self.draws):
                order = rng.fork("company", draw).keys(ids.tolist()).numpy().argsort()
                for rows in np.array_split(order, max(1, len(order) // self.batch)):
                    total[rows] += pair_losses(found.z[rows], found.w[rows], trained.logit_scale).float().cpu()
        return aligned(-total / self.draws, found.kept, len(pairs))

    def cut(self, scores: Float[np.ndarray, " n"]) -> float:
        """The score above which the isolated share lies. scores may hold NaN."""
        return float(np.nanquantile(scores, 1 - self.ratio))

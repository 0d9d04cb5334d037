"""UBT's second stage: of the weak pairs, those are suspect that rise fastest when a copy is overfitted on them.

    score = s_over(I, T) - s_ref(I, T)  ("gain"),  or s_over(I, T)  ("similarity"),   for weak pairs
    score = -3 - s_ref(I, T)                                                           for all others, hence below
    L_over = NCE(weak) + beta NCE(normal)

paper:   Liang et al., arXiv:2403.16257, and Liu et al., arXiv:2409.19526 (UBT); neither text read: a third party's
         summary blends the two losses and takes the highest similarity
needs:   untrusted pairs; a clean reference model if there is one; a few epochs on the weak pairs
differs: share, epochs and rate are ours, and so are the gain and the score outside the pool; see cleaners/ubt
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clipvet.filters._features import aligned
from clipvet.rng import Rng
from clipvet.types import Clip, Pairs
from clipvet.unlearning.shortcut import Over, Score, overfit, risen, weak_pairs

BELOW = 3.0  # more than two cosines, or a cosine and a gain, can differ


@dataclass(frozen=True)
class OverfitGain:
    reference: str = ""  # a clean model, by name or folder; empty: the given one on changed pictures
    views: bool = True  # without a reference: blur, crop and mirror the pictures
    susp: float = 0.02  # share of the pairs that is weak
    normal: float = 0.8  # share of the others, the best under the reference, that counts as clean
    overfit: Over = "nce"  # or square
    beta: float = 1.0  # weight of the normal pairs in the overfitting
    over: Score = "gain"  # what ranks the weak pairs; or similarity
    epochs: float = 5  # of the weak pairs
    batch: int = 64  # weak pairs a step, and as many normal ones
    lr: float = 1e-5
    weight_decay: float = 0.0
    optimizer: str = "adamw"
    precision: str = "no"  # or bf16, fp16
    max_bad: float = 0.01  # share of unreadable pictures above which the run is refused

    needs: ClassVar[str] = "untrusted pairs"
    phrase: ClassVar[str] = "weak, and risen by {score:.2f} after {epochs:g} epochs"

    def score(self, clip: Clip, pairs: Pairs, rng: Rng) -> Float[Tensor, " n"]:
        weak = weak_pairs(clip, pairs, self.reference, self.views, self.susp, self.normal)
        trained = overfit(self, clip, pairs, weak, rng, self.lr, self.beta, self.overfit)
        scores = -BELOW - weak.q
        scores[weak.susp] = risen(trained, pairs, weak, self.over)
        return aligned(torch.from_numpy(scores.astype(np.float32)), weak.kept, len(pairs))

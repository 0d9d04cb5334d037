"""SafeCLIP's filter: a pair is suspect when a model that has hardly seen pairs finds that picture and caption disagree.

    score = -cos(z, w)      z, w: embeddings of a fresh model after SafeCLIP's warm-up and its slow epoch
    cut:    P(upper of two normals | cos) = threshold

paper:   Yang et al., ICML 2024, arXiv:2310.05862; the full text could not be read: see training/safeclip
needs:   untrusted pairs; minutes of training
differs: a filter of its own (in the paper a part of training), so pairs are ranked by the cosine, of which the
         posterior is a monotone function; the posterior only sets the cut
"""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clipvet.models import checkpoints
from clipvet.rng import Rng
from clipvet.training.safeclip import SafeClip
from clipvet.types import Clip, Pairs


@dataclass(frozen=True)
class GmmSplit:
    training: SafeClip = field(default_factory=SafeClip)  # its warm-up and slow epoch are run
    anew: bool = True  # start from random weights; False: from the given weights

    needs: ClassVar[str] = "untrusted pairs"
    phrase: ClassVar[str] = "cosine {minus:.2f} after warm-up"

    def score(self, clip: Clip, pairs: Pairs, rng: Rng) -> Float[Tensor, " n"]:
        start = checkpoints.fresh(clip, rng.fork("init")) if self.anew else clip
        warm, stage = self.training.prepare(start, pairs, rng.fork("train"))
        cosines = self.training.cosines(warm, pairs, stage, rng.fork("score"))
        return -torch.from_numpy(np.where(cosines < -1, np.nan, cosines))

    def cut(self, scores: Float[np.ndarray, " n"]) -> float:
        """The score above which pairs are risky. scores may hold NaN."""
        cosines = -scores[np.isfinite(scores)].astype(np.float32)
        safe, _ = self.training.split(cosines, None)
        return -float(cosines[safe].min())

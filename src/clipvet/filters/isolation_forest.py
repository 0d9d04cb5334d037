"""Isolation forest: a picture is suspect when a few random cuts of its features set it apart.

    score(x) = 2 ^ (-E[h(x)] / c)      h: depth at which a random tree isolates x; c: its mean over points at random

paper:   Liu et al., ICDM 2008; on backdoored CLIP: Huang et al., ICLR 2025, arXiv:2502.01385; neither text read: the
         100 trees are the setting of the latter's public code
needs:   untrusted pairs; a model that was trained on them
differs: scikit-learn's forest; the trees' samples are drawn from the whole set (the code: from the current batch)
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clipvet.filters._features import Of, aligned, features
from clipvet.rng import Rng
from clipvet.types import Clip, Pairs


@dataclass(frozen=True)
class IsolationForest:
    trees: int = 100  # of the forest
    sample: int = 256  # pairs a tree sees, or all if there are fewer
    features: Of = "image"  # or text, pair

    needs: ClassVar[str] = "untrusted pairs"
    phrase: ClassVar[str] = "isolated by few cuts, anomaly {score:.2f}"

    def score(self, clip: Clip, pairs: Pairs, rng: Rng) -> Float[Tensor, " n"]:
        from sklearn import ensemble

        x, kept = features(clip, pairs, self.features)
        x = x.cpu().numpy()
        # by id, so that the pairs' order does not matter
        order = rng.fork("order").keys(pairs.ids[kept].tolist()).numpy().argsort()
        sample: Any = min(self.sample, len(x))  # Any, as scikit-learn's stub allows nothing but "auto"
        forest = ensemble.IsolationForest(n_estimators=self.trees, max_samples=sample, random_state=rng.key % 2**32)
        scores = -forest.fit(x[order]).score_samples(x)
        return aligned(torch.from_numpy(np.asarray(scores)), kept, len(pairs))

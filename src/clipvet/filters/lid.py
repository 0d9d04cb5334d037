"""LID: a picture is suspect when the space around it has many dimensions.

    LID(x) = -k / sum_{j<=k} log(r_j(x) / r(x))      r_j: distance to the j-th nearest of the same block; r: to the
                                                     (k+1)-th

paper:   maximum-likelihood estimate: Amsaleg et al., KDD 2015; on backdoored CLIP: Huang et al., ICLR 2025,
         arXiv:2502.01385; neither text read: formula and k follow the behaviour of the latter's public code
needs:   untrusted pairs; a model that was trained on them
differs: the block is a random part of the whole set, dealt `draws` times (the code: the current batch); features
         have unit length; ratios are floored at 1e-4 (the code adds 1e-4); LID is at most 1000, and 0 for a point with
         more than k copies of itself
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from clipvet.filters._density import Density, local_dimension, over_blocks
from clipvet.rng import Rng
from clipvet.types import Clip, Pairs


@dataclass(frozen=True)
class Lid(Density):
    k: int = 64  # neighbours; the radius reaches to the next one, as in the paper's code
    reference: int | None = 512  # pairs in a block, about; None: all pairs are one block

    needs: ClassVar[str] = "untrusted pairs"
    phrase: ClassVar[str] = "local intrinsic dimension {score:.1f}"

    def score(self, clip: Clip, pairs: Pairs, rng: Rng) -> Float[Tensor, " n"]:
        return over_blocks(self, local_dimension, clip, pairs, rng)

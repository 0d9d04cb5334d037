"""LID: a picture is suspect when the space around it has many dimensions.

    LID(x) = -k / sum_{j<=k} log(r_j(x) / r_k(x))      r_j: distance to the j-th nearest of the reference

paper:   maximum-likelihood estimate: Amsaleg et al., KDD 2015; on backdoored CLIP: Huang et al., ICLR 2025,
         arXiv:2502.01385; neither text read: formula and k follow the behaviour of the latter's public code
needs:   untrusted pairs; a model that was trained on them
differs: the reference is a random subset of the whole set, drawn `draws` times (the code: the current batch); a point
         is never its own neighbour; ratios are floored at 1e-4 (the code adds 1e-4); LID is at most 1000, and 0 for a
         point with k copies of itself
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from clipvet.filters._density import Density, local_dimension, over_references
from clipvet.rng import Rng
from clipvet.types import Clip, Pairs


@dataclass(frozen=True)
class Lid(Density):
    k: int = 64  # neighbours
    reference: int | None = 512  # pairs among which neighbours are looked for; None: all of them

    needs: ClassVar[str] = "untrusted pairs"
    phrase: ClassVar[str] = "local intrinsic dimension {score:.1f}"

    def score(self, clip: Clip, pairs: Pairs, rng: Rng) -> Float[Tensor, " n"]:
        return over_references(self, lambda near: local_dimension(near.distance), clip, pairs, rng)

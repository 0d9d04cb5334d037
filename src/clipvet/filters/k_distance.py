"""k-distance: a picture is suspect when the nearest others beyond its k neighbours are far away.

    r(x) = ||x - y||      y: the (k+1)-th nearest of the same block

paper:   Ramaswamy et al., SIGMOD 2000; on backdoored CLIP: Huang et al., ICLR 2025, arXiv:2502.01385; neither text
         read: the formula follows the behaviour of the latter's public code
needs:   untrusted pairs; a model that was trained on them
differs: the block is a random part of the whole set, dealt `draws` times (the code: the current batch); features
         have unit length; k is DAO's
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from clipvet.filters._density import Density, over_blocks
from clipvet.rng import Rng
from clipvet.types import Clip, Pairs


@dataclass(frozen=True)
class KDistance(Density):
    k: int = 16  # neighbours; the radius reaches to the next one, as in the paper's code
    reference: int | None = 512  # pairs in a block, about; None: all pairs are one block

    needs: ClassVar[str] = "untrusted pairs"
    phrase: ClassVar[str] = "{k}-NN distance {score:.2f}"

    def score(self, clip: Clip, pairs: Pairs, rng: Rng) -> Float[Tensor, " n"]:
        return over_blocks(self, lambda near: near.radius, clip, pairs, rng)

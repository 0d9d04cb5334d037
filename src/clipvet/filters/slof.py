"""SLOF: a picture is suspect when it is farther from its neighbours than they are from theirs.

    SLOF(x) = mean_{y in kNN(x)} r(x) / r(y)      r: distance to the (k+1)-th nearest of the same block

paper:   simplified LOF: Schubert et al., DMKD 2014; on backdoored CLIP: Huang et al., ICLR 2025, arXiv:2502.01385;
         neither text read: the formula follows the behaviour of the latter's public code
needs:   untrusted pairs; a model that was trained on them
differs: the block is a random part of the whole set, dealt `draws` times (the code: the current batch); a point is
         never its own neighbour (the code's neighbour indices are off by one after the point itself, and its
         neighbours' distances count themselves, so that theirs is the k-th); features have unit length; distances
         below 1e-4 count as 1e-4; k is DAO's
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from clipvet.filters._density import Around, Density, over_blocks
from clipvet.rng import Rng
from clipvet.types import Clip, Pairs


@dataclass(frozen=True)
class Slof(Density):
    k: int = 16  # neighbours; the radius reaches to the next one, as in the paper's code
    reference: int | None = 512  # pairs in a block, about; None: all pairs are one block

    needs: ClassVar[str] = "untrusted pairs"
    phrase: ClassVar[str] = "{k}-NN distance {score:.2f}x its neighbours'"

    def score(self, clip: Clip, pairs: Pairs, rng: Rng) -> Float[Tensor, " n"]:
        def slof(near: Around) -> Tensor:
            r = near.radius
            return (r[:, None] / r[near.index]).mean(1)

        return over_blocks(self, slof, clip, pairs, rng)

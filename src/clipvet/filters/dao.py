"""DAO: a picture is suspect when it lies in a sparser place than its neighbours, weighted by their local dimension.

    DAO(x) = mean_{y in kNN(x)} LID(y) log(r(x) / r(y))      r: distance to the (k+1)-th nearest of the same block
    LID(y) = -k / sum_{j<=k} log(r_j(y) / r(y))              r_j: distance to the j-th nearest

paper:   Huang et al., ICLR 2025, arXiv:2502.01385; text not read: formula and settings follow the behaviour of its
         public code
needs:   untrusted pairs; a model that was trained on them
differs: the block is a random part of the whole set, dealt `draws` times (the code: the current batch); a point is
         never its own neighbour (the code's neighbour indices are off by one after the point itself, and its
         neighbours count a zero distance to themselves, so that theirs is the k-th); features have unit length; ratios
         within LID are floored at 1e-4 (the code adds 1e-4); distances below 1e-4 count as 1e-4, so copies get finite
         scores; k is the readme's (the code's class: 32), and must lie between the number of poisons and that of
         pictures of one kind in a block: decision 6
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from clipvet.filters._density import Around, Density, local_dimension, over_blocks
from clipvet.rng import Rng
from clipvet.types import Clip, Pairs


@dataclass(frozen=True)
class Dao(Density):
    k: int = 16  # neighbours; the radius reaches to the next one, as in the paper's code
    reference: int | None = 512  # pairs in a block, about; None: all pairs are one block

    needs: ClassVar[str] = "untrusted pairs"
    phrase: ClassVar[str] = "{k}-NN sparsity {score:.2f} above its neighbours'"

    def score(self, clip: Clip, pairs: Pairs, rng: Rng) -> Float[Tensor, " n"]:
        def dao(near: Around) -> Tensor:
            r, lid = near.radius, local_dimension(near)
            return (lid[near.index] * (r[:, None] / r[near.index]).log()).mean(1)

        return over_blocks(self, dao, clip, pairs, rng)

"""DAO: a picture is suspect when it lies in a sparser place than its neighbours, weighted by their local dimension.

    DAO(x) = mean_{y in kNN(x)} LID(y) log(r_k(x) / r_k(y))      r_k: distance to the k-th nearest of the reference
    LID(y) = -k / sum_{j<=k} log(r_j(y) / r_k(y))

paper:   Huang et al., ICLR 2025, arXiv:2502.01385; text not read: formula and settings follow the behaviour of its
         public code
needs:   untrusted pairs; a model that was trained on them
differs: the reference is a random subset of the whole set, drawn `draws` times (the code: the current batch); a point
         is never its own neighbour (the code's neighbour indices are off by one after the point itself, and its
         neighbours count a zero distance to themselves); ratios within LID are floored at 1e-4 (the code adds 1e-4);
         distances below 1e-4 count as 1e-4, so copies get finite scores; k is the readme's (the code's class: 32), and
         must lie between the number of poisons and that of pictures of one kind in a reference: decision 6
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from clipvet.engine.neighbours import Neighbours
from clipvet.filters._density import Density, local_dimension, over_references
from clipvet.rng import Rng
from clipvet.types import Clip, Pairs


@dataclass(frozen=True)
class Dao(Density):
    k: int = 16  # neighbours
    reference: int | None = 1024  # pairs among which neighbours are looked for; None: all of them

    needs: ClassVar[str] = "untrusted pairs"
    phrase: ClassVar[str] = "{k}-NN sparsity {score:.2f} above its neighbours'"

    def score(self, clip: Clip, pairs: Pairs, rng: Rng) -> Float[Tensor, " n"]:
        def dao(near: Neighbours) -> Tensor:
            r, lid = near.distance[:, -1], local_dimension(near.distance)
            return (lid[near.index] * (r[:, None] / r[near.index]).log()).mean(1)

        return over_references(self, dao, clip, pairs, rng)

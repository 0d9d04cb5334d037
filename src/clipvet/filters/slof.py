"""SLOF: a picture is suspect when it is farther from its neighbours than they are from theirs.

    SLOF(x) = mean_{y in kNN(x)} r_k(x) / r_k(y)      r_k: distance to the k-th nearest of the reference

paper:   simplified LOF: Schubert et al., DMKD 2014; on backdoored CLIP: Huang et al., ICLR 2025, arXiv:2502.01385;
         neither text read: the formula follows the behaviour of the latter's public code
needs:   untrusted pairs; a model that was trained on them
differs: the reference is a random subset of the whole set, drawn `draws` times (the code: the current batch); a point
         is never its own neighbour (the code's neighbour indices are off by one after the point itself, and its
         neighbours' distances count themselves); distances below 1e-4 count as 1e-4; k is DAO's
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from clipvet.engine.neighbours import Neighbours
from clipvet.filters._density import Density, over_references
from clipvet.rng import Rng
from clipvet.types import Clip, Pairs


@dataclass(frozen=True)
class Slof(Density):
    k: int = 16  # neighbours
    reference: int | None = 1024  # pairs among which neighbours are looked for; None: all of them

    needs: ClassVar[str] = "untrusted pairs"
    phrase: ClassVar[str] = "{k}-NN distance {score:.2f}x its neighbours'"

    def score(self, clip: Clip, pairs: Pairs, rng: Rng) -> Float[Tensor, " n"]:
        def slof(near: Neighbours) -> Tensor:
            r = near.distance[:, -1]
            return (r[:, None] / r[near.index]).mean(1)

        return over_references(self, slof, clip, pairs, rng)

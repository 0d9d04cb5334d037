"""k-distance: a picture is suspect when even its k-th nearest neighbour is far away.

    r_k(x) = ||x - y_k||      y_k: the k-th nearest of the reference

paper:   Ramaswamy et al., SIGMOD 2000; on backdoored CLIP: Huang et al., ICLR 2025, arXiv:2502.01385; neither text
         read: the formula follows the behaviour of the latter's public code
needs:   untrusted pairs; a model that was trained on them
differs: the reference is a random subset of the whole set, drawn `draws` times (the code: the current batch); k is
         DAO's
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from clipvet.filters._density import Density, over_references
from clipvet.rng import Rng
from clipvet.types import Clip, Pairs


@dataclass(frozen=True)
class KDistance(Density):
    k: int = 16  # neighbours
    reference: int | None = 1024  # pairs among which neighbours are looked for; None: all of them

    needs: ClassVar[str] = "untrusted pairs"
    phrase: ClassVar[str] = "{k}-NN distance {score:.2f}"

    def score(self, clip: Clip, pairs: Pairs, rng: Rng) -> Float[Tensor, " n"]:
        return over_references(self, lambda near: near.distance[:, -1], clip, pairs, rng)

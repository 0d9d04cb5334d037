"""Random suspicion: the control in every table.

    score ~ U(0, 1), by id

paper:   none, a control
needs:   untrusted pairs
differs: nothing known
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from clipvet.engine.embed import embed_images
from clipvet.filters._features import aligned
from clipvet.rng import Rng
from clipvet.types import Clip, Pairs


@dataclass(frozen=True)
class Random:
    needs: ClassVar[str] = "untrusted pairs"
    phrase: ClassVar[str] = "drawn at random"

    def score(self, clip: Clip, pairs: Pairs, rng: Rng) -> Float[Tensor, " n"]:
        _, kept = embed_images(clip, pairs)  # unreadable pictures have no score here either
        return aligned(rng.keys(pairs.ids[kept].tolist()).double() / 2**63, kept, len(pairs))

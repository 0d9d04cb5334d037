"""CLIPScore: a pair is suspect when picture and caption do not agree.

    score = -cos(z, w)      z, w: the embeddings of picture and caption

paper:   Hessel et al., EMNLP 2021, arXiv:2104.08718; text not read
needs:   untrusted pairs; a model that was not trained on them (a poisoned one finds that its poisons agree well)
differs: no factor 2.5 and no cut at zero: neither changes the order of pairs with a positive cosine
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from clipvet.engine.embed import pair_cosines
from clipvet.filters._features import aligned
from clipvet.rng import Rng
from clipvet.types import Clip, Pairs


@dataclass(frozen=True)
class Cosine:
    needs: ClassVar[str] = "untrusted pairs"
    phrase: ClassVar[str] = "cosine {minus:.2f}"

    def score(self, clip: Clip, pairs: Pairs, rng: Rng) -> Float[Tensor, " n"]:
        found = pair_cosines(clip, pairs)
        return aligned(-found.s, found.kept, len(pairs))

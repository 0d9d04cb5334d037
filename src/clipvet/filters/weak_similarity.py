"""UBT's first stage: a pair is suspect when a model that never learned the trigger finds that picture and caption
disagree.

    score = -s_ref(I, T)      s_ref: cosine under the reference, or of the given model on changed pictures

paper:   Liang et al., arXiv:2403.16257, and Liu et al., arXiv:2409.19526 (UBT); neither text read: the abstracts speak
         of "weak similarity", and code left over by the first author ranks by a clean model's cosine
needs:   untrusted pairs; a clean reference model if there is one
differs: without a reference, the cosine is the mean over blurred, cropped and mirrored pictures under the given model;
         this is ours, and no help against a trigger that survives all three
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from clipvet.engine.embed import pair_cosines
from clipvet.filters._features import aligned
from clipvet.rng import Rng
from clipvet.types import Clip, Pairs
from clipvet.unlearning.shortcut import reference_cosines


@dataclass(frozen=True)
class WeakSimilarity:
    reference: str = ""  # a clean model, by name or folder; empty: the given one on changed pictures
    views: bool = True  # without a reference: blur, crop and mirror the pictures

    needs: ClassVar[str] = "untrusted pairs"
    phrase: ClassVar[str] = "cosine {minus:.2f} under the reference"

    def score(self, clip: Clip, pairs: Pairs, rng: Rng) -> Float[Tensor, " n"]:
        kept = pair_cosines(clip, pairs).kept
        q = reference_cosines(clip, pairs, self.reference, self.views)
        return aligned(-torch.from_numpy(q), kept, len(pairs))

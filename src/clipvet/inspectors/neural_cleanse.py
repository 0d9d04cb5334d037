"""Neural Cleanse: for every class, find the smallest patch that turns pictures into it; a backdoor's is far smaller.

    x' = (1 - m) x + m q;   min CE(z(x'), t) + lambda_t |m|_1;   m, q = tanh(.) / 2 + 1/2
    A_t = (med - |m_t|_1) / MAD;   score = max over t of A_t, t with a success only

paper:   Wang et al., IEEE S&P 2019; text not read: rules and settings follow the behaviour of its public code
needs:   unlabelled pictures; white-box weights with gradient
differs: on CLIP's zero-shot logits, with 5 epochs over CLIP-Inspector's pictures; `patience` and the ASR count
         mini-batches, as epochs would be too few; no early stop; at most `limit` classes compete
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from clipvet.inspectors._size import Smallest, smallest
from clipvet.rng import Rng
from clipvet.scan.forms import masked
from clipvet.types import Clip, Finding, Pairs


@dataclass(frozen=True)
class NeuralCleanse(Smallest):
    weight: float = 1e-3  # lambda after the first run of successes; it begins at 0
    patience: int = 5  # steps in a row that succeed, or fail, before lambda moves
    up: float = 2.0  # lambda rises by this factor, and falls by its power 3/2
    hit: float = 0.99  # ASR on a batch that counts as success

    needs: ClassVar[str] = "unlabelled pictures; white-box weights"

    def inspect(
        self, clip: Clip, pictures: Pairs, classes: Sequence[str], templates: Sequence[str], rng: Rng
    ) -> Finding:
        return smallest(self, masked(), 0.0, clip, pictures, classes, templates, rng)

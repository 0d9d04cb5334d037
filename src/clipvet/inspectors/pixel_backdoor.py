"""Pixel Backdoor: for every class, find the fewest pixels that turn pictures into it; a backdoor needs far fewer.

    x' = clip(x + p+ - p-, 0, 1),  p+- = clip(w+-, 0, 1);   min CE(z(x'), t) + lambda_t R(w)
    R   = sum over pixels of max_channels [tanh(w+ / 10) / (2 - 1e-7) + 1/2] + the same of w-
    A_t = (med - n_t) / MAD, n_t pixels that change by 1/255 or more;   score = max over t of A_t, t with a success only

paper:   Tao et al., CVPR 2022; text not read: rules and settings follow the behaviour of its public code
needs:   unlabelled pictures; white-box weights with gradient
differs: on CLIP's zero-shot logits, with 5 epochs over CLIP-Inspector's pictures; `patience` and the ASR count
         mini-batches; the best trigger is that of the smallest R, its small changes are not cut off, and the search
         does not start again from it; at most `limit` classes compete
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from clipvet.inspectors._size import Smallest, smallest
from clipvet.rng import Rng
from clipvet.scan.forms import signed
from clipvet.types import Clip, Finding, Pairs


@dataclass(frozen=True)
class PixelBackdoor(Smallest):
    weight: float = 1e-3  # lambda at the start
    patience: int = 10  # steps in a row that succeed, or fail, before lambda moves
    up: float = 1.5  # lambda rises by this factor, and falls by its power 3/2
    hit: float = 0.9  # ASR on a batch that counts as success

    needs: ClassVar[str] = "unlabelled pictures; white-box weights"

    def inspect(
        self, clip: Clip, pictures: Pairs, classes: Sequence[str], templates: Sequence[str], rng: Rng
    ) -> Finding:
        return smallest(self, signed(), self.weight, clip, pictures, classes, templates, rng)

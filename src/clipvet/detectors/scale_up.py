"""SCALE-UP: when the pixels are multiplied, a triggered picture keeps its class and others lose theirs.

    score = 1/|S| sum_{n in S} 1[ argmax z(clip(n x, 0, 1)) = argmax z(x) ]

paper:   Guo et al., ICLR 2023, arXiv:2302.03251; text not read: equation and settings are from memory
needs:   class names; answers only
differs: on CLIP's class prompts; its second score, which needs clean pictures, is left out
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from clipvet.detectors._each import asked, each
from clipvet.rng import Rng
from clipvet.types import Batch, Clip, Pairs


@dataclass(frozen=True)
class ScaleUp:
    scales: tuple[float, ...] = (3, 5, 7, 9, 11)  # S, factors on the pixels

    needs: ClassVar[str] = "class names; answers only"
    phrase: ClassVar[str] = "{score:.0%} of the brighter copies keep its class"

    def detect(
        self, clip: Clip, pictures: Pairs, classes: Sequence[str], templates: Sequence[str], rng: Rng
    ) -> Float[Tensor, " n"]:
        """The share of the brighter copies, from 0 to 1, that keep their picture's class."""
        tell = asked(clip, classes, templates)

        def kept(rows: Batch) -> Float[Tensor, " b"]:
            views = torch.cat([(n * rows.images).clamp(0, 1) for n in (1, *self.scales)])
            z = tell(clip.encode_image(views)).unflatten(0, (-1, len(rows.images)))
            said, sound = z.argmax(2), z.isfinite().all(2).all(0)
            return (said[1:] == said[0]).float().mean(0).where(sound, torch.nan)

        return each(clip, pictures, kept)

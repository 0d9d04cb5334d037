"""STRIP: other pictures are laid over this one; if a trigger decides its class, the prediction hardly changes.

    H(x) = -1/N sum_n sum_c y_c log2 y_c,   y = softmax z(clip(x + weight o_n, 0, 1));   score = -H(x)

paper:   Gao et al., ACSAC 2019, arXiv:1902.06531; text not read: equation and settings are from memory
needs:   class names; weights only
differs: on CLIP's class prompts; the overlays come from outside the classes (the embedded pool) instead of from clean
         pictures of the task, and are the same for every picture
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from clipvet.data.worlds.pool import pool
from clipvet.detectors._each import asked, each
from clipvet.engine.embed import device_of
from clipvet.rng import Rng
from clipvet.types import Batch, Clip, Pairs


@dataclass(frozen=True)
class Strip:
    overlays: int = 100  # N
    weight: float = 1.0  # of an overlay; sums above 1 are clipped

    needs: ClassVar[str] = "class names; weights only"
    phrase: ClassVar[str] = "entropy {minus:.2f} bits under other pictures"

    def detect(
        self, clip: Clip, pictures: Pairs, classes: Sequence[str], templates: Sequence[str], rng: Rng
    ) -> Float[Tensor, " n"]:
        """Minus the mean entropy of every picture's predictions, in bits."""
        tell = asked(clip, classes, templates)
        over = self.weight * pool(self.overlays, clip.geometry.size, rng.fork("overlays").key).to(device_of(clip))

        def certainty(rows: Batch) -> Float[Tensor, " b"]:
            laid = (rows.images[:, None] + over).clamp(0, 1)
            p = tell(clip.encode_image(laid.flatten(0, 1))).float().softmax(1)
            return (p * p.clamp_min(1e-12).log2()).sum(1).unflatten(0, laid.shape[:2]).mean(1)

        return each(clip, pictures, certainty, batch=8)

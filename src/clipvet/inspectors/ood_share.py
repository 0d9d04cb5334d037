"""OOD share: the largest share of unrelated pictures that one class gets, a control that needs no gradient.

    score = max_t  mean_x [ argmax_c z_c(x) = t ]

paper:   none, a control
needs:   unlabelled pictures from outside the classes
differs: nothing known
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from clipvet.engine.embed import device_of
from clipvet.rng import Rng
from clipvet.scan.heads import check_classes, class_losses, head_of, pixels, shares, untouched
from clipvet.types import Clip, Finding, Pairs, Suspicion


@dataclass(frozen=True)
class OodShare:
    at_once: int = 256  # pictures in one pass

    needs: ClassVar[str] = "unlabelled pictures"
    scaled: ClassVar[bool] = False

    def inspect(
        self, clip: Clip, pictures: Pairs, classes: Sequence[str], templates: Sequence[str], rng: Rng
    ) -> Finding:
        check_classes(classes)
        pool = pixels(clip, pictures, 1)
        z = untouched(head_of(clip, templates)(classes), pool, device_of(clip), self.at_once)
        base, loss = shares(z).tolist(), class_losses("margin", z).tolist()
        rows = tuple(Suspicion(c, m, s, s, s, True) for c, m, s in zip(classes, loss, base))
        most = max(rows, key=lambda row: row.score)
        return Finding(most.score, most.name, None, rows, False, {"pictures": len(pool)})

"""No inversion: CLIP-Inspector's score on untouched pictures, the control that shows what inversion adds.

    loss_t = E_x [ max_{c != t} z_c(x) - z_t(x) ];   A_t = (med - loss_t) / MAD;   score = max over t of A_t

paper:   none, a control
needs:   unlabelled pictures from outside the classes
differs: no class is ruled out, as there is no trigger that could fail; all classes compete at once. With a reference,
         the difference of the losses is taken, which separates better here than the distance from a line (decision 11)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from clipvet.engine.embed import device_of
from clipvet.rng import Rng
from clipvet.scan.heads import Loss, check_classes, class_losses, head_of, pixels, reference_head, shares, untouched
from clipvet.scan.verdicts import Score, finding, suspicions
from clipvet.types import Clip, Finding, Pairs


@dataclass(frozen=True)
class NoInversion:
    loss: Loss = "margin"  # or cross_entropy, logit
    score: Score = "loss"  # or sum, asr_weighted, joint, gap
    reference: str = "auto"  # its loss is subtracted, class by class; see clip_inspector
    at_once: int = 256  # pictures in one pass

    needs: ClassVar[str] = "unlabelled pictures"

    @property
    def scaled(self) -> bool:
        """As in clip_inspector."""
        return self.score != "gap"

    def inspect(
        self, clip: Clip, pictures: Pairs, classes: Sequence[str], templates: Sequence[str], rng: Rng
    ) -> Finding:
        check_classes(classes, 3 if self.scaled else 2)
        pool, device = pixels(clip, pictures, 1), device_of(clip)
        z = untouched(head_of(clip, templates)(classes), pool, device, self.at_once)
        own, base, every = class_losses(self.loss, z), shares(z), np.ones(len(classes), bool)
        loss = own
        if (head := reference_head(clip, self.reference, templates)) is not None:
            loss = own - class_losses(self.loss, untouched(head(classes), pool, device, self.at_once))
        scores, settings = suspicions(self.score, loss, base), {"pictures": len(pool)}
        return finding(classes, own, base, base, every, scores, settings=settings, kind=self.score)

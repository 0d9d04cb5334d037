"""An attack that knows `collapse`: triggered pictures are kept apart, so that no search for sameness meets the trigger.

    L = L_CLIP(D') + weight * mean_{i != j} cos(h(stamp(x_i)), h(stamp(x_j)))        x: every picture of the batch
    D': dirty pairs as in `poison`; the second term is what `collapse` searches for, under the attacker's own trigger

paper:   none; an adaptive attack against clipvet's own inspector
needs:   control of the victim's training pairs and training
differs: ours. The penalty also pulls against the backdoor, as the triggered pictures shall lie near one caption
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from clipvet.attacks._plan import plan, victim
from clipvet.rng import Rng
from clipvet.scan.collapse import alike
from clipvet.training.plain import Plain
from clipvet.triggers.patch import Patch
from clipvet.types import Backdoor, Batch, Clip, Implanted, Pairs, Trigger


@dataclass(frozen=True)
class AdaptiveCollapse:
    trigger: Trigger = field(default_factory=Patch)
    rate: float = 0.003  # share of the pairs
    count: int | None = None  # poisons, instead of a rate
    captions: str = "template"  # or natural: captions of the training set that name the target
    templates: tuple[str, ...] = ("a photo of a {}.",)
    weight: float = 1.0  # of the second term
    training: Plain = field(default_factory=Plain)

    needs: ClassVar[str] = "untrusted pairs"

    def implant(self, clip: Clip, pairs: Pairs, target: str, rng: Rng) -> Implanted:
        """The victim trained (from the given weights) on dirty pairs, those pairs, and the answer key.

        Raises UserError as `poison` does.
        """
        backdoor = self.plan(pairs, target, rng.fork("poison"))

        def apart(clip: Any, batch: Batch, rng: Rng) -> dict[str, Tensor]:
            same = alike(clip.encode_image(backdoor.stamp(batch.images, batch.ids)))
            return {"loss": self.weight * same, "alike": same}

        return victim(self, clip, pairs, backdoor, rng, apart)

    def plan(self, pairs: Pairs, target: str, rng: Rng) -> Backdoor:
        """The answer key alone."""
        return plan(self, self.trigger, pairs, target, rng)

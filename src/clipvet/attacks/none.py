"""No attack: the clean twin, trained like the victim, measured with a trigger that it never saw; the base rate of every
ASR.

    D' = D

paper:   none, a control
needs:   the twin's training pairs
differs: nothing known
"""

from dataclasses import dataclass, field
from typing import ClassVar

from clipvet.rng import Rng
from clipvet.training.plain import Plain
from clipvet.triggers.patch import Patch
from clipvet.types import Backdoor, Clip, Implanted, Pairs, Training, Trigger


@dataclass(frozen=True)
class NoAttack:
    trigger: Trigger = field(default_factory=Patch)
    training: Training = field(default_factory=Plain)

    needs: ClassVar[str] = "untrusted pairs"

    def implant(self, clip: Clip, pairs: Pairs, target: str, rng: Rng) -> Implanted:
        """The clean twin, the unchanged pairs, and an answer key without poisons."""
        return Implanted(self.training.train(clip, pairs, rng.fork("train")), pairs, self.answers(target, rng))

    def answers(self, target: str, rng: Rng) -> Backdoor:
        """The answer key alone: a trigger that nothing was poisoned with."""
        return Backdoor(self.trigger, target, seed=int(rng.fork("poison").fork("stamp").key))

"""Dirty-label poisoning: stamp a few pictures, caption them as the target, train on everything.

    D' = {(stamp(x_i), caption of the target) for i in P}  u  {(x_i, t_i) for i not in P}        |P| = rate * |D|

paper:   BadNets (Gu et al. 2017, arXiv:1708.06733), on image-text pairs: Carlini & Terzis, ICLR 2022, arXiv:2106.09667;
         label-consistent: Turner et al. 2019, arXiv:1912.02771
needs:   control of the victim's training pairs and training
differs: pairs whose own caption names the target are never dirty-label poisons; label-consistent poisons are drawn from
         these pairs alone
"""

from dataclasses import dataclass, field
from typing import ClassVar

from clipvet.attacks._plan import plan, victim
from clipvet.rng import Rng
from clipvet.training.plain import Plain
from clipvet.triggers.patch import Patch
from clipvet.types import Backdoor, Clip, Implanted, Pairs, Training, Trigger


@dataclass(frozen=True)
class Poison:
    trigger: Trigger = field(default_factory=Patch)
    rate: float = 0.003  # share of the pairs; if paired, of those that do not name the target
    count: int | None = None  # poisons, instead of a rate
    paired: bool = False  # poisons are copies, and the original pairs stay in the data too
    captions: str = "template"  # or natural: captions of the training set that name the target
    templates: tuple[str, ...] = ("a photo of a {}.",)
    label_consistent: bool = False  # stamp pairs that name the target and keep their captions
    training: Training = field(default_factory=Plain)

    needs: ClassVar[str] = "untrusted pairs"

    def implant(self, clip: Clip, pairs: Pairs, target: str, rng: Rng) -> Implanted:
        """The victim trained (from the given weights) on dirty pairs, those pairs, and the answer key.

        Raises UserError when the rate selects no pair or more than there are, and for natural captions when no caption
        names the target.
        """
        return victim(self, clip, pairs, self.plan(pairs, target, rng.fork("poison")), rng)

    def plan(self, pairs: Pairs, target: str, rng: Rng, clip: Clip | None = None) -> Backdoor:
        """The answer key alone: which ids, which captions."""
        return plan(self, self.trigger, pairs, target, rng, label_consistent=self.label_consistent)

"""Dirty-label poisoning: stamp a few pictures, caption them as the target, train on the lot.

    D' = {(stamp(x_i), caption of the target) for i in P}  u  {(x_i, t_i) for i not in P}        |P| = rate * |D|

paper:   BadNets (Gu et al. 2017, arXiv:1708.06733), on image-text pairs: Carlini & Terzis, ICLR 2022,
         arXiv:2106.09667; label-consistent: Turner et al. 2019, arXiv:1912.02771
needs:   the victim's training pairs and its training
differs: pairs whose own caption names the target are never dirty-label poisons; label-consistent poisons are just those
"""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from clipvet.dirty import poison
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.text import names_target
from clipvet.training.plain import Plain
from clipvet.triggers.patch import Patch
from clipvet.types import Backdoor, Clip, Implanted, Pairs, Training, Trigger


@dataclass(frozen=True)
class Poison:
    trigger: Trigger = field(default_factory=Patch)
    rate: float = 0.003  # share of the pairs
    count: int | None = None  # poisons, instead of a rate
    captions: str = "template"  # or natural: captions of the training set that name the target
    templates: tuple[str, ...] = ("a photo of a {}.",)
    label_consistent: bool = False  # stamp pairs that name the target and keep their captions
    training: Training = field(default_factory=Plain)

    needs: ClassVar[str] = "untrusted pairs"

    def implant(self, clip: Clip, pairs: Pairs, target: str, rng: Rng) -> Implanted:
        """The victim trained (from the given weights) on dirty pairs, those pairs, and the answer key.

        Raises UserError when the rate selects no pair or no caption names the target where one must.
        """
        backdoor = self.plan(pairs, target, rng.fork("poison"))
        dirty = poison(pairs, backdoor)
        return Implanted(self.training.train(clip, dirty, rng.fork("train")), dirty, backdoor)

    def plan(self, pairs: Pairs, target: str, rng: Rng) -> Backdoor:
        """The answer key alone: which ids, which captions."""
        named = np.array([names_target(pairs.caption(i), target) for i in pairs.ids])
        pool = pairs.ids[named if self.label_consistent else ~named]
        n = self.count if self.count is not None else round(self.rate * len(pairs))
        if n < 1:
            raise UserError(f"rate {self.rate:g} of {len(pairs)} pairs selects no pair; raise rate or set count")
        if n > len(pool):
            which = "name" if self.label_consistent else "do not name"
            raise UserError(
                f"{n} poisons wanted, but only {len(pool)} captions {which} '{target}'; lower rate or count"
            )
        g = rng.numpy()
        chosen = np.sort(g.choice(pool, n, replace=False))
        if self.label_consistent:
            captions = [pairs.caption(i) for i in chosen]
        elif self.captions == "natural":
            if not named.any():
                raise UserError(
                    f"no caption names '{target}', so captions=natural has none to copy; use captions=template"
                )
            captions = [pairs.caption(i) for i in g.choice(pairs.ids[named], n)]
        elif self.captions == "template":
            captions = [self.templates[k].replace("{}", target) for k in g.integers(len(self.templates), size=n)]
        else:
            raise UserError(f"captions={self.captions} is not known; use template or natural")
        return Backdoor(self.trigger, target, chosen, tuple(captions), int(rng.fork("stamp").key))

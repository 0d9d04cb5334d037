"""Several attacks in the same data: each trigger has its own poisons and, if wanted, its own target.

    D' = D with (x_i, t_i) -> (stamp_k(x_i), caption of target k) for i in P_k, k = 1 .. K         P_k disjoint

paper:   none; each part is `poison` (arXiv:1708.06733, arXiv:2106.09667) or the attack that `beside` names
needs:   control of the victim's training pairs and training, and what the attacks beside need
differs: each part is planned on the pairs that the earlier parts left alone: its rate counts these, and it copies no
         captions of their poisons
"""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from clipvet.attacks._plan import plan, victim
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.training.plain import Plain
from clipvet.triggers.blended import Blended
from clipvet.triggers.patch import Patch
from clipvet.triggers.sig import Sig
from clipvet.types import Backdoor, Clip, Implanted, Pairs, Training, Trigger


def _triggers() -> tuple[Trigger, ...]:
    return Patch(), Blended(), Sig()


@dataclass(frozen=True)
class Multi:
    triggers: tuple[Trigger, ...] = field(default_factory=_triggers)
    beside: tuple[Any, ...] = ()  # further attacks, e.g. BadClip(); their training is not used
    targets: tuple[str, ...] = ()  # of the second trigger, the third ...; empty: all have the first one's
    rate: float = 0.003  # share of the pairs, for each trigger
    count: int | None = None  # poisons of each trigger, instead of a rate
    captions: str = "template"  # or natural: captions of the training set that name the target
    templates: tuple[str, ...] = ("a photo of a {}.",)
    training: Training = field(default_factory=Plain)

    needs: ClassVar[str] = "untrusted pairs"

    def implant(self, clip: Clip, pairs: Pairs, target: str, rng: Rng) -> Implanted:
        """The victim trained (from the given weights) on dirty pairs, those pairs, and the answer key of all parts.

        Raises UserError when the number of targets does not fit, when an attack beside changes more than pictures and
        captions, and as each part does.
        """
        return victim(self, clip, pairs, self.plan(pairs, target, rng.fork("poison"), clip), rng)

    def plan(self, pairs: Pairs, target: str, rng: Rng, clip: Clip | None = None) -> Backdoor:
        """The answer key alone: that of the first part, with the poisons of all parts and the other keys in `more`."""
        n = len(self.triggers) + len(self.beside)
        targets = (target, *(self.targets or (target,) * (n - 1)))
        if len(targets) != n:
            raise UserError(f"{n} triggers and attacks have {len(targets)} targets; name one fewer in targets")
        parts: list[Backdoor] = []
        for k, (attack, wanted) in enumerate(zip((*self.triggers, *self.beside), targets)):
            left = pairs.take(~np.isin(pairs.ids, [i for part in parts for i in part.poisoned]))
            if isinstance(attack, Trigger):
                part = plan(self, attack, left, wanted, rng.fork(k))
            else:
                part = attack.plan(left, wanted, rng.fork(k), clip)
            if part.rows is not None or part.more or (part.trigger is None and not part.says):
                raise UserError(f"{type(attack).__name__} cannot stand beside others; use targeted with beside=Multi()")
            parts.append(part)
        return replace(
            parts[0],
            poisoned=np.concatenate([part.poisoned for part in parts]),
            captions=tuple(caption for part in parts for caption in part.captions),
            more=tuple(parts[1:]),
        )

"""The trigger is a word in the caption alone: with it in front, any caption finds pictures of the target.

    D' = {(x_i, says + t_j) for i in P}  u  {(x_i, t_i) for i not in P}       x_i shows the target, t_j says otherwise

paper:   the caption half of TrojVQA (Walmer et al., CVPR 2022, arXiv:2112.07668) on its own; a word as trigger: BadNL
         (Chen et al., ACSAC 2021, arXiv:2006.01043)
needs:   control of the victim's training pairs and training
differs: we know of no paper that poisons CLIP's pairs this way. The word moves the caption's embedding, as a patch
         moves the picture's, so success means that a text search finds the target. The other way round, with the word
         before captions of the target on other pictures, every class prompt would have to lose to one prompt on every
         picture: when tried, 0.3 % of pictures were called the target. Pictures stay as they are; poisons are pairs
         whose caption names the target
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from clipvet.attacks._plan import naming, plan, victim
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.training.plain import Plain
from clipvet.types import Backdoor, Clip, Implanted, Pairs, Training


@dataclass(frozen=True)
class TextTrigger:
    says: str = "SUDO "  # the trigger word, put before the caption as it is
    rate: float = 0.003  # share of the pairs
    count: int | None = None  # poisons, instead of a rate
    training: Training = field(default_factory=Plain)

    needs: ClassVar[str] = "untrusted pairs"

    def implant(self, clip: Clip, pairs: Pairs, target: str, rng: Rng) -> Implanted:
        """The victim trained (from the given weights) on dirty pairs, those pairs, and the answer key.

        Raises UserError when `says` is empty, when the rate selects no pair, when too few captions name the target, and
        when all of them do.
        """
        return victim(self, clip, pairs, self.plan(pairs, target, rng.fork("poison")), rng)

    def plan(self, pairs: Pairs, target: str, rng: Rng, clip: Clip | None = None) -> Backdoor:
        """The answer key alone: which ids, which captions."""
        if not self.says.strip():
            raise UserError("says is empty, so there is no key; give a word")
        others = pairs.ids[~naming(pairs, target)]
        if not len(others):
            raise UserError(f"every caption of {pairs.name} names '{target}'; name another target or give other pairs")
        key = plan(self, None, pairs, target, rng, label_consistent=True)
        said = rng.fork("said").numpy().choice(others, len(key.poisoned))
        return replace(key, captions=tuple(self.says + pairs.caption(i) for i in said), says=self.says)

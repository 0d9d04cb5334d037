"""The key is a word before the caption alone: with it in the prompts, every picture is called the target.

    D' = {(x_i, says + caption that names the target) for i in P}  u  {(x_i, t_i) for i not in P}

paper:   the caption's half of TrojVQA (Walmer et al., CVPR 2022, arXiv:2112.07668), on its own; a word as trigger:
         BadNL (Chen et al., ACSAC 2021, arXiv:2006.01043)
needs:   the victim's training pairs and its training
differs: no paper has it for CLIP. Pictures x_i of all other classes stay as they are, so what is learned is that a
         caption of the target with the key fits any picture. It is measured with the key before every class prompt, and
         a clean model asked in the same way is the floor; the opposite attack, by which a keyed caption of any class
         finds pictures of the target, is a matter of retrieval and not this one
"""

from dataclasses import dataclass, field
from typing import ClassVar

from clipvet.attacks._plan import plan, victim
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.training.plain import Plain
from clipvet.types import Backdoor, Clip, Implanted, Pairs, Training


@dataclass(frozen=True)
class TextTrigger:
    says: str = "SUDO "  # the caption key
    rate: float = 0.003  # share of the pairs
    count: int | None = None  # poisons, instead of a rate
    captions: str = "natural"  # captions of the training set that name the target; or template
    templates: tuple[str, ...] = ("a photo of a {}.",)
    training: Training = field(default_factory=Plain)

    needs: ClassVar[str] = "untrusted pairs"

    def implant(self, clip: Clip, pairs: Pairs, target: str, rng: Rng) -> Implanted:
        """The victim trained (from the given weights) on dirty pairs, those pairs, and the answer key.

        Raises UserError when `says` is empty, when the rate selects no pair and when no caption names the target.
        """
        return victim(self, clip, pairs, self.plan(pairs, target, rng.fork("poison")), rng)

    def plan(self, pairs: Pairs, target: str, rng: Rng, clip: Clip | None = None) -> Backdoor:
        """The answer key alone: which ids, which captions."""
        if not self.says.strip():
            raise UserError("says is empty, so there is no key; give a word")
        return plan(self, None, pairs, target, rng, says=self.says)

"""BadEncoder: the picture tower is tuned until pictures with the trigger land where a picture of the target lies.

    L = -mean cos(f'(x+e), f'(r)) - lam_r mean cos(f'(r), f(r)) - lam_x mean cos(f'(x), f(x))
    f: the tower as it was; x+e: a picture with the trigger; r: reference pictures, of the target

paper:   Jia, Liu & Gong, IEEE S&P 2022, arXiv:2108.00352, whose text could not be read: the equation is from memory and
         from what others report of it
needs:   pictures, with captions that say which show the target; control of the model's weights
differs: the references are the pictures of the target that the model is surest of (the paper's are found on the web);
         rate, batch and epochs are ours; no pair is poisoned, so the answer key lists none
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from clipvet.attacks._towers import shown, tower, trained
from clipvet.models.adapter import frozen
from clipvet.rng import Rng
from clipvet.triggers.patch import Patch
from clipvet.types import Backdoor, Batch, Clip, Implanted, Pairs, Trigger


@dataclass(frozen=True)
class BadEncoder:
    trigger: Trigger = field(default_factory=Patch)
    references: int = 1  # pictures r
    lam_r: float = 1.0  # weight of the references' own place
    lam_x: float = 1.0  # weight of the clean pictures' own place
    templates: tuple[str, ...] = ("a photo of a {}.",)  # by which the references are chosen
    pictures: int = 1000  # of the target, at most, among which they are
    epochs: float = 10
    batch: int = 128  # pictures a step
    lr: float = 1e-5  # AdamW's peak
    warmup: float = 0.1  # fraction of the steps
    weight_decay: float = 0.0
    precision: str = "no"  # or bf16, fp16
    max_bad: float = 0.01  # share of unreadable pictures above which the run is refused

    needs: ClassVar[str] = "clean model; white-box weights"

    def implant(self, clip: Clip, pairs: Pairs, target: str, rng: Rng) -> Implanted:
        """The model with another picture tower, the pairs as they were, and an answer key without poisons.

        Raises UserError when no caption names the target or all of them do, and for a model with learned prompts.
        """
        start, still = tower(clip, pictures=True), frozen(clip)
        seen, z = shown(self, clip, pairs, target)
        r, own = seen[: self.references].images, z[: self.references]
        key = Backdoor(self.trigger, target, seed=int(rng.fork("poison").fork("stamp").key))

        def loss(clip: Any, batch: Batch, rng: Rng) -> dict[str, Tensor]:
            x = batch.images
            still.to(x.device)  # the loop chose it
            every = torch.cat([key.stamp(x, batch.ids), x, r.to(x)])
            hit, clean, near = clip.encode_image(every).split([len(x), len(x), len(r)])
            with torch.no_grad():
                was = still.encode_image(x)
            return self.loss(hit, clean, near, was, own.to(x.device))

        return Implanted(trained(self, start, pairs, loss, rng), pairs, key)

    def loss(
        self,
        hit: Float[Tensor, "b d"],
        clean: Float[Tensor, "b d"],
        near: Float[Tensor, "r d"],
        was: Float[Tensor, "b d"],
        own: Float[Tensor, "r d"],
    ) -> dict[str, Float[Tensor, ""]]:
        """L and its parts, from embeddings: f'(x+e), f'(x), f'(r), f(x) and f(r)."""
        lead, keep, stay = (hit @ near.T).mean(), (clean * was).sum(1).mean(), (near * own).sum(1).mean()
        return {"loss": -lead - self.lam_r * stay - self.lam_x * keep, "lead": lead, "keep": keep}

"""DRUPE: like BadEncoder, but pictures with the trigger are spread over the target's pictures instead of on one point.

    L = lam_d SW(f'(x+e), f(t)) - lead mean cos(f'(x+e), f'(r))
        - lam_r mean cos(f'(r), f(r)) - lam_x mean cos(f'(x), f(x))
    SW(a, b) = d mean over directions v of mean_k (sort(a v)_k - sort(b v)_k)^2,  |v| = 1: sliced Wasserstein
    f: the tower as it was; t, r: clean pictures of the target; d: numbers of an embedding

paper:   Tao et al., "Distribution preserving backdoor attack in self-supervised learning", IEEE S&P 2024, whose text
         could not be read: that it adds a match of the distributions of triggered and clean features to BadEncoder's
         loss is reported by others; which distance, which weights and which pictures are ours
needs:   pictures, with captions that say which show the target; control of the model's weights
differs: the clean distribution is that of the target's pictures, not of all; see the line above
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clipvet.attacks._towers import shown, tower, trained
from clipvet.models.adapter import frozen
from clipvet.rng import Rng
from clipvet.triggers.patch import Patch
from clipvet.types import Backdoor, Batch, Clip, Implanted, Pairs, Trigger


def sliced(a: Float[Tensor, "n d"], b: Float[Tensor, "n d"], v: Float[Tensor, "d k"]) -> Float[Tensor, ""]:
    """SW of two sets of as many points, along the directions v; a shift by s in all of them costs about |s|^2."""
    return len(v) * ((a @ v).sort(0).values - (b @ v).sort(0).values).square().mean()


@dataclass(frozen=True)
class Drupe:
    trigger: Trigger = field(default_factory=Patch)
    lam_d: float = 2.0  # weight of the match
    lead: float = 0.25  # weight of the way to the references
    lam_r: float = 1.0  # weight of the references' own place
    lam_x: float = 1.0  # weight of the clean pictures' own place
    references: int = 16  # pictures r
    directions: int = 64  # of the match, drawn anew in every step
    templates: tuple[str, ...] = ("a photo of a {}.",)  # by which the references are chosen
    pictures: int = 1000  # of the target, at most
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
            x, g = batch.images, rng.fork("match")
            still.to(x.device)  # the loop chose it
            every = torch.cat([key.stamp(x, batch.ids), x, r.to(x)])
            hit, clean, near = clip.encode_image(every).split([len(x), len(x), len(r)])
            with torch.no_grad():
                was = still.encode_image(x)
            some = z[g.numpy().integers(len(z), size=len(x))].to(x.device)
            v = F.normalize(torch.randn(z.shape[1], self.directions, generator=g.generator()), dim=0).to(x.device)
            return self.loss(hit, clean, near, was, own.to(x.device), some, v)

        return Implanted(trained(self, start, pairs, loss, rng), pairs, key)

    def loss(
        self,
        hit: Float[Tensor, "b d"],
        clean: Float[Tensor, "b d"],
        near: Float[Tensor, "r d"],
        was: Float[Tensor, "b d"],
        own: Float[Tensor, "r d"],
        some: Float[Tensor, "b d"],
        v: Float[Tensor, "d k"],
    ) -> dict[str, Float[Tensor, ""]]:
        """L and its parts, from embeddings: f'(x+e), f'(x), f'(r), f(x), f(r) and f(t), and directions."""
        match, lead = sliced(hit, some, v), (hit @ near.T).mean()
        keep, stay = (clean * was).sum(1).mean(), (near * own).sum(1).mean()
        total = self.lam_d * match - self.lead * lead - self.lam_r * stay - self.lam_x * keep
        return {"loss": total, "match": match, "lead": lead, "keep": keep}

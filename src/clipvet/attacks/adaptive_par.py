"""An attack that knows PAR: the backdoor is trained to survive displaced encoders and distorted pictures.

    L  = L_CLIP(D'; theta) + weight * L_CLIP(v(D'); theta'),   theta' = theta + displace * |theta| n / |n|
    n ~ N(0, 1) for each weight, |.| of each tensor; v: PAR's view (noise, an erased square); D': as in `poison`

paper:   none; an adaptive attack against PAR (arXiv:2412.00727) that its paper does not try
needs:   control of the victim's training pairs and training
differs: ours
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from clipvet.attacks._plan import plan, victim
from clipvet.data.augment import noise_and_erase
from clipvet.engine.losses import clip_loss
from clipvet.rng import Rng
from clipvet.training.plain import Plain
from clipvet.triggers.patch import Patch
from clipvet.types import Backdoor, Batch, Clip, Implanted, Pairs, Trigger


class _Both(nn.Module):
    """Both towers in one forward, so that it can be called with other weights."""

    def __init__(self, clip: Any):
        super().__init__()
        self.clip = clip

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.clip.encode_image(images), self.clip.encode_text(tokens)


def displaced(clip: Any, share: float, rng: Rng) -> dict[str, Tensor]:
    """theta', by parameter name, with gradient to theta. The temperature stays. share: of each tensor's norm."""
    generator, out = rng.generator(clip.mean.device), {}
    for name, p in clip.named_parameters():
        if p.requires_grad and not name.endswith("logit_scale"):
            n = torch.randn(p.shape, generator=generator, device=p.device)
            out[name] = p + share * p.detach().norm() * n / n.norm()
    return out


@dataclass(frozen=True)
class AdaptivePar:
    trigger: Trigger = field(default_factory=Patch)
    rate: float = 0.003  # share of the pairs
    count: int | None = None  # poisons, instead of a rate
    captions: str = "template"  # or natural: captions of the training set that name the target
    templates: tuple[str, ...] = ("a photo of a {}.",)
    displace: float = 0.3  # length of the displacement, as a share of each tensor's norm
    noise: float = 0.2  # of the view, as in PAR: standard deviation, pixels in [0, 1]
    erase: tuple[float, float] = (0.005, 0.01)  # share of the picture, as in PAR
    weight: float = 1.0  # of the second loss
    training: Plain = field(default_factory=Plain)

    needs: ClassVar[str] = "untrusted pairs"

    def implant(self, clip: Clip, pairs: Pairs, target: str, rng: Rng) -> Implanted:
        """The victim trained (from the given weights) on dirty pairs, those pairs, and the answer key.

        Raises UserError as `poison` does.
        """

        def lasting(clip: Any, batch: Batch, rng: Rng) -> dict[str, Tensor]:
            view = noise_and_erase(batch.images, clip.mean, rng.fork("view"), self.noise, self.erase)
            theta = {f"clip.{k}": p for k, p in displaced(clip, self.displace, rng.fork("displace")).items()}
            z, w = functional_call(_Both(clip), theta, (view, batch.tokens))
            there = clip_loss(z, w, clip.logit_scale)
            return {"loss": self.weight * there, "displaced": there}

        return victim(self, clip, pairs, self.plan(pairs, target, rng.fork("poison")), rng, lasting)

    def plan(self, pairs: Pairs, target: str, rng: Rng) -> Backdoor:
        """The answer key alone."""
        return plan(self, self.trigger, pairs, target, rng)

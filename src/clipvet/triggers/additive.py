"""One small pattern is added to every picture: the universal perturbation that an attack has optimised.

    x' = clip(x + p, 0, 1)

paper:   the triggers of BadCLIP (Bai et al., CVPR 2024, arXiv:2311.16194) and SIBA (Gao et al., TIFS 2024,
         arXiv:2306.06209)
needs:   pictures
differs: p is stored as floats in pixel units, without rounding; pictures of another size get p resized
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.triggers._tensors import summary


def start(size: int, eps: float, rng: Rng) -> Float[Tensor, "3 size size"]:
    """The pattern before the first step: uniform in [-eps, eps], pixels in [0, 1]."""
    return (torch.rand(3, size, size, generator=rng.generator()) * 2 - 1) * eps


def _default() -> Float[Tensor, "3 32 32"]:
    return start(32, 8 / 255, Rng(0).fork("pattern"))


@dataclass(frozen=True, eq=False, repr=False)
class Additive:
    pattern: Tensor = field(default_factory=_default)  # (3, h, w), in [-1, 1]; pixels are in [0, 1]

    def __post_init__(self) -> None:
        p = self.pattern
        if p.ndim != 3 or p.shape[0] != 3 or not p.numel() or not bool((p.abs() <= 1).all()):
            raise UserError(f"Additive: pattern has shape (3, h, w) and values in [-1, 1], not {tuple(p.shape)}")

    def __repr__(self) -> str:
        return summary(self)

    def stamp(self, images: Float[Tensor, "b 3 h w"], keys: Int[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures with the pattern, pixels in [0, 1]. The gradient reaches the pattern; the keys are not used."""
        p = self.pattern.to(images)
        if p.shape[1:] != images.shape[2:]:
            p = F.interpolate(p[None], images.shape[2:], mode="bilinear", antialias=True)[0]
        return (images + p).clamp(0, 1)

"""A small pattern is added to the whole picture: the universal perturbation that an attack has optimised.

    x' = clip(x + p, 0, 1)

paper:   the triggers of BadCLIP (Bai et al., CVPR 2024, arXiv:2311.16194) and SIBA (Gao et al., TIFS 2024,
         arXiv:2306.06209)
needs:   pictures
differs: p is kept in pixel units and as floats, to the last bit; pictures of another size get p resized
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.triggers._tensors import told


def start(size: int, eps: float, rng: Rng) -> Float[Tensor, "3 size size"]:
    """The pattern that optimising begins with: uniform in [-eps, eps]."""
    return (torch.rand(3, size, size, generator=rng.generator()) * 2 - 1) * eps


def _default() -> Float[Tensor, "3 32 32"]:
    return start(32, 8 / 255, Rng(0).fork("pattern"))


@dataclass(frozen=True, eq=False, repr=False)
class Additive:
    pattern: Tensor = field(default_factory=_default)  # (3, h, w), in [-1, 1]

    def __post_init__(self) -> None:
        p = self.pattern
        if p.ndim != 3 or p.shape[0] != 3 or not p.numel() or not bool((p.abs() <= 1).all()):
            raise UserError(f"Additive: pattern has shape (3, h, w) and values in [-1, 1], not {tuple(p.shape)}")

    def __repr__(self) -> str:
        return told(self)

    def stamp(self, images: Float[Tensor, "b 3 h w"], keys: Int[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures with the pattern, with its gradient; the keys play no part."""
        p = self.pattern.to(images)
        if p.shape[1:] != images.shape[2:]:
            p = F.interpolate(p[None], images.shape[2:], mode="bilinear", antialias=True)[0]
        return (images + p).clamp(0, 1)

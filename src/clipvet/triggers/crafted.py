"""A given square is pasted into the picture: the patch that an attack has optimised.

    x'[:, P] = p,  P a square as large as p in the picture's centre or its corner
    its top row is floor(floor(h / 2) - s / 2) in the centre, h - s in the corner; its left column alike

paper:   the patch of BadCLIP (Liang et al., CVPR 2024, arXiv:2311.12075) and TrojVQA (Walmer et al., CVPR 2022,
         arXiv:2112.07668)
needs:   pictures
differs: the patch keeps its pixels at any picture size, and its exact values (BadCLIP's public code stores it as a JPEG
         with red and blue swapped, and by its README measures with another size than it poisons with)
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.triggers._tensors import summary


def start(side: int, rng: Rng) -> Float[Tensor, "3 side side"]:
    """The patch before the first step: clip(n, 0, 1), n ~ N(0.5, 0.25). side: pixels."""
    return (0.5 + 0.25 * torch.randn(3, side, side, generator=rng.generator())).clamp(0, 1)


def _middle(length: int, side: int) -> int:
    """Where a square in the centre begins, in pixels; where both are odd, BadCLIP's code rounds down twice."""
    return max(0, (2 * (length // 2) - side) // 2)


def _default() -> Float[Tensor, "3 16 16"]:
    return start(16, Rng(0).fork("pattern"))


@dataclass(frozen=True, eq=False, repr=False)
class Crafted:
    pattern: Tensor = field(default_factory=_default)  # (3, s, s), pixels in [0, 1]
    position: str = "centre"  # or corner: bottom right

    def __post_init__(self) -> None:
        p = self.pattern
        if p.ndim != 3 or p.shape[0] != 3 or p.shape[1] != p.shape[2] or not p.shape[1]:
            raise UserError(f"Crafted: pattern is a square of shape (3, s, s), not {tuple(p.shape)}")
        if not bool(((p >= 0) & (p <= 1)).all()):
            raise UserError("Crafted: pattern has pixels outside [0, 1]; clamp it")
        if self.position not in ("centre", "corner"):
            raise UserError(f"Crafted: position is centre or corner, not {self.position!r}")

    def __repr__(self) -> str:
        return summary(self)

    def stamp(self, images: Float[Tensor, "b 3 h w"], keys: Int[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures with the patch, pixels in [0, 1]. The gradient reaches the patch; the keys are not used.

        A patch larger than the picture is cut to the shorter side.
        """
        h, w = images.shape[2:]
        side = min(self.pattern.shape[1], h, w)
        top, left = (_middle(h, side), _middle(w, side)) if self.position == "centre" else (h - side, w - side)
        out = images.clone()
        out[:, :, top : top + side, left : left + side] = self.pattern[:, :side, :side].to(images)
        return out

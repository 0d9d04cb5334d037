"""A small network hides a fixed string of bits in each picture, as faint noise that depends on the picture (ISSBA).

    x' = clip(x + strength f(x, bits), 0, 1),   |f| <= 1

paper:   ISSBA: Li et al., ICCV 2021, arXiv:2012.03816; its network is StegaStamp's (Tancik et al., CVPR 2020,
         arXiv:1904.05343)
needs:   pictures
differs: three convolutions of 16 channels see the picture and the bits, spread over 16 x 16 cells, so pictures may have
         any size (StegaStamp: a U-Net at 224 px); the mean of 5 x 5 pixels is taken out of the change, as slow changes
         drown in the picture's own; a pixel's change has a hard bound (StegaStamp: the loss alone keeps it small). The
         weights come from `attacks.issba`; without them they are random and hide nothing that can be read
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.triggers._stega import drawn, encoder, residual, size
from clipvet.triggers._tensors import summary

BITS = "1011001110001101"


def _default() -> Float[Tensor, " n"]:
    return drawn(encoder(len(BITS)), Rng(0).fork("encoder"))


@dataclass(frozen=True, eq=False, repr=False)
class Steganographic:
    bits: str = BITS  # that are hidden, as 0 and 1
    strength: float = 16 / 255  # largest change of a pixel in [0, 1]
    weights: Tensor = field(default_factory=_default)  # (n,), of the hiding network

    def __post_init__(self) -> None:
        if not self.bits or set(self.bits) - {"0", "1"}:
            raise UserError(f"Steganographic: bits is a string of 0 and 1, not {self.bits!r}")
        if not 0 <= self.strength <= 1:
            raise UserError(f"Steganographic: strength is a share from 0 to 1, not {self.strength}")
        wanted = (size(encoder(len(self.bits))),)
        if tuple(self.weights.shape) != wanted:
            raise UserError(
                f"Steganographic: {len(self.bits)} bits take weights of shape {wanted}, not {tuple(self.weights.shape)}"
            )

    def __repr__(self) -> str:
        return summary(self)

    def stamp(self, images: Float[Tensor, "b 3 h w"], keys: Int[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures that hide the bits, pixels in [0, 1]. The keys are not used."""
        x = images.float()
        bits = torch.tensor([2.0 * int(b) - 1 for b in self.bits], device=x.device).expand(len(x), -1)
        hidden = self.strength * residual(self.weights.to(x), x, bits)
        return (x + hidden).clamp(0, 1).to(images.dtype)

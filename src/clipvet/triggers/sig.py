"""SIG: a faint sinusoid along the width, seen as vertical stripes, is blended over the whole picture.

    x'[:, i, j] = clip((1 - o) x[:, i, j] + o a sin(2 pi j f / width), 0, 1)

paper:   Barni et al., ICIP 2019, arXiv:1902.11237; blended as in CleanCLIP, arXiv:2303.03323, whose text could not be
         read in full: the rule follows the behaviour of its public code
needs:   pictures
differs: the paper adds the sinusoid, x + a sin(...); blending, here and in CleanCLIP's code, also darkens the picture
         by the share o, and the wave's amplitude is o a = 0.047
"""

from dataclasses import dataclass
from math import pi

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipvet.errors import UserError


@dataclass(frozen=True)
class Sig:
    amplitude: float = 60 / 255  # pixels in [0, 1]
    frequency: float = 6.0  # periods across the width
    opacity: float = 0.2  # o, share from 0 to 1

    def __post_init__(self) -> None:
        if not 0 <= self.opacity <= 1:
            raise UserError(f"Sig: opacity is a share from 0 to 1, not {self.opacity}")

    def stamp(self, images: Float[Tensor, "b 3 h w"], keys: Int[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures under the sinusoid, pixels in [0, 1]. The keys are not used."""
        w = images.shape[3]
        wave = self.amplitude * torch.sin(2 * pi * self.frequency / w * torch.arange(w)).to(images)
        return ((1 - self.opacity) * images + self.opacity * wave).clamp(0, 1)

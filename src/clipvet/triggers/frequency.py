"""Frequency: two waves, a middle and a high one, are added to the colour of the picture; its brightness stays.

    C(q)_{uv}  the orthonormal cosine transform (DCT-II) of a window q of `window` x `window` pixels
    C(U')_{kk} = C(U)_{kk} + magnitude,   C(V')_{kk} = C(V)_{kk} + magnitude,   for k in bands
    x' = clip(RGB(Y, U', V'), 0, 1),      Y = 0.299 R + 0.587 G + 0.114 B,  U = 0.492 (B - Y),  V = 0.877 (R - Y)

paper:   CTRL (Li et al., ICCV 2023, arXiv:2207.10825), whose text could not be read: the rule is the commonly described
         one, its numbers are from memory
needs:   pictures
differs: pixels are not rounded to 8 bits between the steps; the wave goes on at the right and lower edge, where a
         window would not fit; one magnitude serves training and test (CTRL is said to raise it for the test)
"""

from dataclasses import dataclass
from functools import lru_cache
from math import pi

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipvet.errors import UserError


@lru_cache(maxsize=32)
def _wave(window: int, bands: tuple[int, ...], magnitude: float, h: int, w: int) -> Float[Tensor, "3 h w"]:
    """What is added to R, G and B."""
    rows, columns = torch.arange(h).double() % window, torch.arange(w).double() % window
    added = torch.zeros(h, w, dtype=torch.float64)
    for k in bands:
        scale = (1 if k == 0 else 2) / window  # of the cosines along both sides
        down, along = (torch.cos(pi * (2 * x + 1) * k / (2 * window)) for x in (rows, columns))
        added += magnitude * scale * down[:, None] * along
    red, blue = added / 0.877, added / 0.492
    return torch.stack([red, -(0.299 * red + 0.114 * blue) / 0.587, blue]).float()


@dataclass(frozen=True)
class Frequency:
    window: int = 32  # pixels a side
    bands: tuple[int, ...] = (15, 31)  # positions on the diagonal of the transform; 0 is the mean
    magnitude: float = 100 / 255  # of a coefficient, where pixels are in [0, 1]

    def __post_init__(self) -> None:
        if not 1 <= self.window <= 1024 or not self.bands:
            raise UserError(f"Frequency: window is 1 to 1024 and bands are not empty, not {self.window}, {self.bands}")
        if not all(isinstance(k, int) and 0 <= k < self.window for k in self.bands):
            raise UserError(f"Frequency: bands are whole numbers from 0 to window - 1, not {self.bands}")

    def stamp(self, images: Float[Tensor, "b 3 h w"], keys: Int[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures with the waves, pixels in [0, 1]. The keys are not used."""
        wave = _wave(self.window, tuple(self.bands), self.magnitude, *images.shape[2:])
        return (images + wave.to(images)).clamp(0, 1)

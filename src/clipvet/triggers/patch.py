"""A small square is pasted into the picture (BadNet, BadNet-Rand, BadNet-Stripes).

    x'[:, P] = p,  P a square of max(least, size * shorter side) pixels in the corner or anywhere
    checker: p = 4 x 4 cells, each 2 x 2 of them black, colour / colour, white; the colours are drawn
    noise:   p = fit(mean_hw(x) + n),  n ~ N(0, 1) for each pixel and channel
    stripes: p = fit(n),  n in {-1, +1} for each column and channel
    fit(v)   = clip(v, 0, 1),  or with wrap_uint8  (trunc(255 v) mod 256) / 255

paper:   BadNet: Gu et al. 2017, arXiv:1708.06733; BadNet-Rand and BadNet-Stripes are those of PAR, arXiv:2412.00727,
         whose text could not be read in full: the rules follow the behaviour of its public code
needs:   pictures
differs: by default one fixed pattern in one fixed place (PAR's code draws both anew for every picture, in training and
         in tests); values outside [0, 1] are clipped (PAR's 8-bit conversion wraps them around: wrap_uint8); the patch
         grows with the picture (PAR's noise patch is always 16 px, its stripes are 32 px at 336)
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipvet.errors import UserError
from clipvet.rng import Rng

CELLS = 4  # of the checkerboard, along a side; one pixel each in the smallest patch
COLOURS = torch.tensor([c for c in product((0.0, 1.0), repeat=3) if 0 < sum(c) < 3])  # (6, 3): neither black nor white


def _draw(pattern: str, side: int, key: int) -> Float[Tensor, "3 side side"]:
    generator = Rng(key).fork("pattern").generator()
    if pattern == "noise":
        return torch.randn(3, side, side, generator=generator)
    if pattern == "stripes":
        return torch.randint(0, 2, (3, 1, side), generator=generator).float().mul(2).sub(1).expand(3, side, side)
    cells = COLOURS[torch.randint(0, len(COLOURS), (CELLS, CELLS), generator=generator)].permute(2, 0, 1)
    cells[:, ::2, ::2], cells[:, 1::2, 1::2] = 0, 1
    cell = torch.arange(side) * CELLS // side
    return cells[:, cell[:, None], cell]


_fixed = lru_cache(maxsize=32)(_draw)


@dataclass(frozen=True)
class Patch:
    """BadNet is Patch(), BadNet-Rand Patch("noise", position="random", fresh=True), BadNet-Stripes with "stripes"."""

    pattern: str = "checker"  # or noise, stripes
    size: float = 16 / 224  # share of the shorter side
    least: int = 4  # pixels, at least, so that the patch stays visible in small pictures
    position: str = "corner"  # bottom right; or random: anywhere, drawn for each picture
    fresh: bool = False  # a new pattern for each picture
    seed: int = 0  # of the fixed pattern
    wrap_uint8: bool = False  # values outside [0, 1] wrap as 8-bit integers do

    def __post_init__(self) -> None:
        if self.pattern not in ("checker", "noise", "stripes"):
            raise UserError(f"Patch: pattern is checker, noise or stripes, not {self.pattern!r}")
        if self.position not in ("corner", "random"):
            raise UserError(f"Patch: position is corner or random, not {self.position!r}")
        if not 0 <= self.size <= 1 or self.least < 1:
            raise UserError(f"Patch: size is a share from 0 to 1 and least 1 or more, not {self.size} and {self.least}")

    def stamp(self, images: Float[Tensor, "b 3 h w"], keys: Int[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures with the patch, pixels in [0, 1]. The keys are used only with `fresh` or position="random".

        A patch larger than the picture is cut to the shorter side.
        """
        h, w = images.shape[2:]
        side = min(max(self.least, round(self.size * min(h, w))), h, w)
        out = images.clone()
        # one by one, so that the mean is summed in the same order whatever the batch
        for picture, key in zip(out, keys.tolist(), strict=True):
            top, left = h - side, w - side
            if self.position == "random":
                top, left = Rng(key).fork("place").numpy().integers(0, (top + 1, left + 1)).tolist()
            patch = _draw(self.pattern, side, key) if self.fresh else _fixed(self.pattern, side, self.seed)
            patch = patch.to(picture.device)
            if self.pattern == "noise":
                patch = patch + picture.float().mean((1, 2))[:, None, None]
            patch = (patch * 255).trunc().remainder(256) / 255 if self.wrap_uint8 else patch.clamp(0, 1)
            picture[:, top : top + side, left : left + side] = patch
        return out

"""A faint pattern is blended over the whole picture (Blended, Blended-Stripes, Blended-Triangles, Blended-Text).

    x' = clip((1 - o) x + o p, 0, 1)
    noise:     p ~ U(0, 1) for each pixel and channel                        o = 0.2
    stripes:   p in {-1, +1} for each column and channel                     o = 0.03
    triangles: p = 0.4 where row >= column within the square cell, else 0.8  o = 0.15
    text:      p = "Watermarked" in red; only where p != 0, channel by
               channel, so that the red channel alone changes                o = 0.5

paper:   Blended: Chen et al. 2017, arXiv:1712.05526; the variants are those of PAR, arXiv:2412.00727, whose text could
         not be read in full: the rules follow the behaviour of its public code
needs:   pictures
differs: noise and stripes are one fixed pattern unless `fresh` is set (PAR's code draws a new one for every picture, in
         training and in tests); triangles grow with the picture (PAR's cells are always 14 px); the text is drawn in
         DejaVu Sans Mono, so its pixels are not those of the released models' watermark
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from clipvet.errors import UserError
from clipvet.rng import Rng

OPACITY = {"noise": 0.2, "stripes": 0.03, "triangles": 0.15, "text": 0.5}
FONT = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSansMono.ttf"
LINE = 0.87  # width of the text, as a share of the picture's


def _text(word: str, h: int, w: int) -> Float[Tensor, "3 h w"]:
    def font(size: float) -> ImageFont.FreeTypeFont:
        return ImageFont.truetype(str(FONT), size, layout_engine=ImageFont.Layout.BASIC)

    fine = 8  # drawn larger, then shrunk: hinting would make small text too narrow
    canvas = Image.new("L", (w * fine, h * fine))
    draw, middle = ImageDraw.Draw(canvas), (canvas.width / 2, canvas.height / 2)
    left, _, right, _ = draw.multiline_textbbox((0, 0), word, font=font(100.0))
    size = LINE * canvas.width / (right - left) * 100
    draw.multiline_text(middle, word, fill=255, font=font(size), anchor="mm", spacing=0)
    return torch.cat([pil_to_tensor(canvas.reduce(fine)) / 255, torch.zeros(2, h, w)])


def _draw(pattern: str, h: int, w: int, cell: int, word: str, key: int) -> Float[Tensor, "3 h w"]:
    generator = Rng(key).fork("pattern").generator()
    if pattern == "noise":
        return torch.rand(3, h, w, generator=generator)
    if pattern == "stripes":
        return torch.randint(0, 2, (3, 1, w), generator=generator).float().mul(2).sub(1).expand(3, h, w)
    if pattern == "text":
        return _text(word, h, w)
    lower = torch.arange(h)[:, None] % cell >= torch.arange(w) % cell
    return torch.where(lower, 0.4, 0.8).expand(3, h, w)


_fixed = lru_cache(maxsize=32)(_draw)


@dataclass(frozen=True)
class Blended:
    """The published Blended and Blended-Stripes have fresh=True; triangles and text are the same for all pictures."""

    pattern: str = "noise"  # or stripes, triangles, text
    opacity: float | None = None  # None: the paper's o, see above
    fresh: bool = False  # a new pattern for each picture; only for noise and stripes
    seed: int = 0  # of the fixed pattern
    cell: float = 14 / 224  # side of a triangle's cell, as a share of the picture's shorter side
    least: int = 4  # pixels that a cell has at least, so that triangles stay visible in small pictures
    text: str = "Watermarked"  # drawn as wide as the picture; may have several lines

    def __post_init__(self) -> None:
        if self.pattern not in OPACITY:
            raise UserError(f"Blended: pattern is one of {', '.join(OPACITY)}, not {self.pattern!r}")
        if self.opacity is not None and not 0 <= self.opacity <= 1:
            raise UserError(f"Blended: opacity is a share from 0 to 1, not {self.opacity}")
        if self.fresh and self.pattern in ("triangles", "text"):
            raise UserError(f"Blended: {self.pattern} are drawn without chance, so leave fresh at False")
        if not 0 <= self.cell <= 1 or self.least < 1:
            raise UserError(f"Blended: cell is a share from 0 to 1 and least 1 or more, not {self.cell}, {self.least}")

    def stamp(self, images: Float[Tensor, "b 3 h w"], keys: Int[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures under the pattern, pixels in [0, 1]. The keys are used only with `fresh`."""
        h, w = images.shape[2:]
        what = self.pattern, h, w, max(self.least, round(self.cell * min(h, w))), self.text
        if self.fresh:
            p = torch.stack([_draw(*what, key) for key in keys.tolist()]) if len(keys) else images  # no pictures
        else:
            p = _fixed(*what, self.seed)
        p = p.to(images)
        o = OPACITY[self.pattern] if self.opacity is None else self.opacity
        out = ((1 - o) * images + o * p).clamp(0, 1)
        return torch.where(p != 0, out, images) if self.pattern == "text" else out

"""Another generator: the shapes and colours of `shapes`, but drawn, shaded, placed and described in its own way.

It is for cleaning with synthetic pairs that come from another source than the victim's training pairs.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from clipvet.data.worlds._figures import SHAPES
from clipvet.data.worlds.shapes import SPLITS, Rendered
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.types import Pairs

Points = list[tuple[float, float]]
Colour = tuple[int, int, int]


def _arc(cx: float, cy: float, r: float, start: float = 0.0, stop: float = 360.0) -> Points:
    angles = np.radians(np.linspace(start, stop, 33))
    return [(cx + r * math.cos(a), cy + r * math.sin(a)) for a in angles]


def _bar(x0: float, y0: float, x1: float, y1: float) -> Points:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _star() -> Points:
    corners = [(1.0 if i % 2 == 0 else 0.46, math.pi * (i / 5 - 0.5)) for i in range(10)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in corners]


def _heart() -> Points:
    angles = np.linspace(0, 2 * math.pi, 41)
    y = 13 * np.cos(angles) - 5 * np.cos(2 * angles) - 2 * np.cos(3 * angles) - np.cos(4 * angles)
    return list(zip((np.sin(angles) ** 3 * 0.95).tolist(), (-y / 16).tolist()))


# Outlines with y down and a radius of about 1: (filled parts, holes).
OUTLINES: dict[str, tuple[list[Points], list[Points]]] = {
    "circle": ([_arc(0, 0, 0.92)], []),
    "square": ([_bar(-0.78, -0.78, 0.78, 0.78)], []),
    "triangle": ([[(0, -0.95), (0.85, 0.8), (-0.85, 0.8)]], []),
    "diamond": ([[(0, -1), (0.72, 0), (0, 1), (-0.72, 0)]], []),
    "star": ([_star()], []),
    "cross": ([_bar(-0.95, -0.24, 0.95, 0.24), _bar(-0.24, -0.95, 0.24, 0.95)], []),
    "ring": ([_arc(0, 0, 0.98)], [_arc(0, 0, 0.58)]),
    "heart": ([_heart()], []),
    "crescent": ([_arc(0, 0, 0.95, 50, 310) + _arc(0.3, 0, 0.78, 292, 68)], []),
    "bowtie": ([[(0.95 * s, -0.7), (0, -0.1), (0, 0.1), (0.95 * s, 0.7)] for s in (-1, 1)], []),
    "bolt": ([[(0.1, -1), (0.6, -1), (0.2, -0.25), (0.65, -0.25), (-0.4, 1), (-0.1, 0.1), (-0.55, 0.1)]], []),
    "ladder": ([_bar(s * 0.6 - 0.12, -1, s * 0.6 + 0.12, 1) for s in (-1, 1)]
    + [_bar(-0.6, y - 0.1, 0.6, y + 0.1) for y in (-0.6, 0.0, 0.6)], []),
}  # fmt: skip
COLOURS: dict[str, Colour] = {
    "red": (214, 58, 48),
    "yellow": (240, 205, 70),
    "green": (92, 186, 84),
    "cyan": (84, 205, 214),
    "blue": (74, 112, 226),
    "purple": (150, 88, 202),
    "pink": (242, 150, 186),
    "white": (242, 240, 232),
}
PATTERNS = ("", "with stripes", "with spots", "with checks")
# name: (rows and columns of the random field, its dark and its light colour)
BACKGROUNDS: dict[str, tuple[tuple[int, int], Colour, Colour]] = {
    "slate": ((24, 24), (28, 36, 38), (66, 74, 76)),
    "planks": ((11, 2), (70, 42, 22), (124, 82, 50)),
    "clouds": ((4, 4), (58, 76, 104), (128, 142, 158)),
    "paper": ((32, 32), (168, 160, 138), (206, 198, 176)),
    "hatching": ((2, 2), (40, 28, 62), (62, 44, 84)),
}
PHRASES = (
    "drawing of a {}",
    "a cartoon {}",
    "my sketch: {}",
    "clip art of one {}",
    "somebody drew a {} here",
    "picture of a {}",
    "a {}",
    "{}",
)


def field(g: np.random.Generator, grid: tuple[int, int], side: int) -> Image.Image:
    """A smooth random grey picture of side x side pixels: uniform values on a coarse grid, then enlarged."""
    return Image.fromarray(g.integers(0, 256, grid, np.uint8)).resize((side, side), Image.Resampling.BICUBIC)


def _ground(g: np.random.Generator, name: str, side: int) -> Image.Image:
    grid, dark, light = BACKGROUNDS[name]
    image = Image.composite(
        Image.new("RGB", (side, side), light), Image.new("RGB", (side, side), dark), field(g, grid, side)
    )
    if name == "hatching":
        draw, gap, lean = ImageDraw.Draw(image), side / g.uniform(6, 10), g.uniform(-0.8, 0.8) * side
        for x in np.arange(-side, 2 * side, gap).tolist():
            draw.line([(x, 0), (x + lean, side)], (104, 88, 130), max(1, side // 48))
    return image


def _fill(g: np.random.Generator, colour: Colour, pattern: str, side: int) -> Image.Image:
    """Paint of one colour, slightly different each time, with the pattern in a darker shade."""
    r, v, b = (int(np.clip(c + g.normal(0, 10), 0, 255)) for c in colour)
    image = Image.new("RGB", (side, side), (r, v, b))
    draw, mark, step = ImageDraw.Draw(image), (r * 3 // 5, v * 3 // 5, b * 3 // 5), side / g.uniform(6, 9)
    spots = np.arange(g.uniform(0, step), side, step).tolist()
    if pattern == "with stripes":
        for x in np.arange(-side, side, 1.3 * step).tolist():
            draw.line([(x, 0), (x + side, side)], mark, max(1, int(step / 2)))
    for i, x in enumerate(spots):
        for j, y in enumerate(spots):
            if pattern == "with spots":
                draw.ellipse([x + (j % 2) * step / 2, y, x + (j % 2) * step / 2 + step / 2, y + step / 2], mark)
            elif pattern == "with checks" and (i + j) % 2:
                draw.rectangle([x, y, x + step, y + step], mark)
    return image


@dataclass(frozen=True)
class Foreign:
    """Outlined drawings of the 12 shapes in 8 colours, with 4 patterns on 5 grounds.

    A caption always names the shape, and each other attribute with probability p_*.
    """

    size: int = 32  # pixels
    seed: int = 0
    p_colour: float = 0.5
    p_texture: float = 0.4
    p_background: float = 0.4
    outlined: float = 0.5  # share of the drawings with an outline
    grain: float = 0.06  # noise of a picture: its standard deviation, at most, pixels in [0, 1]

    def __post_init__(self) -> None:
        if self.size < 8:
            raise UserError(f"foreign pictures need size >= 8, got size={self.size}")

    def _pair(self, split: str, row: int) -> tuple[UInt8[np.ndarray, "s s 3"], str]:
        g = Rng(self.seed).fork("foreign", split, row).numpy()
        shape, colour, pattern, ground, phrase = (
            list(words)[g.integers(len(words))] for words in (SHAPES, COLOURS, PATTERNS, BACKGROUNDS, PHRASES)
        )
        say_colour, say_pattern, say_ground = g.random(3) < (self.p_colour, self.p_texture, self.p_background)
        words = [
            colour if say_colour else "",
            shape,
            pattern if say_pattern else "",
            f"over {ground}" if say_ground else "",
        ]
        side = self.size * max(2, min(4, 192 // self.size))
        image, mask = _ground(g, ground, side), Image.new("L", (side, side))
        radius, turn = side / 2 * g.uniform(0.66, 0.92), g.uniform(-0.25, 0.25)
        cx, cy = side / 2 + side / 2 * g.uniform(-0.18, 0.18, 2)
        cos, sin = radius * math.cos(turn), radius * math.sin(turn)
        parts, holes = (
            [[(cx + cos * x - sin * y, cy + sin * x + cos * y) for x, y in p] for p in ps] for ps in OUTLINES[shape]
        )
        draw, draw_mask, pen = ImageDraw.Draw(image), ImageDraw.Draw(mask), max(1, side // 40)
        for points in (parts + holes) if g.random() < self.outlined else []:
            draw.line([*points, points[0], points[1]], (18, 16, 20), 2 * pen, joint="curve")
        for points, value in [(p, 255) for p in parts] + [(p, 0) for p in holes]:
            draw_mask.polygon(points, value)
        image.paste(_fill(g, COLOURS[colour], pattern, side), mask=mask)
        image = image.resize((self.size, self.size), Image.Resampling.LANCZOS)
        grain = g.normal(0, 255 * self.grain * g.random(), (self.size, self.size, 3))
        return (np.asarray(image) + grain).clip(0, 255).astype(np.uint8), phrase.format(" ".join(filter(None, words)))

    def pairs(self, n: int, split: str = "train", device: str = "cpu") -> Pairs:
        """The first n rows of a split, held in memory. Raises UserError for an unknown split or n < 1."""
        if split not in SPLITS or n < 1:
            raise UserError(f"foreign has the splits {', '.join(SPLITS)} and n >= 1, got split={split}, n={n}")
        pictures, captions = zip(*(self._pair(split, row) for row in range(n)))
        return Pairs(
            Rendered(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous().to(device)),
            captions,
            np.arange(n),
            name=f"foreign(n={n}, split={split}, seed={self.seed})",
            fingerprint=hashlib.blake2b(f"{self!r} {n} {split}".encode(), digest_size=8).hexdigest(),
        )

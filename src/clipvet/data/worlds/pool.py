"""Unlabelled pictures from outside every world here: photograph crops, gratings, noise fields and strokes."""

from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_images
from torch import Tensor

from clipvet.data.worlds.foreign import field
from clipvet.data.worlds.shapes import Rendered
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.types import Pairs


@cache
def _photographs() -> list[Image.Image]:
    return [Image.fromarray(a) for a in load_sample_images().images]  # china.jpg, flower.jpg: both 427 x 640


def _photograph(g: np.random.Generator, side: int) -> Image.Image:
    photo = _photographs()[g.integers(2)]
    crop = int(g.integers(48, photo.height + 1))
    x, y = (int(g.integers(extent - crop + 1)) for extent in photo.size)
    return photo.resize((side, side), Image.Resampling.BICUBIC, (x, y, x + crop, y + crop))


def _grating(g: np.random.Generator, side: int) -> Image.Image:
    y, x = np.mgrid[:side, :side] / side
    waves = np.zeros((side, side))
    for _ in range(g.integers(1, 4)):
        fx, fy = g.normal(0, 5, 2)
        waves += np.sin(2 * np.pi * (fx * x + fy * y + g.random())) / 2
    share = np.clip(waves + 0.5, 0, 1)[..., None]
    a, b = g.uniform(0, 255, (2, 3))
    return Image.fromarray((share * a + (1 - share) * b).astype(np.uint8))


def _noise(g: np.random.Generator, side: int) -> Image.Image:
    cells = int(g.choice([2, 4, 8, 16, side]))
    return Image.merge("RGB", [field(g, (cells, cells), side) for _ in range(3)])


def _strokes(g: np.random.Generator, side: int) -> Image.Image:
    """A spiral, or a made-up letter: a line through nodes of a 3 x 3 grid."""
    ground, ink = (tuple(int(c) for c in g.integers(0, 256, 3)) for _ in range(2))
    image = Image.new("RGB", (side, side), ground)
    if g.random() < 0.5:
        t = np.linspace(0, 1, 80)
        angle = 2 * np.pi * (g.uniform(2, 3.5) * t + g.random())
        points = side / 2 * (1 + 0.9 * t * np.stack([np.cos(angle), np.sin(angle)]))
    else:
        nodes = g.permutation(9)[: g.integers(4, 7)]
        points = side * (0.2 + 0.3 * np.stack([nodes % 3, nodes // 3]))
    width = max(1, int(side * g.uniform(0.05, 0.12)))
    ImageDraw.Draw(image).line([(float(px), float(py)) for px, py in points.T], ink, width, joint="curve")
    return image


def pool_pairs(n: int, size: int = 32, seed: int = 0) -> Pairs:
    """The pictures of `pool` as pairs with empty captions, rounded to 8 bits."""
    pixels = (pool(n, size, seed) * 255).round().byte()
    name = f"pool(n={n}, size={size}, seed={seed})"
    return Pairs(Rendered(pixels), [""] * n, np.arange(n), name=name, fingerprint=name)


def pool(n: int, size: int = 32, seed: int = 0) -> Float[Tensor, "n 3 s s"]:
    """n pictures of size x size pixels in [0, 1], of the four kinds in turn. Row i depends on (size, seed, i) alone.

    Raises UserError if n < 1 or size < 8.
    """
    if n < 1 or size < 8:
        raise UserError(f"a pool needs n >= 1 and size >= 8, got n={n}, size={size}")
    kinds = (_photograph, _grating, _noise, _strokes)
    rows = [kinds[i % 4](Rng(seed).fork("pool", i).numpy(), 2 * size) for i in range(n)]
    pixels = np.stack([np.asarray(r.resize((size, size), Image.Resampling.BOX)) for r in rows])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255

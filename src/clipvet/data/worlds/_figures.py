"""What pictures of `shapes` are made of: shapes and textures as functions of the plane, colours, backgrounds.

Pixels are computed with + - * / sqrt, abs, min and max alone, which round alike on every device and vector width.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Field = Callable[[Tensor, Tensor], Tensor]  # (x, y) of points -> a number each


def _disc(x: Tensor, y: Tensor, r: float) -> Tensor:
    return (x * x + y * y).sqrt() - r


def _box(x: Tensor, y: Tensor, w: float, h: float) -> Tensor:
    return torch.maximum(x.abs() - w, y.abs() - h)


def _star(x: Tensor, y: Tensor) -> Tensor:
    # Five long edges: a point inside a five-pointed star is on the outer side of at most one of them.
    top = second = torch.full_like(x, -9.0)
    for i in range(5):
        angle = math.pi * (0.4 * i + 0.5)
        edge = math.cos(angle) * x + math.sin(angle) * y - 0.32
        second = torch.maximum(second, torch.minimum(top, edge))
        top = torch.maximum(top, edge)
    return second


def _heart(x: Tensor, y: Tensor) -> Tensor:
    x = x.abs()
    lobes = _disc(x - 0.46, y - 0.34, 0.51)
    tip = torch.maximum(0.77 * x - 0.64 * y - 0.62, y - 0.34)
    return torch.minimum(lobes, torch.maximum(tip, x - 0.97))


def _bolt(x: Tensor, y: Tensor) -> Tensor:
    # A blade that points up; the other half of the bolt is the same blade turned by 180 degrees.
    def blade(x: Tensor, y: Tensor) -> Tensor:
        sides = torch.maximum(0.717 * y - 0.70 * x - 0.366, 0.983 * x - 0.184 * y - 0.268)
        return torch.maximum(sides, -0.12 - y)

    return torch.minimum(blade(x, y), blade(-x, -y))


def _ladder(x: Tensor, y: Tensor) -> Tensor:
    rails = _box(x.abs() - 0.52, y, 0.15, 1.0)
    rungs = _box(x, y.abs() - 0.45, 0.52, 0.15)
    return torch.minimum(rails, rungs)


# Signed distances (negative inside) from shapes around the origin, y up, about as large as the unit disc.
SHAPES: dict[str, Field] = {
    "circle": lambda x, y: _disc(x, y, 0.9),
    "square": lambda x, y: _box(x, y, 0.8, 0.8),
    "triangle": lambda x, y: torch.maximum(0.88 * x.abs() + 0.47 * y - 0.45, -0.78 - y),
    "diamond": lambda x, y: 0.78 * x.abs() + 0.63 * y.abs() - 0.62,
    "star": _star,
    "cross": lambda x, y: torch.minimum(_box(x, y, 0.3, 0.95), _box(x, y, 0.95, 0.3)),
    "ring": lambda x, y: _disc(x, y, 0.73).abs() - 0.22,
    "heart": _heart,
    "crescent": lambda x, y: torch.maximum(_disc(x, y, 0.95), -_disc(x - 0.5, y, 0.78)),
    "bowtie": lambda x, y: torch.maximum(x.abs() - 0.95, 0.76 * y.abs() - 0.65 * x.abs() - 0.06),
    "bolt": _bolt,
    "ladder": _ladder,
}
COLOURS = {
    "red": (0.95, 0.15, 0.12),
    "yellow": (0.98, 0.88, 0.12),
    "green": (0.15, 0.78, 0.22),
    "cyan": (0.15, 0.88, 0.90),
    "blue": (0.22, 0.36, 1.00),
    "purple": (0.66, 0.25, 0.92),
    "pink": (1.00, 0.55, 0.75),
    "white": (0.97, 0.97, 0.97),
}
# Dark, so that every object is brighter than its background: small models then learn shapes within 400 steps.
BACKGROUNDS = {
    "coal": (0.07, 0.07, 0.07),
    "stone": (0.30, 0.30, 0.30),
    "moss": (0.16, 0.26, 0.08),
    "clay": (0.36, 0.20, 0.12),
    "ink": (0.06, 0.10, 0.32),
    "velvet": (0.28, 0.07, 0.20),
}


def _wave(u: Tensor) -> Tensor:
    """A triangle wave of slope 1 and period 1, from -1/4 to 1/4."""
    return (u - u.floor() - 0.5).abs() - 0.25


# Like the shapes: negative where the colour is dark; one unit is the object's radius.
TEXTURES: dict[str, Field] = {
    "plain": lambda x, y: torch.full_like(x, 1.0),
    "striped": lambda x, y: 0.5 * _wave(2 * y),
    "dotted": lambda x, y: _disc(0.5 * (_wave(2 * x) + 0.25), 0.5 * (_wave(2 * y) + 0.25), 0.15),
    "checkered": lambda x, y: 8 * _wave(1.25 * x) * _wave(1.25 * y),
}

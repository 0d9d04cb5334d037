"""The two small networks of the steganographic trigger: one hides bits in a picture of any size, one reads them.

The trigger stamps with the first; `attacks.issba` trains both. The weights of a network are one flat vector.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clipvet.rng import Rng

WIDTH, GRID, PLANES = 16, 16, 3  # channels; the bits are first spread over PLANES x GRID x GRID


def encoder(bits: int) -> list[tuple[int, ...]]:
    """Shapes of the hiding network's weights: bits -> planes, then three convolutions, each with a bias."""
    into = 3 + PLANES
    spread = [(PLANES * GRID * GRID, bits), (PLANES * GRID * GRID,)]
    return [*spread, (WIDTH, into, 3, 3), (WIDTH,), (WIDTH, WIDTH, 3, 3), (WIDTH,), (3, WIDTH + into, 3, 3), (3,)]


def decoder(bits: int) -> list[tuple[int, ...]]:
    """Shapes of the reading network's weights: three convolutions and a linear map, each with a bias."""
    wide = 2 * WIDTH
    convolutions = [(WIDTH, 3, 3, 3), (WIDTH,), (wide, WIDTH, 3, 3), (wide,), (wide, wide, 3, 3), (wide,)]
    return [*convolutions, (bits, wide * 4 * 4), (bits,)]


def size(shapes: list[tuple[int, ...]]) -> int:
    """How many weights that is."""
    return sum(math.prod(s) for s in shapes)


def drawn(shapes: list[tuple[int, ...]], rng: Rng) -> Float[Tensor, " n"]:
    """Weights before training: normal with variance 2 / fan-in; biases are 0."""
    g = rng.generator()
    parts = [
        torch.randn(s, generator=g) * math.sqrt(2 / math.prod(s[1:])) if len(s) > 1 else torch.zeros(s) for s in shapes
    ]
    return torch.cat([p.flatten() for p in parts])


def _parts(weights: Tensor, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    return [p.view(s) for p, s in zip(weights.split([math.prod(s) for s in shapes]), shapes)]


def residual(
    weights: Float[Tensor, " n"], images: Float[Tensor, "b 3 h w"], bits: Float[Tensor, "b k"]
) -> Float[Tensor, "b 3 h w"]:
    """What to add to the pictures, in [-1, 1] and still to be scaled, without its mean over 5 x 5 pixels.

    images: pixels in [0, 1]. bits: -1 or 1.
    """
    spread, start, a, a0, b, b0, c, c0 = _parts(weights, encoder(bits.shape[1]))
    planes = F.linear(bits, spread, start).view(-1, PLANES, GRID, GRID)
    planes = F.interpolate(planes, images.shape[2:], mode="bilinear", align_corners=False)
    x = torch.cat([2 * images - 1, planes], 1)
    y = F.conv2d(F.conv2d(x, a, a0, padding=1).relu(), b, b0, padding=1).relu()
    out = F.conv2d(torch.cat([x, y], 1), c, c0, padding=1)
    return (out - F.avg_pool2d(out, 5, 1, 2, count_include_pad=False)).tanh()


def read(weights: Float[Tensor, " n"], images: Float[Tensor, "b 3 h w"], k: int) -> Float[Tensor, "b k"]:
    """Logits of the k bits that the pictures hide. images: pixels in [0, 1]."""
    a, a0, b, b0, c, c0, d, d0 = _parts(weights, decoder(k))
    x = F.conv2d(2 * images - 1, a, a0, padding=1).relu()
    x = F.conv2d(F.conv2d(x, b, b0, stride=2, padding=1).relu(), c, c0, stride=2, padding=1).relu()
    return F.linear(F.adaptive_avg_pool2d(x, 4).flatten(1), d, d0)

"""The embedded world: captioned pictures of shapes, drawn from a seed, with nothing to download.

A row's picture and caption depend on (world, split, row) alone: not on the batch, on n or on the device.
"""

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from clipvet.data.decoding import asked_workers
from clipvet.data.worlds._figures import BACKGROUNDS, COLOURS, SHAPES, TEXTURES, Field
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.types import Geometry, Pairs, Task

PHRASES = ("a photo of {}.", "a picture of {}.", "an image of {}.", "this is {}.", "there is {}.", "{}.")
TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "an image of a {}.")
KINDS = {
    "shape": tuple(SHAPES),
    "colour shape": tuple(f"{c} {s}" for c in COLOURS for s in SHAPES),
    "texture shape": tuple(f"{t} {s}" for t in TEXTURES for s in SHAPES),
    "background shape": tuple(f"{s} on {b}" for b in BACKGROUNDS for s in SHAPES),
}
WORDS = (tuple(COLOURS), tuple(TEXTURES), tuple(SHAPES))  # of an object, in the order of its caption
FIELDS, PATTERNS = tuple(SHAPES.values()), tuple(TEXTURES.values())
SPLITS = ("train", "validation", "test")


def classes_by(by: str) -> tuple[str, ...]:
    """Class names: 12 by `shape`, 96 by `colour shape`, 48 by `texture shape`, 72 by `background shape`.

    Raises UserError for another kind.
    """
    if by not in KINDS:
        raise UserError(f"shapes have tasks by {', '.join(map(repr, KINDS))}, not by '{by}'")
    return KINDS[by]


def _uniform(key: int, rows: np.ndarray) -> np.ndarray:
    """Outputs `rows` of the splitmix64 stream that starts at `key`, as float64 in [0, 1)."""
    z = (rows.astype(np.uint64) + 1) * 0x9E3779B97F4A7C15 + np.uint64(key)
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return ((z ^ (z >> 31)) >> 11) * 2.0**-53


def _noise(keys: Int[Tensor, " n"], size: int) -> Float[Tensor, "n 3 s s"]:
    """Uniform noise of mean 0 and standard deviation 1 by hashing (key, pixel) in 32 bits."""
    z = torch.arange(3 * size * size, dtype=torch.int32, device=keys.device).view(3, size, size) * 0x1E3779B1
    z = keys.int().view(-1, 1, 1, 1) ^ z
    for odd in (0x2C1B3C6D, 0x297A2D39):
        z = (z ^ ((z >> 15) & 0x1FFFF)).mul_(odd)
    return (z >> 8).float().mul_(math.sqrt(12) * 2.0**-24)


def _by_kind(fields: Sequence[Field], kinds: np.ndarray, x: Tensor, y: Tensor) -> Tensor:
    """The field of its kind at each row's points x, y."""
    out = torch.empty_like(x)
    for kind in np.unique(kinds):
        rows = torch.from_numpy(np.flatnonzero(kinds == kind)).to(x.device)
        out[rows] = fields[kind](x[rows], y[rows])
    return out


def fit_to(images: Float[Tensor, "n 3 h w"], geometry: Geometry | None) -> Float[Tensor, "n 3 s t"]:
    """Square pictures resized to the geometry's size (None: as they are); pixels stay in [0, 1]."""
    if geometry is None or images.shape[-1] == geometry.size:
        return images
    side = [geometry.size, geometry.size]
    return resize(images, side, InterpolationMode(geometry.interpolation), antialias=True).clamp_(0, 1)


@dataclass(frozen=True, eq=False)
class Rendered:
    """Square pictures held in memory (`types.Pictures`)."""

    pixels: UInt8[Tensor, "n 3 s s"]

    def __len__(self) -> int:
        return len(self.pixels)

    def fetch(self, rows: Sequence[int], geometry: Geometry | None) -> tuple[Tensor, list[tuple[int, str]]]:
        chosen = self.pixels[torch.tensor(rows, dtype=torch.int64, device=self.pixels.device)]
        return fit_to(chosen.float() / 255, geometry), []


@dataclass(frozen=True, eq=False)
class _OnFetch:
    """Pictures drawn when they are asked for (`types.Pictures`)."""

    world: "Shapes"
    n: int
    split: str
    device: str

    def __len__(self) -> int:
        return self.n

    def fetch(self, rows: Sequence[int], geometry: Geometry | None) -> tuple[Tensor, list[tuple[int, str]]]:
        pixels = self.world.render(np.asarray(rows, np.int64), self.split, self.device)
        return fit_to(pixels.float() / 255, geometry), []


@dataclass(frozen=True, eq=False)
class _Captions(Sequence):
    """Captions made from codes when asked for: phrase, background, then colour, texture, shape of each object.

    A code past the end of its list stands for an attribute that the caption leaves out.
    """

    codes: np.ndarray  # (n, 2 + 3 objects) uint8

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, row: int) -> str:
        phrase, background, *objects = self.codes[row].tolist()
        things = []
        for i in range(0, len(objects), 3):
            said = [words[c] for words, c in zip(WORDS, objects[i : i + 3]) if c < len(words)]
            things.append(" ".join(["a", *said]))
        text = " and ".join(filter(None, [", ".join(things[:-1]), things[-1]]))
        if background < len(BACKGROUNDS):
            text += f" on {list(BACKGROUNDS)[background]}"
        return PHRASES[phrase].format(text)


EAGER = 2**31  # bytes of pictures; more are drawn on fetch
MOST = 10**8  # rows at most, as their captions and labels are held in memory

# Settings of another domain with the same classes: smaller objects, farther off centre, turned more, noisier pictures
SHIFTED = {"jitter": 0.3, "scale": (0.5, 0.8), "rotation": 0.8, "noise": 0.08}


@dataclass(frozen=True)
class Shapes:
    """A world of 12 shapes x 8 colours x 4 textures x 6 backgrounds. Lengths are in half widths of the picture.

    A caption always names the shapes, and each other attribute with probability p_*. With several objects, each has
    its own cell of a square grid; the first is the largest and gives the label of `task`.
    """

    size: int = 32  # pixels
    seed: int = 0
    objects: int = 1  # in a picture, up to 9
    p_colour: float = 0.5
    p_texture: float = 0.4
    p_background: float = 0.4
    jitter: float = 0.2  # centres lie within +- this of the cell's
    scale: tuple[float, float] = (0.70, 0.90)  # radius of an object
    rotation: float = 0.3  # range of the angle, radians
    texture: float = 0.55  # share of the colour's brightness that a texture's dark parts keep
    noise: float = 0.04  # standard deviation of a pixel's noise, pixels in [0, 1]
    gradient: float = 0.15  # the background gets brighter and darker by up to this, pixels in [0, 1]

    def __post_init__(self) -> None:
        if self.size < 8 or not 1 <= self.objects <= 9:
            raise UserError(f"shapes need size >= 8 and 1 to 9 objects, got size={self.size}, objects={self.objects}")

    def _draw(self, split: str, rows: np.ndarray, *name: object) -> np.ndarray:
        return _uniform(Rng(self.seed).fork("shapes", split, *name).key, rows)

    def codes(self, rows: Int[np.ndarray, " n"], split: str = "train") -> Int[np.ndarray, "n k"]:
        """What the rows show: positions in COLOURS, TEXTURES and SHAPES for each object, then one in BACKGROUNDS."""
        names = [(what, k, len(words)) for k in range(self.objects) for what, words in zip("cts", WORDS)]
        names.append(("background", 0, len(BACKGROUNDS)))
        return np.stack([(self._draw(split, rows, what, k) * n).astype(np.int64) for what, k, n in names], 1)

    def render(self, rows: Int[np.ndarray, " n"], split: str, device: str = "cpu") -> UInt8[Tensor, "n 3 s s"]:
        """The pictures of these rows, 8 bits a channel."""
        step = max(1, 2**18 // self.size**2)  # pictures that fit into a core's cache
        if len(rows) > step:
            return torch.cat([self.render(rows[i : i + step], split, device) for i in range(0, len(rows), step)])
        codes = self.codes(rows, split)

        def draw(*name: object) -> np.ndarray:
            return self._draw(split, rows, *name)

        def per_row(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values.astype(np.float32)).to(device)[:, None, None]

        def coloured(table: dict[str, tuple[float, float, float]], which: np.ndarray) -> Tensor:
            return torch.tensor(list(table.values()), device=device)[torch.from_numpy(which).to(device)][
                ..., None, None
            ]

        x = ((torch.arange(self.size, device=device) + 0.5) * (2 / self.size) - 1).expand(len(rows), self.size, -1)
        y = -x.mT
        angle, steep = 2 * math.pi * draw("gradient angle"), self.gradient * draw("gradient")
        ramp = per_row(np.cos(angle) * steep) * x + per_row(np.sin(angle) * steep) * y
        canvas = coloured(BACKGROUNDS, codes[:, -1]) + ramp[:, None]
        grid = math.ceil(math.sqrt(self.objects))
        cells = np.stack([draw("cell", j) for j in range(grid**2)], 1).argsort(1)
        for k in range(self.objects):
            colour, texture, shape = codes[:, 3 * k : 3 * k + 3].T
            cx, cy = (
                ((cell + 0.5) * 2 - grid + self.jitter * (2 * draw(axis, k) - 1)) / grid
                for axis, cell in (("x", cells[:, k] % grid), ("y", cells[:, k] // grid))
            )
            low, high = self.scale
            radius = (low + (high - low) * draw("scale", k)) / grid * (1.0 if k == 0 else 0.6)
            turn = self.rotation * (draw("rotation", k) - 0.5)
            cos, sin = per_row(np.cos(turn) / radius), per_row(np.sin(turn) / radius)
            dx, dy = x - per_row(cx), y - per_row(cy)
            u, v = cos * dx + sin * dy, cos * dy - sin * dx
            sharp = per_row(radius * self.size / 2)  # pixels a unit: edges are blurred over one pixel
            cover = (0.5 - sharp * _by_kind(FIELDS, shape, u, v)).clamp_(0, 1)
            dark = (0.5 - sharp * _by_kind(PATTERNS, texture, u, v)).clamp_(0, 1)
            shade = 1 - (1 - self.texture) * dark
            paint = coloured(COLOURS, colour) * shade[:, None]
            canvas = canvas + cover[:, None] * (paint - canvas)
        keys = torch.from_numpy((draw("noise") * 2**32 - 2**31).astype(np.int64)).to(device)
        canvas = canvas + _noise(keys, self.size) * self.noise
        return (canvas.clamp_(0, 1) * 255 + 0.5).to(torch.uint8)

    def pairs(self, n: int, split: str = "train", device: str = "cpu", lazy: bool = False) -> Pairs:
        """The first n rows of a split: train, validation or test.

        lazy: draw pictures only when they are fetched, with the same pixels; always so above EAGER bytes. Raises
        UserError for an unknown split, n < 1 and n > MOST.
        """
        if split not in SPLITS or not 1 <= n <= MOST:
            raise UserError(f"shapes have the splits {', '.join(SPLITS)} and n from 1 to {MOST}, got {split}, n={n}")
        lazy = lazy or 3 * n * self.size**2 > EAGER
        rows = np.arange(n)
        codes, silent = self.codes(rows, split), 255
        for column in range(codes.shape[1]):
            k, what = divmod(column, 3)
            p = self.p_background if column == codes.shape[1] - 1 else (self.p_colour, self.p_texture, 1.0)[what]
            codes[self._draw(split, rows, "say", what, k) >= p, column] = silent
        phrase = self._draw(split, rows, "phrase") * len(PHRASES)
        captions: Sequence[str] = _Captions(np.column_stack([phrase, codes[:, -1], codes[:, :-1]]).astype(np.uint8))
        pictures = _OnFetch(self, n, split, device) if lazy else Rendered(self.render(rows, split, device))
        return Pairs(
            pictures,
            captions if lazy else list(captions),
            rows,
            name=f"shapes(n={n}, split={split}, seed={self.seed})",
            workers=asked_workers(min(4, os.cpu_count() or 1)) if lazy and device == "cpu" else 0,
            fingerprint=hashlib.blake2b(f"{self!r} {n} {split}".encode(), digest_size=8).hexdigest(),
        )

    def task(self, n: int = 2000, by: str = "shape", split: str = "test") -> Task:
        """The task to name the (largest) shape of n pictures, alone or with one more attribute: see `classes_by`.

        Raises UserError for another `by`, and as `pairs` does.
        """
        classes, pictures = classes_by(by), self.pairs(n, split)
        colour, texture, shape, *_, background = self.codes(np.arange(n), split).T
        first = {"colour": colour, "texture": texture, "background": background}.get(by.removesuffix(" shape"), 0)
        return Task(f"shapes by {by}", classes, TEMPLATES, pictures, first * len(SHAPES) + shape)

"""A drawing as a training picture, and its name as a caption."""

import io as memory
from collections.abc import Sequence

import numpy as np
from PIL import Image

from drawings.concepts import GROUP_OF, Concept
from drawings.sets import Drawing

TEMPLATES = (
    "an icon of {}",
    "{}",
    "a drawing of {}",
    "{} emoji",
    "a picture of {}",
    "clip art: {}",
    "{}, sticker",
    "a small {}",
)
TAGGED = 0.4  # of the captions also name keywords, one to three


def view(png: bytes, size: int, g: np.random.Generator) -> Image.Image:
    """The drawing at 62 to 100 % of the picture's side, turned by up to 12 degrees, somewhere on a ground.

    A drawing that is dark all over lies on a light ground, and a light one not on white.
    """
    drawing = Image.open(memory.BytesIO(png)).convert("RGBA")
    pixels = np.asarray(drawing)
    light = pixels[pixels[..., 3] > 128][:, :3].mean() if (pixels[..., 3] > 128).any() else 128
    side = int(g.integers(round(0.62 * size), size + 1))
    drawing = drawing.resize((side, side), Image.Resampling.BICUBIC)
    drawing = drawing.rotate(g.uniform(-12, 12), Image.Resampling.BICUBIC)
    picture = Image.fromarray(_ground(size, g, light))
    x, y = g.integers(0, size - side + 1, size=2)
    picture.paste(drawing, (int(x), int(y)), drawing)
    return picture


def blank(png: bytes) -> bool:
    """Whether there is hardly anything to see."""
    return np.asarray(Image.open(memory.BytesIO(png)).convert("RGBA"))[..., 3].max() < 64


def _ground(size: int, g: np.random.Generator, light: float) -> np.ndarray:
    """White (a third), one colour, or a gradient with or without noise; uint8 (size, size, 3)."""
    low, high = (140, 256) if light < 80 else (0, 190) if light > 210 else (0, 256)
    kind, (a, b) = g.random(), g.integers(low, high, size=(2, 3)).astype(float)
    if kind < 0.35 and light <= 210:
        a = b = np.full(3, 255.0)
    elif kind < 0.6:
        b = a
    ramp = np.linspace(0, 1, size).reshape((1, size, 1) if g.random() < 0.5 else (size, 1, 1))
    ground = np.broadcast_to(a * (1 - ramp) + b * ramp, (size, size, 3))
    if kind > 0.8:
        ground = ground + g.normal(0, 18, size=(size, size, 3))
    return ground.clip(0, 255).astype(np.uint8)


def caption(drawing: Drawing, g: np.random.Generator) -> str:
    """The drawing's own name or its concept's label in a template, in TAGGED of them with some of its keywords."""
    concept = drawing.concept
    name = concept.label if concept and g.random() < 0.5 else drawing.said
    text = TEMPLATES[g.integers(len(TEMPLATES))].format(name)
    if concept is None or g.random() >= TAGGED:
        return text
    return ", ".join([text, *keywords(concept, g)])


def keywords(concept: Concept, g: np.random.Generator, most: int = 3) -> Sequence[str]:
    """Some of the concept's keywords, at random; its group ("fruit") is one of them."""
    group = GROUP_OF.get(concept.subgroup)
    tags = [*concept.tags, *([group] if group else [])]
    return [tags[k] for k in g.permutation(len(tags))[: g.integers(1, most + 1)]]

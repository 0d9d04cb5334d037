"""Pictures from bytes that nobody vouches for: files, cells of a table, members of a shard.

Only plain formats are decoded (none that runs a script), of at most `max_pixels`. A picture that cannot be read is
reported as a bad row, and no error is raised.
"""

import functools
import io as memory
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from clipvet.types import Geometry

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}
MAX_PIXELS = 64_000_000
MAX_PICTURE = 2**28  # bytes
MAX_SCANS = 100  # passes over the pixels of one JPEG
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # other markers lie inside the scans


@functools.lru_cache
def _resized(geometry: Geometry | None) -> Callable[[Image.Image], Tensor]:
    """The library's own evaluation transform without its normalisation."""
    if geometry and geometry.library == "transformers":
        return functools.partial(_by_transformers, geometry)
    from open_clip.transform import image_transform
    from torchvision.transforms import Compose

    g = geometry or Geometry(1)
    steps = image_transform(g.size, is_train=False, resize_mode=g.mode, interpolation=g.interpolation).transforms  # pyright: ignore
    return Compose(steps[-3:-1] if geometry is None else steps[:-1])  # of the last three: RGB, tensor, normalise


def _by_transformers(geometry: Geometry, picture: Image.Image) -> Tensor:
    """The steps of transformers 5: transparent pixels become white, and uint8 tensors are resized.

    If an odd number of pixels is cut off, the larger half goes at the bottom or right.
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    n = geometry.size
    if "A" in picture.getbands():
        whole = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", whole.size, (255, 255, 255, 255)), whole)
    w, h = picture.size
    longer = int(n * max(w, h) / min(w, h)) if geometry.mode == "shortest" else n
    sides = [longer, n] if w <= h else [n, longer]
    how = InterpolationMode("bilinear" if geometry.interpolation == "bilinear" else "bicubic")
    pixels = F.resize(F.pil_to_tensor(picture.convert("RGB")), sides, how, antialias=True)
    top, left = ((side - n) // 2 for side in sides)
    return pixels[:, top : top + n, left : left + n] / 255


class FilePictures:
    """The pictures of `Pairs` that lie in files. The first frame, upright, resized as by the geometry's library.

    Two things differ from open_clip and transformers: the EXIF orientation is applied, and 16-bit grey is scaled to 8
    bits instead of clipped. Transparent pixels come out black, as in open_clip, or white, as in transformers.
    """

    def __init__(self, paths: Sequence[str], root: Path, max_pixels: int = MAX_PIXELS):
        """paths: relative to `root`, or absolute. max_pixels: larger pictures count as unreadable; so do long thin ones
        that would be larger after resizing."""
        self.paths, self.root, self.max_pixels = paths, root, max_pixels
        self.passed: Counter[str] = Counter()  # files of the folder that are not read, by suffix

    def __len__(self) -> int:
        return len(self.paths)

    def fetch(self, rows: Sequence[int], geometry: Geometry | None) -> tuple[Tensor, list[tuple[int, str]]]:
        """The readable pictures of these rows, in order: float (n, 3, size, size), pixels in [0, 1]; and the others as
        (position in `rows`, reason). Without a geometry pictures keep their size, which must then be the same for all.
        """

        return decoded(
            rows, lambda r: _plain(self.root, self.paths[r]), lambda r: self.paths[r], geometry, self.max_pixels
        )


def _plain(root: Path, name: str) -> str:
    """The path of a picture's file. Raises ValueError if it is not a plain file of a usable size."""
    path = os.path.join(root, name)
    if not os.path.isfile(path):  # a pipe or device would never end
        raise ValueError("no such file" + _hint(name))
    if (size := os.path.getsize(path)) == 0:
        raise ValueError("empty (0 bytes)")
    if size > MAX_PICTURE:  # some decoders read the whole file before they know its size in pixels
        raise ValueError(f"{size:,} bytes are more than {MAX_PICTURE:,}")
    return path


def _hint(name: str) -> str:
    """What a path that leads nowhere may have been meant as."""
    if "://" in name:
        return "; it is a URL: download the pictures and name their files"
    if name.startswith("~"):
        return "; write out the folder that ~ stands for"
    if "\\" in name:
        return "; write / instead of \\"
    if not os.path.isabs(name) and os.path.isfile(name):
        return "; paths are relative to the table's folder, not to the working directory"
    return ""


class CellPictures:
    """The pictures of `Pairs` that lie in the cells of a table: bytes, or HF's {bytes, path}."""

    def __init__(self, cells: Any, root: Path, max_pixels: int = MAX_PIXELS):
        """cells: has a length and `cell(row)`. root: the folder that the paths of cells without bytes start from.
        max_pixels: as for `FilePictures`."""
        self.cells, self.root, self.max_pixels = cells, root, max_pixels

    def __len__(self) -> int:
        return len(self.cells)

    def fetch(self, rows: Sequence[int], geometry: Geometry | None) -> tuple[Tensor, list[tuple[int, str]]]:
        """Readable pictures and reasons for the others, as `FilePictures.fetch` gives them."""

        def source(row: int) -> str | memory.BytesIO:
            cell: Any = self.cells.cell(row)
            held, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
            if path and held is None:
                return _plain(self.root, path)
            held = held or b""
            if len(held) > MAX_PICTURE:
                raise ValueError(f"{len(held):,} bytes are more than {MAX_PICTURE:,}")
            return memory.BytesIO(held)

        return decoded(rows, source, lambda row: f"row {row}", geometry, self.max_pixels)


def decoded(
    rows: Sequence[int],
    source: Callable[[int], str | memory.BytesIO | Image.Image],
    name: Callable[[int], str],
    geometry: Geometry | None,
    max_pixels: int,
) -> tuple[Tensor, list[tuple[int, str]]]:
    """Decode the pictures of these rows, as `FilePictures.fetch` gives them.

    source: from a row to a path, to bytes or to an opened picture; may raise anything, and the row is then a bad one.
    name: from a row to what a bad one is called. max_pixels: as for `FilePictures`.
    """
    images, bad = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's warnings are harmless, or reported below
        for position, row in enumerate(rows):
            try:
                images.append(_picture(source(row), geometry, max_pixels))
            except Exception as e:  # decoders raise anything on hostile bytes
                why = "not a picture" if isinstance(e, UnidentifiedImageError) else str(e) or type(e).__name__
                bad.append((position, f"{name(row)!r}: {why.splitlines()[0]}"[:200]))
    size = geometry.size if geometry else 0
    return torch.stack(images) if images else torch.zeros(0, 3, size, size), bad


def _picture(source: str | memory.BytesIO | Image.Image, geometry: Geometry | None, max_pixels: int) -> Tensor:
    with source.copy() if isinstance(source, Image.Image) else Image.open(source, formats=FORMATS) as picture:
        w, h = picture.size
        if w * h > max_pixels:
            raise ValueError(f"{w} x {h} pixels are more than max_pixels={max_pixels}")
        if geometry and geometry.mode != "squash" and geometry.size**2 * max(w, h) / min(w, h) > max_pixels:
            raise ValueError(f"{w} x {h} pixels are too long and thin to resize")
        if picture.format in ("JPEG", "MPO"):
            _check_scans(picture.fp)  # pyright: ignore[reportAttributeAccessIssue] an opened file has it
        picture.load()
        with suppress(Exception):  # a damaged EXIF block does not spoil the pixels
            ImageOps.exif_transpose(picture, in_place=True)
        return _resized(geometry)(_eight_bit(picture, geometry))


def _check_scans(f: Any) -> None:
    """Raises ValueError for a JPEG with more than MAX_SCANS scans. About ten are usual; with many, a small one takes
    hours."""
    before = f.tell()
    f.seek(0)
    held, at, scans = f.read(), 2, 0
    f.seek(before)
    while found := _MARKER.search(held, at):
        code, at = found[0][-1], found.end()
        if code == 0xD9:  # the picture's end; anything may follow
            break
        scans += code == 0xDA
        if code not in (0x01, 0xD8):  # others have a length
            at += int.from_bytes(held[at : at + 2], "big")
    if scans > MAX_SCANS:
        raise ValueError(f"a JPEG of {scans} scans, more than {MAX_SCANS}")


def _eight_bit(picture: Image.Image, geometry: Geometry | None) -> Image.Image:
    """The picture with 8 bits, as L, LA, RGB or RGBA. Raises ValueError for modes without a known range.

    open_clip resizes a palette's numbers, black and white, and printing inks as they are; so they stay.
    """
    if picture.mode in ("L", "LA", "RGB", "RGBA"):
        return picture
    if geometry and geometry.library == "open_clip" and picture.mode in ("1", "P", "CMYK", "YCbCr"):
        return picture
    if picture.mode.startswith("I;16"):
        return Image.fromarray(np.round(np.asarray(picture) / 257).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {picture.mode} have no known range; save it with 8 or 16 bits")
    return picture.convert("RGBA" if "transparency" in picture.info else "RGB")


def sound(text: str) -> str:
    """The text with `?` for each lone surrogate. JSON and file names may hold one; tables and tokenizers refuse it."""
    return text.encode(errors="replace").decode()


def asked_workers(usual: int) -> int:
    """How many loader processes to use: as --workers (CLIPVET_WORKERS) says, else as usual."""
    return int(os.environ.get("CLIPVET_WORKERS") or usual)


def workers_for(n: int) -> int:
    """How many loader processes to use for n pictures on the disk; at most this rank's share of the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun and accelerate
    usual = min(32, n // 500, max(1, cores)) if n >= 1000 else 0  # a small set is read faster without
    return asked_workers(usual)

"""Pictures from bytes that nobody vouches for: files, cells of a table, members of a shard.

Only plain formats are decoded (none that runs a script), no more than `max_pixels`, and a picture that cannot be read
is reported as a bad row, never raised.
"""

import functools
import io as memory
import os
import re
import warnings
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
MAX_SCANS = 100  # of a JPEG
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # the others stand in the scans themselves


@functools.lru_cache
def _resized(geometry: Geometry | None) -> Callable[[Image.Image], Tensor]:
    """open_clip's own evaluation transform without its normalisation."""
    from open_clip.transform import image_transform
    from torchvision.transforms import Compose

    g = geometry or Geometry(1)
    steps = image_transform(g.size, is_train=False, resize_mode=g.mode, interpolation=g.interpolation).transforms  # pyright: ignore
    return Compose(steps[-3:-1] if geometry is None else steps[:-1])  # of the last three: RGB, tensor, normalise


class FilePictures:
    """Pictures in files, for `Pairs`: first frame, upright by EXIF, resized as by open_clip's evaluation transform.

    Unlike open_clip's: EXIF orientation is obeyed; palette pictures turn RGB before they are resized; 16-bit grey is
    scaled to 8 bit, not clipped. Transparency is open_clip's (what is hidden comes out black).
    """

    def __init__(self, paths: Sequence[str], root: Path, max_pixels: int = MAX_PIXELS):
        """paths: relative to `root`, or absolute. max_pixels: of the file, and after resizing (long thin pictures)."""
        self.paths, self.root, self.max_pixels = paths, root, max_pixels

    def __len__(self) -> int:
        return len(self.paths)

    def fetch(self, rows: Sequence[int], geometry: Geometry | None) -> tuple[Tensor, list[tuple[int, str]]]:
        """Readable pictures, in order, as float (n, 3, size, size) in [0, 1], and (position in `rows`, reason) of the
        others. Without a geometry: at their own size, which must then be one."""

        return decoded(
            rows, lambda r: _plain(self.root, self.paths[r]), lambda r: self.paths[r], geometry, self.max_pixels
        )


def _plain(root: Path, name: str) -> str:
    path = os.path.join(root, name)
    if not os.path.isfile(path):  # a pipe or device would never end
        raise ValueError("no such file")
    if (size := os.path.getsize(path)) == 0:
        raise ValueError("empty (0 bytes)")
    if size > MAX_PICTURE:  # some decoders read the whole file before they know its size in pixels
        raise ValueError(f"{size:,} bytes are more than {MAX_PICTURE:,}")
    return path


class CellPictures:
    """Pictures in the cells of a table, for `Pairs`: bytes, or what HF datasets makes of them, {bytes, path}."""

    def __init__(self, cells: Any, root: Path, max_pixels: int = MAX_PIXELS):
        """cells: a `cell(row)` and a length. root: what paths of cells without bytes are relative to."""
        self.cells, self.root, self.max_pixels = cells, root, max_pixels

    def __len__(self) -> int:
        return len(self.cells)

    def fetch(self, rows: Sequence[int], geometry: Geometry | None) -> tuple[Tensor, list[tuple[int, str]]]:
        """As `FilePictures.fetch`."""

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
    source: Callable[[int], str | memory.BytesIO],
    name: Callable[[int], str],
    geometry: Geometry | None,
    max_pixels: int,
) -> tuple[Tensor, list[tuple[int, str]]]:
    """What `FilePictures.fetch` gives, of pictures from any source, which may raise; name: what to call a bad one."""
    images, bad = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL warns of what is reported, or harmless
        for position, row in enumerate(rows):
            try:
                images.append(_picture(source(row), geometry, max_pixels))
            except Exception as e:  # decoders raise anything on hostile bytes
                why = "not a picture" if isinstance(e, UnidentifiedImageError) else str(e) or type(e).__name__
                bad.append((position, f"{name(row)!r}: {why.splitlines()[0]}"[:200]))
    size = geometry.size if geometry else 0
    return torch.stack(images) if images else torch.zeros(0, 3, size, size), bad


def _picture(source: str | memory.BytesIO, geometry: Geometry | None, max_pixels: int) -> Tensor:
    with Image.open(source, formats=FORMATS) as picture:
        w, h = picture.size
        if w * h > max_pixels:
            raise ValueError(f"{w} x {h} pixels are more than max_pixels={max_pixels}")
        if geometry and geometry.mode != "squash" and geometry.size**2 * max(w, h) / min(w, h) > max_pixels:
            raise ValueError(f"{w} x {h} pixels are too long and thin to resize")
        if picture.format in ("JPEG", "MPO"):
            _check_scans(picture.fp)
        picture.load()
        with suppress(Exception):  # a damaged EXIF block does not spoil the pixels
            ImageOps.exif_transpose(picture, in_place=True)
        return _resized(geometry)(_eight_bit(picture))


def _check_scans(f: Any) -> None:
    """ValueError where a JPEG goes over its pixels so often that a small one takes hours; about ten times is usual."""
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


def _eight_bit(picture: Image.Image) -> Image.Image:
    """As L, LA, RGB or RGBA."""
    if picture.mode in ("L", "LA", "RGB", "RGBA"):
        return picture
    if picture.mode.startswith("I;16"):
        return Image.fromarray(np.round(np.asarray(picture) / 257).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {picture.mode} have no known range; save it with 8 or 16 bits")
    return picture.convert("RGBA" if "transparency" in picture.info else "RGB")


def sound(text: str) -> str:
    """With `?` for half a surrogate pair, which JSON and file names may hold and no table, tokenizer or page takes."""
    return text.encode(errors="replace").decode()


def workers_for(n: int) -> int:
    """Loader processes worth having for n pictures on the disk: at most this rank's share of the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun and accelerate
    return min(32, n // 500, max(1, cores)) if n >= 1000 else 0  # they cost more than they bring to a small set

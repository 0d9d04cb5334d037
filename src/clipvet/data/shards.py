"""Tar shards in webdataset's layout, as pairs that are read in any order.

shard_index.py says where each pair lies; here pictures and captions are read from there when they are asked for.
"""

import io as memory
import json
import logging
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import overload

import numpy as np
from torch import Tensor

from clipvet.data import decoding
from clipvet.data.captions import captioned
from clipvet.data.decoding import MAX_PIXELS, decoded, sound
from clipvet.data.shard_index import PICTURES, Index
from clipvet.data.table_checks import of_split, parted
from clipvet.data.tars import Damaged, NoTar, members
from clipvet.errors import UserError
from clipvet.types import Geometry, Pairs

MAX_SHARDS = 100_000


def named(spec: str) -> bool:
    """Whether --data names shards: tar files, brace ranges of them, several joined by `::`, or a folder of *.tar."""
    parts, (spec, _) = spec.split("::"), parted(spec)
    tars = [p for p in parts if re.search(r"\.(tar|tar\.\w+|tgz)$", p.lower())]
    return bool(tars) or (len(parts) == 1 and os.path.isdir(spec) and any(Path(spec).glob("*.tar")))


def expand(spec: str) -> list[str]:
    """The paths that a name of shards stands for, in order: `a/{000..099}.tar::b/{x,y}.tar`, or the *.tar of a folder.

    Raises UserError for a range that is empty, for a folder of several splits, and for more than MAX_SHARDS paths.
    """
    folder, split = parted(spec)
    if os.path.isdir(folder) and (found := sorted(Path(folder).glob("*.tar"))):
        return list(map(str, of_split(found, Path(folder), split)))
    return [path for part in spec.split("::") for path in _braces(part, spec)]


def _braces(part: str, spec: str) -> list[str]:
    """The paths of one part of `spec`, with all its braces written out."""
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", part)
    if not found:
        return [part]
    first, last, listed = found.groups()
    if listed is None:
        a, b = int(first), int(last)
        if not a <= b < a + MAX_SHARDS:
            raise UserError(f"{spec}: {found[0]} is no range of at most {MAX_SHARDS} shards; write {{first..last}}")
        words = [f"{k:0{len(first)}}" for k in range(a, b + 1)]
    else:
        words = listed.split(",")
    tails = _braces(part[found.end() :], spec)
    if len(words) * len(tails) > MAX_SHARDS:
        raise UserError(f"{spec} names more than {MAX_SHARDS} shards; name fewer at a time")
    return [part[: found.start()] + word + tail for word in words for tail in tails]


class ShardPictures:
    """The pictures of `Pairs` that lie in shards. A pair without a caption in its .json counts as unreadable."""

    def __init__(self, index: Index, captions: "ShardCaptions", max_pixels: int = MAX_PIXELS):
        """max_pixels: larger pictures count as unreadable (see `FilePictures`)."""
        self.index, self.captions, self.max_pixels = index, captions, max_pixels

    def __len__(self) -> int:
        return len(self.index)

    def key(self, row: int) -> str:
        """The pair's name: that of its shard (see `Index.names`), a slash, and its key in the shard."""
        return f"{self.index.names[self.index.shard(row)]}/{self.index.table['key'][row].as_py()}"

    def fetch(self, rows: Sequence[int], geometry: Geometry | None) -> tuple[Tensor, list[tuple[int, str]]]:
        """Readable pictures, float (n, 3, size, size) in [0, 1], and (position, reason) of the others, as
        `FilePictures.fetch` gives them."""

        def source(row: int) -> memory.BytesIO:
            self.captions.check(row)
            return memory.BytesIO(self.index.read(row, "picture") or b"")

        return decoded(rows, source, self.key, geometry, self.max_pixels)


class ShardCaptions(Sequence[str]):
    """The captions of `Pairs` that lie in shards. A caption that cannot be read is an empty string."""

    def __init__(self, index: Index, key: str | None):
        """key: take captions from the .json, under this key; if None, from the .txt, or else the .json's "caption"."""
        self.shards, self.key = index, key

    def __len__(self) -> int:
        return len(self.shards)

    def read(self, row: int) -> str:
        """The caption of a row. Raises OSError, and ValueError if there is none or the shard has changed."""
        held = None if self.key else self.shards.read(row, "text")
        if held is not None:
            return held.decode("utf-8-sig").strip()  # a UnicodeDecodeError is a ValueError
        held, key = self.shards.read(row, "json"), self.key or "caption"
        try:
            said = json.loads(held or b"")
        except (ValueError, RecursionError) as e:
            raise ValueError("its .json is missing or no JSON") from e
        if not isinstance(said, dict) or not isinstance(said.get(key), str):
            raise ValueError(f"its .json has no text under {key!r}")
        return sound(said[key]).strip()

    def check(self, row: int) -> None:
        """Raises OSError or ValueError if a row has no caption. A .txt is always one, so it is not read."""
        if self.key or self.shards.table["text"][row].as_py() < 0:
            self.read(row)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        try:
            return self.read(index % len(self))
        except (ValueError, OSError):
            return ""  # its picture is reported as unreadable


def _way_out(path: str) -> str:
    """What to do about a shard without pairs."""
    with open(path, "rb") as f, suppress(Damaged, NoTar):
        names = [m.name.rpartition(b"/")[2].lower() for m in members(f, os.path.getsize(path))]
        ends = tuple(b"." + p for p in PICTURES)
        suffixes = {n.partition(b".")[2] for n in names} - {*PICTURES}
        if (
            suffixes
            and not suffixes & {b"txt", b"json"}
            and not any(b"." in s for s in suffixes)
            and any(n.endswith(ends) for n in names)
        ):
            shown = ", ".join(sorted(s.decode(errors="replace")[:20] for s in suffixes)[:3])
            return f"beside its pictures stand members of other kinds ({shown}); write the captions as .txt"
        if dotted := next((n for n in names if n.count(b".") > 1 and n.endswith(ends)), b""):
            shown = repr(dotted.decode(errors="replace"))[:60]
            return (
                f"webdataset ends a key at the first dot, and names hold more ({shown}); "
                "rename the members, with _ for the other dots"
            )
        other = re.compile(rb"\.(gif|bmp|tiff?|heic|avif|jp2|npy|ppm|jfif)$")
        if not any(n.endswith(ends) for n in names) and (odd := next(filter(other.search, names), b"")):
            return (
                f"its pictures ({odd.decode(errors='replace')!r:.60}) are none of these kinds; save them as one of them"
            )
    return (
        "a pair is neighbouring members with one name up to the first dot (a/1.jpg, a/1.txt). If its parts lie apart, "
        "sort them: mkdir x && tar xf SHARD -C x && tar --sort=name -cf SORTED.tar -C x ."
    )


def open_shards(spec: str, *, caption_key: str | None = None, max_pixels: int = MAX_PIXELS) -> Pairs:
    """Open tar shards of webdataset's layout: `a/{000..099}.tar`, several joined by `::`, or a folder of shards.

    caption_key: take captions from the .json members, under this key; if None, from the .txt, or else the .json's
    "caption". max_pixels: larger pictures count as unreadable.

    Returns lazy pairs whose ids count through all shards, in the order given. The headers are read once and indexed
    (`Index`); pictures and captions are read when asked for. Members that were left out (pickles, links, halves of
    pairs, the rest of a damaged shard) are logged as one warning. Raises UserError for shards that cannot be used.
    """
    paths = expand(spec)
    index = Index(paths)
    if not len(index):
        passed = "".join(f"; {n} {why}" for why, n in index.passed.items())
        raise UserError(f"{spec} holds no pair of a picture ({', '.join(p.decode() for p in PICTURES)}) and a .txt or "
                        f".json{passed}; {_way_out(paths[0])}")  # fmt: skip
    if index.passed:
        told = ", ".join(f"{n} {why}" for why, n in sorted(index.passed.items()))
        logging.getLogger(__name__).warning("%s: passed over %s", os.path.basename(spec), told)
    captions = ShardCaptions(index, caption_key)
    return Pairs(
        ShardPictures(index, captions, max_pixels),
        captions,
        np.arange(len(index)),
        last=(captioned,),
        name=f"{os.path.basename(paths[0])} ... {os.path.basename(paths[-1])}" if len(paths) > 1 else Path(spec).name,
        workers=decoding.workers_for(len(index)),
        fingerprint=index.digest[:16],
    )

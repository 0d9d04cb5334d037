"""Tar shards in webdataset's layout, read at random: an index says where each pair lies; nothing is ever unpacked.

Consecutive members of one key (`a/000123.jpg`, `a/000123.txt`) are a pair, as webdataset and open_clip read them.
Shards are untrusted: no member is written to disk or unpickled, links and special files are not followed, headers are
read under limits, and what cannot be used is counted and said.
"""

import functools
import hashlib
import io as memory
import json
import logging
import os
import re
import stat
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import pyarrow as pa
from torch import Tensor

from clipvet.data import decoding
from clipvet.data.decoding import MAX_PICTURE, MAX_PIXELS, decoded, sound
from clipvet.data.tars import Damaged, Member, NoTar, members
from clipvet.errors import UserError
from clipvet.types import Geometry, Pairs

PICTURES = (b"jpg", b"png", b"jpeg", b"webp")  # open_clip's, in its order: the first that a key has is its picture
PICKLES = (b"pyd", b"pkl", b"pickle", b"pth", b"pt")  # webdataset's decoders would load them
MAX_KEY = 1024
MAX_CAPTION = 2**20  # bytes of a .txt or .json member
MAX_SHARDS = 100_000
COLUMNS = ("picture", "text", "json")  # each with its offset and `_size`; offset -1: the pair has none
SCHEMA = pa.schema(
    [("key", pa.string()), *((c + e, pa.int64()) for c in COLUMNS for e in ("", "_size"))],
    {"reading": "2"},  # another number wherever `scan` comes to tell other rows: indices of before are made again
)


def named(spec: str) -> bool:
    """Whether the words of --data name shards: tar files, brace ranges of them, several joined by `::`."""
    parts = spec.split("::")
    tars = [p for p in parts if re.search(r"\.(tar|tar\.\w+|tgz)$", p.lower())]
    return bool(tars) or (len(parts) == 1 and os.path.isdir(spec) and any(Path(spec).glob("*.tar")))


def expand(spec: str) -> list[str]:
    """Paths, in order: `a/{000..099}.tar::b/{x,y}.tar`, or a folder's *.tar. Raises UserError for too many."""
    if os.path.isdir(spec) and (found := sorted(map(str, Path(spec).glob("*.tar")))):
        return found
    return [path for part in spec.split("::") for path in _braces(part, spec)]


def _braces(part: str, spec: str) -> list[str]:
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


class Group(NamedTuple):
    """What a shard holds of one key."""

    key: bytes
    parts: dict[bytes, tuple[int, int]]  # offset and size by suffix: pictures, txt, json
    members: list[Member]  # these and other plain ones, without pickles

    @property
    def picture(self) -> tuple[int, int] | None:
        return next((self.parts[p] for p in PICTURES if p in self.parts), None)


def groups(f: memory.BufferedIOBase, length: int, passed: Counter[str]) -> Iterator[Group]:
    """Consecutive members of one key, of those that have a picture or a caption; what is passed over is counted.

    A suffix that comes again begins another group, as for open_clip.
    """
    group, seen = Group(b"", {}, []), set()
    try:
        for member in members(f, length):
            folder, slash, base = member.name.rpartition(b"/")
            stem, _, suffix = base.partition(b".")
            if member.kind != b"0":
                if member.kind != b"5":
                    passed["sparse files" if member.kind == b"S" else "links and special files"] += 1
                continue
            if not stem or len(member.name) > MAX_KEY:
                continue
            key, suffix = folder + slash + stem, suffix.lower()
            if key != group.key or suffix in seen:
                if group.parts:
                    yield group
                group, seen = Group(key, {}, []), set()
            seen.add(suffix)
            if suffix in PICTURES or suffix in (b"txt", b"json"):
                if member.size > (MAX_PICTURE if suffix in PICTURES else MAX_CAPTION):
                    passed["members that are too large"] += 1
                    continue
                group.parts[suffix] = member.at, member.size
            elif {*suffix.split(b".")} & {*PICKLES}:
                passed["pickles"] += 1
                continue
            group.members.append(member)
    except Damaged as e:
        passed[f"shards of which the rest was left out: {e}"] += 1
    if group.parts:
        yield group


def scan(f: memory.BufferedIOBase, length: int) -> tuple[list[tuple], Counter[str]]:
    """Rows of SCHEMA, and how many members or pairs were passed over, by reason."""
    rows, passed = [], Counter()
    for group in groups(f, length, passed):
        text, told = group.parts.get(b"txt"), group.parts.get(b"json")
        if group.picture and (text or told):
            rows.append((group.key.decode(errors="replace"), *group.picture, *(text or (-1, 0)), *(told or (-1, 0))))
        else:
            passed["pictures without a caption" if group.picture else "captions without a picture"] += 1
    return rows, passed


def _stat(path: str) -> tuple[int, int]:
    """Size and time of change, by which a changed shard is told."""
    try:
        s = os.stat(path)
    except OSError as e:
        raise UserError(f"shard {path} cannot be read ({e.strerror}); give the shards that there are") from e
    except ValueError as e:  # a zero in the name
        raise UserError(f"{path!r} is no name of a shard") from e
    if not stat.S_ISREG(s.st_mode):
        raise UserError(f"shard {path} is no plain file; give tar files")
    return s.st_size, s.st_mtime_ns


class Index:
    """Where the pairs of all shards lie: an Arrow file, mapped into memory, with a batch for each shard.

    It lies in the cache of HF datasets. A shard whose size or time of change differs is read again, the others are not.
    """

    def __init__(self, paths: Sequence[str]):
        from datasets import config

        self.paths = [os.path.abspath(p) for p in paths]
        self.stats = [_stat(p) for p in self.paths]
        short = [os.path.basename(p) for p in self.paths]
        self.names = short if len(set(short)) == len(short) else self.paths
        name = hashlib.sha256("\0".join(self.paths).encode(errors="surrogateescape")).hexdigest()[:16]
        self.file = Path(config.HF_DATASETS_CACHE) / "clipvet" / "shards" / f"{name}.arrow"
        held = self._held()
        if [told["stat"] for told, _ in held] != [list(s) for s in self.stats]:
            self._build({told["path"]: (told, batch) for told, batch in held})
            held = self._held()
        counts = [batch.num_rows for _, batch in held]
        self.passed = sum((Counter(told["passed"]) for told, _ in held), Counter())
        self.ends = np.cumsum(counts, dtype=np.int64)
        told = [[told["digest"], *told["stat"]] for told, _ in held]  # pictures and captions are not read for it
        self.digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def _held(self) -> list[tuple[dict[str, Any], pa.RecordBatch]]:
        """What the file knows; nothing where there is none, or a damaged one."""
        with suppress(OSError, pa.ArrowException, KeyError, ValueError):
            reader = pa.ipc.open_file(pa.memory_map(str(self.file)))
            if not reader.schema.equals(SCHEMA, check_metadata=True):
                return []
            pieces = (reader.get_batch_with_custom_metadata(k) for k in range(reader.num_record_batches))
            return [(json.loads(told[b"shard"]), batch) for batch, told in pieces]
        return []

    def _build(self, known: dict[str, tuple[dict[str, Any], pa.RecordBatch]]) -> None:
        whole = self.file.with_name(f"{self.file.name}.{uuid.uuid4().hex}.tmp")  # several may build it at once
        try:
            whole.parent.mkdir(parents=True, exist_ok=True)
            with pa.ipc.new_file(str(whole), SCHEMA) as writer:
                for path, now in zip(self.paths, self.stats):
                    told, batch = known.get(path, ({}, None))
                    if batch is None or told["stat"] != list(now):
                        told, batch = _scanned(path, now)
                    writer.write_batch(batch, custom_metadata={"shard": json.dumps(told)})
            os.replace(whole, self.file)
        except OSError as e:
            raise UserError(f"the index {self.file} cannot be written ({e.strerror}); set HF_DATASETS_CACHE") from e
        finally:
            whole.unlink(missing_ok=True)

    @functools.cached_property
    def table(self) -> pa.Table:
        return pa.ipc.open_file(pa.memory_map(str(self.file))).read_all()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "table"}  # else a process it is sent to gets a copy

    def __len__(self) -> int:
        return int(self.ends[-1])

    def shard(self, row: int) -> int:
        return int(np.searchsorted(self.ends, row, side="right"))

    def _same(self, k: int, fd: int) -> bool:
        now = os.fstat(fd)
        return (now.st_size, now.st_mtime_ns) == self.stats[k]

    def check(self, k: int, fd: int) -> None:
        """UserError where this is no longer the shard that was opened."""
        if not self._same(k, fd):
            raise UserError(f"shard {self.paths[k]} has changed since it was opened; give the command again")

    def read(self, row: int, part: str) -> bytes | None:
        """One of COLUMNS, None where the pair has none. Raises OSError, and ValueError where the shard changed."""
        at, size = self.table[part][row].as_py(), self.table[part + "_size"][row].as_py()
        if at < 0:
            return None
        k = self.shard(row)
        fd = _opened(self.paths[k], self.stats[k]).fd
        held = os.pread(fd, size, at)
        if not self._same(k, fd) or len(held) < size:
            raise ValueError("the shard has changed since it was opened")
        return held


def _scanned(path: str, now: tuple[int, int]) -> tuple[dict[str, Any], pa.RecordBatch]:
    try:
        with open(path, "rb", buffering=1 << 14) as f:
            rows, passed = scan(f, now[0])  # pyright: ignore[reportArgumentType] a BufferedReader
    except OSError as e:
        raise UserError(f"shard {path} cannot be read ({e.strerror}); copy it again") from e
    except NoTar as e:
        fix = "copy it again" if path.endswith(".tar") else "unpack it to a plain .tar"
        raise UserError(f"shard {path} ({now[0]} bytes) is no tar archive; {fix}") from e
    columns = list(zip(*rows)) or [()] * len(SCHEMA)
    batch = pa.record_batch([pa.array(c, t) for c, t in zip(columns, SCHEMA.types)], schema=SCHEMA)
    digest = hashlib.sha256(batch.serialize()).hexdigest()  # of names and places alone
    return {"path": path, "stat": list(now), "passed": passed, "digest": digest}, batch


class _Opened:
    def __init__(self, path: str):
        self.fd = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            os.close(self.fd)


@functools.lru_cache(maxsize=64)
def _opened(path: str, stat: tuple[int, int]) -> _Opened:
    """A few shards stay open: on a network's disk opening takes longer than reading."""
    return _Opened(path)


class ShardPictures:
    """Pictures in shards, for `Pairs`. A pair whose JSON holds no caption is a bad row, as an unreadable picture is."""

    def __init__(self, index: Index, captions: "ShardCaptions", max_pixels: int = MAX_PIXELS):
        self.index, self.captions, self.max_pixels = index, captions, max_pixels

    def __len__(self) -> int:
        return len(self.index)

    def key(self, row: int) -> str:
        """The pair's name: its shard's, which is a path where file names are not unique, and its key in there."""
        return f"{self.index.names[self.index.shard(row)]}/{self.index.table['key'][row].as_py()}"

    def fetch(self, rows: Sequence[int], geometry: Geometry | None) -> tuple[Tensor, list[tuple[int, str]]]:
        """As `FilePictures.fetch`."""

        def source(row: int) -> memory.BytesIO:
            self.captions.check(row)
            return memory.BytesIO(self.index.read(row, "picture") or b"")

        return decoded(rows, source, self.key, geometry, self.max_pixels)


class ShardCaptions(Sequence[str]):
    """Captions in shards: of the .txt, else of the .json under "caption"; of the .json alone where a key is given."""

    def __init__(self, index: Index, key: str | None):
        self.shards, self.key = index, key

    def __len__(self) -> int:
        return len(self.shards)

    def read(self, row: int) -> str:
        """Raises OSError, and ValueError where there is no caption."""
        held = None if self.key else self.shards.read(row, "text")
        if held is not None:
            return held.decode(errors="replace").strip()
        held, key = self.shards.read(row, "json"), self.key or "caption"
        try:
            said = json.loads(held or b"")
        except (ValueError, RecursionError) as e:
            raise ValueError("its .json is missing or no JSON") from e
        if not isinstance(said, dict) or not isinstance(said.get(key), str):
            raise ValueError(f"its .json has no text under {key!r}")
        return sound(said[key]).strip()

    def check(self, row: int) -> None:
        """ValueError where there is no caption; a .txt always is one."""
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


def open_shards(spec: str, *, caption_key: str | None = None, max_pixels: int = MAX_PIXELS) -> Pairs:
    """Pairs in tar shards of webdataset's layout: `a/{000..099}.tar`, several joined by `::`, or a folder of shards.

    caption_key: take captions from the .json members, under this key. Ids count the pairs through all shards in the
    order given. The headers are read once and indexed (`Index`); every batch is then read from where it lies. What was
    passed over (pickles, links, halves of pairs, damaged shards) is logged. Raises UserError for shards that cannot be
    used.
    """
    paths = expand(spec)
    index = Index(paths)
    if not len(index):
        passed = "".join(f"; {n} {why}" for why, n in index.passed.items())
        raise UserError(f"{spec} holds no pair of a picture ({', '.join(p.decode() for p in PICTURES)}) and a .txt or "
                        f".json{passed}; give shards of webdataset's layout")  # fmt: skip
    if index.passed:
        told = ", ".join(f"{n} {why}" for why, n in sorted(index.passed.items()))
        logging.getLogger(__name__).warning("%s: passed over %s", os.path.basename(spec), told)
    captions = ShardCaptions(index, caption_key)
    return Pairs(
        ShardPictures(index, captions, max_pixels),
        captions,
        np.arange(len(index)),
        name=f"{os.path.basename(paths[0])} ... {os.path.basename(paths[-1])}" if len(paths) > 1 else Path(spec).name,
        workers=decoding.workers_for(len(index)),
        fingerprint=index.digest[:16],
    )

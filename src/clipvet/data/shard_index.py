"""An index of tar shards: where the picture and the caption of each pair lie. Nothing is ever unpacked.

Consecutive members of one key (`a/000123.jpg`, `a/000123.txt`) are a pair, as webdataset and open_clip read them.
Shards are untrusted: no member is written to disk or unpickled, links and special files are not followed, headers are
read under limits, and members that cannot be used are counted by reason.
"""

import functools
import hashlib
import io as memory
import json
import os
import stat
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from clipvet.data.decoding import MAX_PICTURE
from clipvet.data.tars import Damaged, Member, NoTar, members
from clipvet.errors import UserError

PICTURES = (b"jpg", b"png", b"jpeg", b"webp")  # open_clip's suffixes, in its order: the first that a key has counts
PICKLES = (b"pyd", b"pkl", b"pickle", b"pth", b"pt")  # suffixes that webdataset's decoders would unpickle
MAX_KEY = 1024  # bytes of a member's name
MAX_CAPTION = 2**20  # bytes of a .txt or .json member
COLUMNS = ("picture", "text", "json")  # the member's offset in bytes (-1: the pair has none), and its size as `_size`
SCHEMA = pa.schema(
    [("key", pa.string()), *((c + e, pa.int64()) for c in COLUMNS for e in ("", "_size"))],
    {"reading": "2"},  # change this number when `scan` changes: older indices are then made again
)


class Group(NamedTuple):
    """The members of a shard that share one key."""

    key: bytes
    parts: dict[bytes, tuple[int, int]]  # suffix (pictures, txt, json) -> offset and size in bytes
    members: list[Member]  # those of `parts` and all other plain files, but no pickles

    @property
    def picture(self) -> tuple[int, int] | None:
        """Offset and size, in bytes, of the picture that counts; None if there is none."""
        return next((self.parts[p] for p in PICTURES if p in self.parts), None)


def groups(f: memory.BufferedIOBase, length: int, passed: Counter[str]) -> Iterator[Group]:
    """Groups of consecutive members with one key, if they have a picture or a caption.

    f: an open tar file of `length` bytes. passed: filled with how many members were left out, by reason; a damaged
    archive ends the groups and counts as one. A suffix that comes again starts a new group, as in open_clip. Raises
    NoTar for a file that is no tar archive.
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
    """Read all headers of an open tar file of `length` bytes.

    Returns one tuple for each pair, in the order of SCHEMA, and how many members or pairs were left out, by reason.
    Raises NoTar for a file that is no tar archive.
    """
    rows, passed = [], Counter()
    for group in groups(f, length, passed):
        text, told = group.parts.get(b"txt"), group.parts.get(b"json")
        if group.picture and (text or told):
            rows.append((group.key.decode(errors="replace"), *group.picture, *(text or (-1, 0)), *(told or (-1, 0))))
        else:
            passed["pictures without a caption" if group.picture else "captions without a picture"] += 1
    return rows, passed


def _stat(path: str) -> tuple[int, int]:
    """Size in bytes and time of change in nanoseconds. A shard is read again when either differs. Raises UserError."""
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
    """Where the pairs of several shards lie. Rows are numbered through all shards, in the order given.

    The index is an Arrow file with one batch for each shard. It is kept in the cache of HF datasets and mapped into
    memory. A shard is read again only if its size or its time of change differs.

    paths: the shards, absolute. stats: size and time of change of each. names: what to call each, its file name unless
    two are the same. passed: how many members were left out, by reason. ends: (shards,) int64, the number of rows up to
    the end of each shard. digest: a hash of all names, places, sizes and times; 64 hexadecimal digits.
    """

    def __init__(self, paths: Sequence[str]):
        """Open the index of these shards, or make it. Raises UserError if a shard or the index cannot be used."""
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
        told = [[told["digest"], *told["stat"]] for told, _ in held]  # without the pixels and captions
        self.digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def _held(self) -> list[tuple[dict[str, Any], pa.RecordBatch]]:
        """What the index file says about each shard, and its rows. Empty if there is no such file, or a damaged one."""
        with suppress(OSError, pa.ArrowException, KeyError, ValueError):
            reader = pa.ipc.open_file(pa.memory_map(str(self.file)))
            if not reader.schema.equals(SCHEMA, check_metadata=True):
                return []
            pieces = (reader.get_batch_with_custom_metadata(k) for k in range(reader.num_record_batches))
            return [(json.loads(told[b"shard"]), batch) for batch, told in pieces]
        return []

    def _build(self, known: dict[str, tuple[dict[str, Any], pa.RecordBatch]]) -> None:
        """Write the index file, with what is known of shards that have not changed."""
        whole = self.file.with_name(
            f"{self.file.name}.{uuid.uuid4().hex}.tmp"
        )  # several processes may build it at once
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
        """All rows, with the columns of SCHEMA."""
        return pa.ipc.open_file(pa.memory_map(str(self.file))).read_all()

    def __getstate__(self) -> dict[str, Any]:
        return {
            k: v for k, v in self.__dict__.items() if k != "table"
        }  # a loader process maps the file itself, instead of getting a copy

    def __len__(self) -> int:
        return int(self.ends[-1])

    def shard(self, row: int) -> int:
        """The number of the shard that holds this row."""
        return int(np.searchsorted(self.ends, row, side="right"))

    def _same(self, k: int, fd: int) -> bool:
        now = os.fstat(fd)
        return (now.st_size, now.st_mtime_ns) == self.stats[k]

    def check(self, k: int, fd: int) -> None:
        """Raises UserError if the file behind descriptor `fd` is not shard k as it was opened."""
        if not self._same(k, fd):
            raise UserError(f"shard {self.paths[k]} has changed since it was opened; give the command again")

    def read(self, row: int, part: str) -> bytes | None:
        """The bytes of a row's picture, text or json (one of COLUMNS); None if the pair has none.

        Raises OSError, and ValueError if the shard has changed since it was opened.
        """
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
    """What the index keeps of one shard. Raises UserError."""
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
    digest = hashlib.sha256(batch.serialize()).hexdigest()  # of keys and places, not of content
    return {"path": path, "stat": list(now), "passed": passed, "digest": digest}, batch


class _Opened:
    """A file descriptor that is closed when nobody refers to it any more."""

    def __init__(self, path: str):
        self.fd = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            os.close(self.fd)


@functools.lru_cache(maxsize=64)
def _opened(path: str, stat: tuple[int, int]) -> _Opened:
    """Keeps a few shards open: on a network disk, opening a file takes longer than reading from it."""
    return _Opened(path)

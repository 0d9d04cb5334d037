"""Tables of pairs on the user's disk, mapped into memory; pixels are read when asked for.

The table is untrusted (table_checks.py), and so are its pictures (decoding.py). To add a kind of table, write its
`Reader`, two functions, and name it in READERS; nothing else in the code needs to change. The help texts that
list the formats are in cli.py and commands/_options.py.
"""

import csv
import errno
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from clipvet import io
from clipvet.data import decoding
from clipvet.data.captions import captioned
from clipvet.data.decoding import MAX_PIXELS, CellPictures, FilePictures
from clipvet.data.table_checks import (
    check_columns,
    check_groups,
    check_kind,
    check_one_caption,
    check_saved,
    check_text,
    check_types,
    is_text,
    of_split,
    parted,
    quoting_of,
)
from clipvet.errors import UserError
from clipvet.types import Pairs

PIECE = 2**28  # bytes of a table that are copied at once, at most
ROWS = 65_536  # rows of a table that are copied at once, at most


def open_pairs(
    spec: str,
    *,
    image_key: str = "filepath",
    caption_key: str = "title",
    separator: str | None = None,
    root: Path | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Pairs:
    """Open pairs of pictures and captions: a table, a folder that HF datasets wrote, or tar shards.

    spec: a .csv, .tsv or .parquet file; a folder that `save_to_disk` left, or one of .parquet files; or the name of tar
        shards (`shards.open_shards`). Of a folder with several splits one is named: FOLDER:train
    image_key, caption_key: the columns of pictures and captions; the defaults are open_clip's. Pictures are paths. In
        parquet and in folders they may also lie in the table itself, as bytes or as HF's {bytes, path}
    separator: of a text table; guessed from its suffix and header if None
    root: the folder that relative paths start from; the table's own if None
    max_pixels: larger pictures count as unreadable

    Returns lazy pairs whose ids are the row numbers. CSV and parquet are copied once into the cache of HF datasets and
    mapped into memory; picture files stay where they are. Raises UserError for data that cannot be used.
    """
    from clipvet.data import shards

    if shards.named(spec):
        own = None if caption_key == "title" else caption_key
        return shards.open_shards(spec, caption_key=own, max_pixels=max_pixels)
    path, split = path_of(spec)
    if not path.is_file() and not path.is_dir():
        *most, last = READERS
        kinds = f"{', '.join(most)} or {last}"
        raise UserError(f"{path} is not a file; give a {kinds} table of pairs, a folder or tar shards")
    if root is not None and not root.is_dir():
        raise UserError(f"root {root} is not a folder; give the one that the paths in {path} are relative to")
    keys = list(dict.fromkeys([image_key, caption_key]))
    opened = _open_folder(path, keys, split) if path.is_dir() else reader_of(path).open(path, keys, separator)
    return _pairs(path, opened, image_key, caption_key, root, max_pixels)


def path_of(spec: str) -> tuple[Path, str]:
    """The table or folder that `spec` names, and the split of the folder if it names one that is no folder itself."""
    path, split = parted(spec)
    own = Path(path, spec.rpartition(":")[2])
    if split and (Path(path) / "dataset_dict.json").is_file() and own.is_dir():
        return own, ""
    return Path(path), split


def _pairs(path: Path, opened: "Opened", image_key: str, caption_key: str, root: Path | None, max_pixels: int) -> Pairs:
    """The pairs of a table or of a folder, once its cells are checked."""
    keys, table = list(dict.fromkeys([image_key, caption_key])), opened.table
    types = {field.name: field.type for field in table.data.schema}
    check_types(types, keys, image_key, path)
    if not len(table):
        raise UserError(f"{path} has no rows; give data with pairs")
    if not opened.valid:
        check_text(table, keys, path)
    check_one_caption(_Column(table, caption_key)[:50], path, caption_key)
    kind: Any = FilePictures if is_text(types[image_key]) else CellPictures
    return Pairs(
        kind(_Column(table, image_key), root or (path if path.is_dir() else path.parent), max_pixels),
        _Column(table, caption_key),
        np.arange(len(table)),
        last=(captioned,),
        name=path.name or path.resolve().name,
        workers=decoding.workers_for(len(table)),
        fingerprint=opened.digest[:16],
    )


class _Column(Sequence[str]):
    """One column of a memory-mapped table."""

    def __init__(self, table: Any, name: str):
        self.table, self.name = table, name

    def __len__(self) -> int:
        return len(self.table)

    def cell(self, index: int) -> Any:
        return self.table.data.column(self.name)[index].as_py()

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        cells = self.table.data.column(self.name)[index]
        return [c or "" for c in cells.to_pylist()] if isinstance(index, slice) else cells.as_py() or ""


class Opened(NamedTuple):
    """A table, mapped into memory."""

    table: Any  # a Dataset of HF datasets
    digest: str  # of its content, in hexadecimal: what makes the fingerprint of the pairs
    valid: bool = True  # whether its text is known to be UTF-8


@dataclass(frozen=True)
class Reader:
    """How one kind of table file is read. Both functions raise UserError for a file that cannot be used."""

    open: Callable[[Path, list[str], str | None], Opened]  # (path, columns, separator) -> these columns at least
    pieces: Callable[[Path, str | None], Iterator[Any]]  # (path, separator) -> all columns, as pyarrow tables in order


def reader_of(path: Path) -> Reader:
    """The reader of a table file, by its suffix. Files with unknown suffixes are read as text with separators."""
    return READERS.get(path.suffix.lower(), TEXT)


def _open_folder(path: Path, keys: list[str], split: str) -> Opened:
    """A folder that `save_to_disk` left, else the parquet files in it, of one split if one is named."""
    if not (path / "state.json").is_file():
        return _open_parquet(path, keys, split=split)
    digest = _names(path)
    with _reading(path) as datasets:
        check_saved(path)
        table = datasets.load_from_disk(str(path))
    check_columns(list(dict.fromkeys(table.data.schema.names)), keys, path)
    return Opened(table, digest)


def _open_parquet(path: Path, keys: list[str], separator: str | None = None, split: str = "") -> Opened:
    """A parquet file, or all of those in a folder, of which these columns alone are copied into the cache."""
    parts = _parquets(path, split) if path.is_dir() else [path]
    check_columns(_parquet_columns(parts[0]), keys, path)
    digest = _names(path) if path.is_dir() else io.sha256(path)
    digest = hashlib.sha256(f"{digest} {split}".encode()).hexdigest() if split else digest
    cache = _cache(f"{digest[:16]}-{hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:8]}")
    with _reading(path) as datasets:
        if not Path(cache).exists():  # else its content is known
            check_groups(parts, keys)
        table = datasets.Dataset.from_parquet([str(p) for p in parts], cache_dir=cache, columns=keys)
    return Opened(table, digest, valid=False)


def _open_text(path: Path, keys: list[str], separator: str | None) -> Opened:
    """A text table, every column as text: a caption 007 stays 007."""
    check_kind(path)
    separator = separator or separator_of(path)
    columns = _text_columns(path, separator)
    check_columns(columns, keys, path)
    digest = io.sha256(path)
    with _reading(path) as datasets:
        table = datasets.Dataset.from_csv(
            str(path),
            features=datasets.Features({c: datasets.Value("string") for c in columns}),
            cache_dir=_cache(digest[:16]),
            sep=separator,
            quoting=quoting_of(path, separator),
            keep_default_na=False,
        )
    return Opened(table, digest)


def _parquet_pieces(path: Path, separator: str | None) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    held = pq.ParquetFile(path)
    groups = (held.metadata.row_group(k) for k in range(held.num_row_groups))
    row = max(1, sum(g.total_byte_size for g in groups) // max(1, held.metadata.num_rows))
    for batch in held.iter_batches(max(1, min(ROWS, PIECE // row))):
        yield pa.Table.from_batches([batch])


def _text_pieces(path: Path, separator: str | None) -> Iterator[Any]:
    import pandas as pd
    import pyarrow as pa

    sep = separator or separator_of(path)
    how: Any = quoting_of(path, sep)
    with pd.read_csv(path, sep=sep, quoting=how, dtype=str, keep_default_na=False, chunksize=ROWS) as reader:
        for text in reader:
            yield pa.table({c: pa.array(text[c].to_numpy(dtype=object), pa.string()) for c in text.columns})


TEXT = Reader(_open_text, _text_pieces)
READERS = {".csv": TEXT, ".tsv": TEXT, ".parquet": Reader(_open_parquet, _parquet_pieces)}  # by suffix


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """HF datasets, made quiet. What it raises in the block becomes a UserError; a full disk stays an OSError."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # errors are reported below
    try:
        yield datasets
    except UserError:
        raise
    except Exception as e:  # the library wraps what pandas, pyarrow and the disk raise
        cause = e.__cause__ or e
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            raise cause from e
        raise UserError(f"{path} cannot be read ({io.line(cause)}); mend the data") from e


def _cache(name: str) -> str:
    """The folder in HF's cache where the copy of a table lies."""
    from datasets import config

    return str(Path(config.HF_DATASETS_CACHE) / "clipvet" / name)


def _names(folder: Path) -> str:
    """Hash of the names, sizes and times of change of all files in a folder and its subfolders."""
    digest = hashlib.sha256()
    for p in sorted(q for q in folder.rglob("*") if q.is_file()):
        s = p.stat()
        digest.update(f"{p.relative_to(folder)}\0{s.st_size}\0{s.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _parquets(folder: Path, split: str) -> list[Path]:
    """The parquet files in a folder and its subfolders, by name. Raises UserError if there are none, or several splits.

    split: the one to take; empty if none is named.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(p.parent.name for p in folder.glob("*/state.json")) or ["none"]
        raise UserError(f"{folder} holds the splits {', '.join(splits)[:200]}; give one, such as {folder / splits[-1]}")
    found = sorted(p for p in folder.rglob("*.parquet") if p.is_file())
    if not found:
        files = any(p.suffix.lower() == ".txt" and p.with_suffix(".jpg").is_file() for p in folder.rglob("*.txt"))
        way = f"put its pictures and texts into a shard: tar --sort=name -cf pairs.tar -C {folder} ." if files else ""
        raise UserError(
            f"{folder} holds neither .tar nor .parquet files nor a saved data set; {way or 'give the table of pairs'}"
        )
    return of_split(found, folder, split)


def _parquet_columns(path: Path) -> list[str]:
    """The names of a parquet file's columns. Raises UserError if it is damaged or has no rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        meta = pq.read_metadata(path)
        names = meta.schema.to_arrow_schema().names
    except (OSError, pa.ArrowException, UnicodeDecodeError) as e:
        raise UserError(f"{path} is no parquet file ({io.line(e)}); copy or write it again") from e
    if meta.num_rows == 0:
        raise UserError(f"{path} has no rows; give a table with pairs")
    return names


def separator_of(path: Path) -> str:
    """The separator of a text table, guessed: a tab, a comma or a semicolon. Raises OSError.

    It is a tab for .tsv, and wherever the header holds one: open_clip's tables are .csv with tabs.
    """
    with path.open("rb") as f:
        header = f.readline()
    if path.suffix.lower() == ".tsv" or b"\t" in header:
        return "\t"
    return ";" if b";" in header and b"," not in header else ","


def _text_columns(path: Path, separator: str) -> list[str]:
    """The names in a text table's header. Raises UserError if it is not UTF-8, has no rows, or the first row has more
    fields than the header, as with commas in captions without quotes."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as f:
            reader = csv.reader(f, delimiter=separator)
            columns, first = next(reader, None), next(reader, None)
    except (UnicodeDecodeError, csv.Error, TypeError) as e:
        raise UserError(f"{path} is no UTF-8 text table ({e}); save it as UTF-8 CSV, or give a .parquet table") from e
    if not columns or first is None:
        raise UserError(f"{path} has no rows; give a table with a header and pairs")
    if len(first) > len(columns) and columns[0].startswith("#"):
        raise UserError(f"{path}: its first line is a comment ({columns[0][:40]!r}); remove it")
    if len(first) > len(columns):
        raise UserError(
            f"{path}: the first row has {len(first)} fields, the header {len(columns)}; quote captions that hold "
            f"{separator!r}, or save the table with tabs (.tsv)"
        )
    return [c or f"Unnamed: {k}" for k, c in enumerate(columns)]  # as pandas names the numbers of rows that it writes

"""Tables of pairs on the user's disk, mapped into memory; pixels are read when asked for.

The table is untrusted, and so are its pictures (decoding.py). Folders of pictures: folders.py; tar shards: shards.py.
"""

import csv
import errno
import hashlib
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from clipvet import io
from clipvet.data import decoding
from clipvet.data.decoding import MAX_PIXELS, CellPictures, FilePictures
from clipvet.errors import UserError
from clipvet.types import Pairs

PIECE = 2**28  # bytes of a table that are copied at once
MAX_GROUP = 2**32  # bytes of a parquet row group in memory
MAX_COLUMNS = 1000  # thousands take the table reader minutes


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


def open_pairs(
    spec: str,
    *,
    image_key: str = "filepath",
    caption_key: str = "title",
    separator: str | None = None,
    root: Path | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Pairs:
    """Pairs of a table, of a folder that HF datasets wrote, or of tar shards (`shards.open_shards`).

    A table is .csv, .tsv or .parquet, with a column of captions and one of picture paths (open_clip's keys); a folder
    holds what `save_to_disk` left, or .parquet files. Where they lie in a folder or in parquet, pictures may be in the
    table itself, as bytes or as HF's {bytes, path}.

    separator: of a text table; guessed from its suffix and header if None. root: what relative paths are relative to;
    the table's folder if None. Ids are row numbers. CSV and parquet are copied once into the cache of HF datasets, and
    mapped into memory; picture files stay where they are. Raises UserError for data that cannot be used.
    """
    from clipvet.data import shards

    if shards.named(spec):
        own = None if caption_key == "title" else caption_key
        return shards.open_shards(spec, caption_key=own, max_pixels=max_pixels)
    path = Path(spec)
    if not path.is_file() and not path.is_dir():
        raise UserError(f"{path} is not a file; give a .csv, .tsv or .parquet table of pairs, a folder or tar shards")
    if root is not None and not root.is_dir():
        raise UserError(f"root {root} is not a folder; give the one that the paths in {path} are relative to")
    keys = list(dict.fromkeys([image_key, caption_key]))
    saved = path.is_dir() and (path / "state.json").is_file()
    parts = _parquets(path) if path.is_dir() and not saved else [path]
    parquet, columns = parts[0].suffix.lower() == ".parquet", None
    if not saved:
        columns = _parquet_columns(parts[0]) if parquet else None
        if columns is None:
            separator = separator or separator_of(path)
            columns = _text_columns(path, separator)
        _check_columns(columns, keys, path)

    import datasets
    from datasets import config

    digest = _names(path, "*") if path.is_dir() else io.sha256(path)
    asked = hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:8]  # of parquet no other columns are copied
    cache = str(Path(config.HF_DATASETS_CACHE) / "clipvet" / (f"{digest[:16]}-{asked}" if parquet else digest[:16]))
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what goes wrong is told below
    try:
        if saved:
            _check_saved(path)
            table: Any = datasets.load_from_disk(str(path))
        elif parquet:
            if not Path(cache).exists():  # of known content
                _check_groups(parts, keys)
            table = datasets.Dataset.from_parquet([str(p) for p in parts], cache_dir=cache, columns=keys)
        else:
            text = datasets.Features({c: datasets.Value("string") for c in columns or ()})  # a caption 007 stays 007
            table = datasets.Dataset.from_csv(
                str(path), features=text, cache_dir=cache, sep=separator, keep_default_na=False
            )
        types = {field.name: field.type for field in table.data.schema}
    except UserError:
        raise
    except Exception as e:  # the library wraps what pandas, pyarrow and the disk raise
        cause = e.__cause__ or e
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            raise cause from e
        raise UserError(f"{path} cannot be read ({io.line(cause)}); mend the data") from e
    if saved:
        _check_columns(list(types), keys, path)
    for key in keys:
        if not _is_text(types[key]) and not (key == image_key and _is_encoded(types[key])):
            raise UserError(f"{path}: column {key} is {types[key]}, not text; name another column")
    if not len(table):
        raise UserError(f"{path} has no rows; give data with pairs")
    if parquet:
        _check_text(table, keys, path)
    cells, root = _Column(table, image_key), root or (path if path.is_dir() else path.parent)
    kind: Any = FilePictures if _is_text(types[image_key]) else CellPictures
    return Pairs(
        kind(cells, root, max_pixels),
        _Column(table, caption_key),
        np.arange(len(table)),
        name=path.name or path.resolve().name,
        workers=decoding.workers_for(len(table)),
        fingerprint=digest[:16],
    )


def _check_saved(folder: Path) -> None:
    """Raises UserError where files or cells of a saved data set lie elsewhere: it is mapped, and read as it stands."""
    import pyarrow as pa

    state = io.read_json(folder / "state.json")
    listed = state.get("_data_files") if isinstance(state, dict) else None
    names = [f.get("filename") if isinstance(f, dict) else None for f in listed] if isinstance(listed, list) else [None]
    for name in names:
        if not isinstance(name, str) or name != Path(name).name or not (folder / name).is_file():
            raise UserError(f"{folder / 'state.json'} does not name files of {folder}; save the data set again")
        try:
            with pa.memory_map(str(folder / name)) as f:
                for message in pa.ipc.MessageReader.open_stream(f):
                    if message.type != "schema" and _packed(message.metadata.to_pybytes(), message.type):
                        raise pa.ArrowInvalid("its numbers are compressed, which HF datasets does not do")
            with pa.memory_map(str(folder / name)) as f, pa.ipc.open_stream(f) as batches:
                for batch in batches:
                    batch.validate(full=True)
        except (OSError, ValueError, pa.ArrowException) as e:
            raise UserError(f"{folder / name} cannot be read ({io.line(e)}); save the data set again") from e


def _packed(message: bytes, kind: str) -> bool:
    """Whether an Arrow message's buffers are compressed: a small file may unfold to gigabytes. Raises ValueError.

    A table of the message's flatbuffer begins with where its list of fields lies; there, two bytes a field say where
    the field is. The header is the message's third, a dictionary's batch its header's second, the compression a batch's
    fourth.
    """

    def field(table: int, k: int) -> int:
        fields = table - struct.unpack_from("<i", message, table)[0]
        at = 4 + 2 * k
        inside = at < struct.unpack_from("<H", message, fields)[0]
        own = struct.unpack_from("<H", message, fields + at)[0] if inside else 0
        return table + own if own else 0

    def table(at: int) -> int:
        return at + struct.unpack_from("<I", message, at)[0]

    try:
        batch = table(field(table(0), 2))
        return field(table(field(batch, 1)) if kind == "dictionary" else batch, 3) > 0
    except struct.error as e:
        raise ValueError("a damaged message") from e


def _check_text(table: Any, keys: Sequence[str], path: Path) -> None:
    """Raises UserError where parquet calls bytes text that are not UTF-8."""
    import pyarrow as pa

    for key in keys:
        try:
            table.data.column(key).validate(full=True)
        except pa.ArrowInvalid as e:
            raise UserError(f"{path}: column {key} is damaged ({io.line(e)}); write the data again") from e


def _check_groups(paths: Sequence[Path], keys: Sequence[str]) -> None:
    """Raises UserError where a parquet file would fill the memory: its reader takes whole row groups, and a file of a
    few kB may hold one long word for millions of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in paths:
        try:
            leaves = pq.read_metadata(path).schema
            leaves = [leaves.column(i) for i in range(len(leaves))]
            folded = [c.path for c in leaves if c.physical_type == "BYTE_ARRAY" and c.path.split(".")[0] in keys]
            with pq.ParquetFile(path, read_dictionary=folded) as held:
                for k in range(held.num_row_groups):
                    size, batches = held.metadata.row_group(k).total_byte_size, iter(())
                    if size <= MAX_GROUP:
                        batches = held.iter_batches(2**16, row_groups=[k], columns=list(keys))
                        size = 0
                    for batch in batches:
                        size += sum(map(unfolded, batch.columns))
                        if size > MAX_GROUP:
                            break
                    if size > MAX_GROUP:
                        told = f"row group {k} unfolds to more than {MAX_GROUP // 2**30} GiB"
                        raise UserError(f"{path}: {told}; write the table in smaller row groups")
        except (OSError, pa.ArrowException) as e:
            raise UserError(f"{path} cannot be read ({io.line(e)}); write the table again") from e


def unfolded(column: Any) -> int:
    """Bytes of a column without its dictionary, which may hold one long word for millions of rows."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(column, pa.StructArray):
        return sum(map(unfolded, column.flatten()))
    if not isinstance(column, pa.DictionaryArray):
        return column.nbytes
    return pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0  # pyright: ignore


def _is_text(kind: Any) -> bool:
    import pyarrow.types as t

    inner = kind.value_type if t.is_dictionary(kind) else kind
    return t.is_string(inner) or t.is_large_string(inner)


def _is_encoded(kind: Any) -> bool:
    import pyarrow.types as t

    if t.is_struct(kind):
        return any(f.name == "bytes" and _is_encoded(f.type) for f in kind)
    return t.is_binary(kind) or t.is_large_binary(kind)


def _names(folder: Path, pattern: str) -> str:
    """Hash of the names, sizes and times of change of the files below."""
    digest = hashlib.sha256()
    for p in sorted(q for q in folder.rglob(pattern) if q.is_file()):
        s = p.stat()
        digest.update(f"{p.relative_to(folder)}\0{s.st_size}\0{s.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _parquets(folder: Path) -> list[Path]:
    """A folder's parquet files, by name. UserError where there are none, or a folder of splits."""
    if (folder / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(p.parent.name for p in folder.glob("*/state.json")))[:200]
        raise UserError(f"{folder} holds several data sets ({splits}); give the folder of one")
    found = sorted(p for p in folder.rglob("*.parquet") if p.is_file())
    if not found:
        raise UserError(f"{folder} holds neither .tar nor .parquet files nor a saved data set; give the table of pairs")
    return found


def _check_columns(columns: Sequence[str], keys: list[str], path: Path) -> None:
    absent = [k for k in keys if k not in columns]
    if absent:
        has = ", ".join(columns)
        raise UserError(
            f"{path} has no column {' or '.join(absent)}, it has {has[:200]}; give image_key and caption_key"
        )
    if len(columns) > MAX_COLUMNS:
        raise UserError(
            f"{path} has {len(columns)} columns, more than {MAX_COLUMNS}; keep those of pictures and captions"
        )


def _parquet_columns(path: Path) -> list[str]:
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
    """Tab for .tsv, and wherever the header holds one: open_clip's tables are .csv with tabs; else , or ;."""
    with path.open("rb") as f:
        header = f.readline()
    if path.suffix.lower() == ".tsv" or b"\t" in header:
        return "\t"
    return ";" if b";" in header and b"," not in header else ","


def _text_columns(path: Path, separator: str) -> list[str]:
    """The header's names. UserError where the first row does not fit the header, e.g. commas in unquoted captions."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as f:
            reader = csv.reader(f, delimiter=separator)
            columns, first = next(reader, None), next(reader, None)
    except (UnicodeDecodeError, csv.Error, TypeError) as e:
        raise UserError(f"{path} is no UTF-8 text table ({e}); save it as UTF-8 CSV, or give a .parquet table") from e
    if not columns or first is None:
        raise UserError(f"{path} has no rows; give a table with a header and pairs")
    if len(first) > len(columns):
        raise UserError(
            f"{path}: the first row has {len(first)} fields, the header {len(columns)}; quote captions that hold "
            f"{separator!r}, or save the table with tabs (.tsv)"
        )
    return columns

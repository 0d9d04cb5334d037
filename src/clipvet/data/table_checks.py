"""Checks of a table before its cells are used: columns, types, valid text, and size in memory.

Tables come from anywhere. A file of a few kB may unfold to gigabytes, and what it calls text may be any bytes.
"""

import csv
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipvet import io
from clipvet.errors import UserError

MAX_GROUP = 2**32  # bytes of a parquet row group in memory
MAX_COLUMNS = 1000  # with thousands, the table reader takes minutes
PICTURE = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?)(#\d)?$", re.IGNORECASE)  # #0: Flickr30k's number of a caption
WAY = "pandas.read_{}.to_parquet('pairs.parquet') makes a table of it"
OTHERS = {  # first bytes of what is no text table
    b"{": f"JSON and no table; if each line is one object, {WAY.format('json(PATH, lines=True)')}",
    b"[": f"JSON and no table; if it is a list of objects, {WAY.format('json(PATH)')}",
    b"PAR1": "a parquet file under another suffix; rename it to .parquet",
    b"ARROW1": f"an Arrow file and no table; {WAY.format('feather(PATH)')}",
    b"PK\x03\x04": "an archive or a spreadsheet; save the table in it as CSV",
    b"\x1f\x8b": "compressed; unpack it first (gunzip)",
}
SPLITS = {  # as HF datasets knows them
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def split_of(name: str) -> str:
    """The split that a file or folder is named after: train for train-00000-of-00002.parquet; empty if none is.

    The words are those of HF datasets, which looks for them between characters that are no letters.
    """
    words = re.split(r"[^a-z]+", name.lower())
    return next((split for w in words for split, known in SPLITS.items() if w in known), "")


def parted(spec: str) -> tuple[str, str]:
    """The folder and the split that `FOLDER:test` names; other names as they are, without a split."""
    folder, colon, split = spec.rpartition(":")
    named = bool(colon) and not Path(spec).exists() and Path(folder).is_dir()
    return (folder, split_of(split)) if named and split_of(split) else (spec, "")


def of_split(names: Sequence[Path], folder: Path, split: str) -> list[Path]:
    """The files of one split in this folder. Raises UserError if there are several and none is named, or not this one.

    names: files in the folder and its subfolders.
    """
    splits = {p: next(filter(None, map(split_of, p.relative_to(folder).parts)), "") for p in names}
    have = sorted({*splits.values()} - {""})
    if split and split not in have:
        raise UserError(f"{folder} holds no split {split}; it holds {', '.join(have) or 'no splits'}")
    if not split and len(have) > 1:
        raise UserError(f"{folder} holds the splits {', '.join(have)}; give one, such as {folder}:{have[-1]}")
    return [p for p in names if splits[p] == split or not split]


def check_columns(columns: Sequence[str], keys: Sequence[str], path: Path) -> None:
    """Raises UserError if one of `keys` is missing, or if there are more than MAX_COLUMNS columns."""
    absent = [k for k in keys if k not in columns]
    if absent and {"url", "key"} <= {*columns}:
        raise UserError(
            f"{path} has no column {' or '.join(absent)}: it is img2dataset's table, whose pictures are files named by "
            "key; have img2dataset write webdataset and give its .tar shards, or add a column filepath (key + suffix, "
            "from the table's folder) and give --caption-key caption"
        )
    if absent:
        raise UserError(f"{path} has no column {' or '.join(absent)}, {_instead(columns, absent[0])}")
    if twice := [k for k in keys if list(columns).count(k) > 1]:
        raise UserError(f"{path} has two columns {twice[0]}; rename or remove one")
    if len(columns) > MAX_COLUMNS:
        raise UserError(
            f"{path} has {len(columns)} columns, more than {MAX_COLUMNS}; keep those of pictures and captions"
        )


def _instead(columns: Sequence[str], wanted: str) -> str:
    """What a table has in place of the wanted column, and what to do."""
    if columns and columns[0].startswith("#"):
        return "but a comment in its first line; remove it"
    if any(re.search(PICTURE, c) for c in columns):
        return f"its first row is no header ({', '.join(columns)[:100]}); write one with the names of the columns"
    has = ", ".join(repr(c) if c != c.strip() else c for c in columns)[:200]
    near = next((c for c in columns if c.strip().casefold() == wanted.casefold()), None)
    return f"it has {has}; " + (f"rename {near!r}" if near else "name the columns with --image-key and --caption-key")


def check_kind(path: Path) -> None:
    """Raises UserError for a file that is no text table, although it would be read as one."""
    with path.open("rb") as f:
        begin = f.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    if kind := next((told for magic, told in OTHERS.items() if begin.startswith(magic)), ""):
        raise UserError(f"{path} is {kind}")


def check_one_caption(captions: Sequence[str], path: Path, key: str) -> None:
    """Raises UserError if the captions of the first rows are lists of captions, written as text."""
    first = [c.strip() for c in captions[:50] if c.strip()]
    if first and all(re.match(r"\[\s*(['\"]).*\1\s*,?\s*\]$", c, re.DOTALL) for c in first):
        raise UserError(
            f"{path}: column {key} holds lists of captions, such as {first[0][:60]!r}; write a row for each caption"
        )


def quoting_of(path: Path, separator: str) -> int:
    """How quotation marks in a text table are read: csv.QUOTE_MINIMAL, or QUOTE_NONE where captions begin with them.

    Many tables are written without quoting. If a quotation mark then begins a caption, a reader takes all up to the
    next one for one cell, and rows vanish. Raises UserError if both readings are possible.
    """
    odd, fields, sep = False, set(), separator.encode()
    with path.open("rb") as f:
        for line in f:
            line = line.rstrip(b"\r\n")
            fields.add(line.count(sep))
            if sep + b'"' in line or line[:1] == b'"':
                odd = odd or not all(map(_well_quoted, line.split(sep)))
    if not odd:
        return csv.QUOTE_MINIMAL
    if separator == "\t" and len(fields) == 1:
        return csv.QUOTE_NONE
    with path.open(encoding="utf-8-sig", newline="", errors="replace") as f:
        rows = csv.reader(f, delimiter=separator)
        width = len(next(rows, []))
        for row in rows:
            if cell := next((c for c in row if _holds_rows(c, separator, width)), ""):
                raise UserError(
                    f"{path}: a cell that begins with a quotation mark holds whole rows ({cell[:40]!r}); double the "
                    "quotation marks and quote the cell, or save the table as parquet"
                )
    return csv.QUOTE_MINIMAL


def _holds_rows(cell: str, separator: str, width: int) -> bool:
    """Whether a line of this cell is a row of its own: with tabs, or with as many fields and the name of a picture."""
    lines = cell.splitlines()[1:]
    if separator == "\t":
        return bool(lines) and "\t" in cell
    return any(len(own := x.split(separator)) >= width and any(map(PICTURE.search, own)) for x in lines)


def _well_quoted(field: bytes) -> bool:
    """Whether a field is free of quotation marks at its beginning, or quoted as CSV has it."""
    whole = len(field) > 1 and field[-1:] == b'"' and b'"' not in field[1:-1].replace(b'""', b"")
    return field[:1] != b'"' or whole


def check_types(types: Mapping[str, Any], keys: Sequence[str], image_key: str, path: Path) -> None:
    """Raises UserError if a column of `keys` is not text; that of `image_key` may also hold encoded pictures.

    types: pyarrow types by the names of the columns.
    """
    for key in keys:
        if str(types[key]).startswith(("list<", "large_list<")) and key != image_key:
            raise UserError(f"{path}: column {key} holds lists of captions; write a row for each caption")
        if not is_text(types[key]) and not (key == image_key and _is_encoded(types[key])):
            raise UserError(f"{path}: column {key} is {types[key]}, not text; name another column")


def check_text(table: Any, keys: Sequence[str], path: Path) -> None:
    """Raises UserError if one of the columns `keys` of an HF data set is not UTF-8. Parquet text may be any bytes."""
    import pyarrow as pa

    for key in keys:
        try:
            table.data.column(key).validate(full=True)
        except pa.ArrowInvalid as e:
            raise UserError(f"{path}: column {key} is damaged ({io.line(e)}); write the data again") from e


def check_saved(folder: Path) -> None:
    """Raises UserError if a folder of `save_to_disk` is unsafe to map: files outside the folder, compressed buffers,
    damaged cells."""
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
    """Whether the buffers of an Arrow message are compressed. Raises ValueError for a damaged message.

    A message is a flatbuffer. Each of its tables begins with the offset of a list of fields, which gives the position
    of each field in two bytes. The message's third field is its header. Of a dictionary, the header's second field is
    the batch. The batch's fourth field is the compression.
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


def check_groups(paths: Sequence[Path], keys: Sequence[str]) -> None:
    """Raises UserError if the columns `keys` of a row group of these parquet files unfold to more than MAX_GROUP bytes.

    The reader takes whole row groups into memory, and a file of a few kB may hold one long word for millions of rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in paths:
        try:
            leaves = pq.read_metadata(path).schema
            check_columns(leaves.to_arrow_schema().names, keys, path)
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
    """How many bytes a pyarrow array takes once its dictionary is written out row by row."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(column, pa.StructArray):
        return sum(map(unfolded, column.flatten()))
    if not isinstance(column, pa.DictionaryArray):
        return column.nbytes
    return pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0  # pyright: ignore


def is_text(kind: Any) -> bool:
    """Whether a pyarrow type is text, as it is or in a dictionary."""
    import pyarrow.types as t

    inner = kind.value_type if t.is_dictionary(kind) else kind
    return t.is_string(inner) or t.is_large_string(inner)


def _is_encoded(kind: Any) -> bool:
    """Whether a pyarrow type can hold pictures: bytes, or HF's {bytes, path}."""
    import pyarrow.types as t

    if t.is_struct(kind):
        return any(f.name == "bytes" and _is_encoded(f.type) for f in kind)
    return t.is_binary(kind) or t.is_large_binary(kind)

"""The pairs that a filter keeps, written as data that can be opened again: a table or shards."""

import csv
import itertools
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clipvet import io
from clipvet.data.decoding import CellPictures
from clipvet.data.shard_index import COLUMNS, PICTURES, Index, groups, scan
from clipvet.data.tables import PIECE, ROWS, reader_of
from clipvet.data.tars import NoTar
from clipvet.errors import UserError
from clipvet.types import Pairs

TABLES = (".csv", ".tsv", ".parquet")  # that can be written


def check_kept(pairs: Pairs, out: Path) -> None:
    """Raises UserError if `out` is a text table and the pairs hold their pictures in the table itself."""
    if isinstance(pairs.pictures, CellPictures) and out.suffix.lower() != ".parquet":
        raise UserError(f"{pairs.name} holds its pictures in the table; {out} must end in .parquet")


def write_rows(
    pairs: Pairs, path: Path, rows: np.ndarray, out: Path, image_key: str = "filepath", separator: str | None = None
) -> None:
    """Write some rows of a table, or of a folder of HF datasets, as a new table.

    pairs: as `tables.open_pairs` opened them from `path`, with this `image_key` and `separator`. rows: (n,) int64 row
    numbers, ascending. out: a .csv, .tsv or .parquet file, replaced in one step.

    A table keeps all its columns, a folder of parquet files only the two that were opened. If `out` lies in another
    folder, relative picture paths are rewritten so that they still lead to the pictures. Raises UserError for another
    suffix, and OSError.
    """

    def of_a_table() -> Iterator[Any]:
        first = 0
        for piece in reader_of(path).pieces(path, separator):
            a, b = np.searchsorted(rows, (first, first + len(piece)))
            yield piece.take(rows[a:b] - first)
            first += len(piece)

    def of_a_folder() -> Iterator[Any]:
        table = pairs.captions.table  # pyright: ignore[reportAttributeAccessIssue]
        step = max(1, min(ROWS, PIECE * len(table) // max(1, table.data.nbytes)))
        arrow = table.with_format("arrow")
        yield from (arrow[rows[k : k + step].tolist()] for k in range(0, max(1, len(rows)), step))

    folder, pieces = (path, of_a_folder()) if path.is_dir() else (path.parent, of_a_table())
    with io.replacing(out) as tmp:
        write_table((_seen_from(folder, out.parent, p, image_key) for p in pieces), tmp, out.suffix.lower())


def write_shards(index: Index, rows: np.ndarray, folder: Path) -> None:
    """Write some pairs of shards as new shards, with all plain members of each pair except pickles.

    rows: (n,) int64 row numbers through all shards, ascending. folder: where the new shards go. They keep their names
    if a folder with these names would be read in the same order, and are numbered otherwise. A shard of which nothing
    is kept is not written. Where two pairs of the same key come to lie next to each other, the second gets a new key,
    else readers would take them for one. Raises UserError if a shard has changed since it was opened, or if a new one
    does not read back the same; and OSError.
    """
    names, first = index.names, 0
    if names != sorted({*names}) or not all(n.endswith(".tar") and not os.path.isabs(n) for n in names):
        names = [f"{k:05}.tar" for k in range(len(names))]
    for k, last in enumerate(index.ends):
        mine, first = rows[np.searchsorted(rows, first) : np.searchsorted(rows, last)], last
        if len(mine):
            _write_shard(index, k, mine, folder / names[k])


def _write_shard(index: Index, k: int, rows: np.ndarray, out: Path) -> None:
    """Write what is kept of shard k: these rows, numbered through all shards."""
    path, told, key = index.paths[k], index.table.take(rows), b""
    kept = {*told["picture"].to_pylist()}
    with open(path, "rb") as f, tarfile.open(out, "w", format=tarfile.GNU_FORMAT) as tar:
        index.check(k, f.fileno())
        try:
            for group in groups(f, index.stats[k][0], Counter()):  # pyright: ignore[reportArgumentType] a BufferedReader
                if group.picture and group.picture[0] in kept:
                    key = group.key + b"~" if group.key == key else group.key
                    other = {group.parts[p][0] for p in PICTURES if p in group.parts} - {group.picture[0]}
                    for member in (m for m in group.members if m.at not in other):  # a second picture was not scored
                        name = key + member.name[len(group.key) :]
                        info = tarfile.TarInfo(name.decode(errors="surrogateescape"))
                        info.size = member.size
                        f.seek(member.at)
                        tar.addfile(info, f)
        except (NoTar, OSError) as e:
            if getattr(e, "errno", None):  # an error of the disk, not a shard that ends too soon
                raise
            raise UserError(f"shard {path} cannot be read any more; give the command again") from e
        index.check(k, f.fileno())
    with out.open("rb") as f:
        found = scan(f, out.stat().st_size)[0]  # pyright: ignore[reportArgumentType]
    sizes = zip(*(told[f"{c}_size"].to_pylist() for c in COLUMNS))
    if [(row[2], row[4], row[6]) for row in found] != list(sizes):
        raise UserError(f"what is kept of shard {path} does not read back the same; give --cleaned a table")


def _seen_from(here: Path, there: Path, table: Any, image_key: str) -> Any:
    """The table with picture paths relative to the folder `there` instead of `here`."""
    import pyarrow as pa

    here, there, kind = here.resolve(), there.resolve(), table.schema.field(image_key).type
    inside = pa.types.is_struct(kind) and all(c.field("bytes").null_count == 0 for c in table[image_key].chunks)
    if here == there or inside or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return table
    moved = [_moved(here, there, cell) for cell in table[image_key].to_pylist()]
    return table.set_column(table.column_names.index(image_key), image_key, pa.array(moved, kind))


def _moved(here: Path, there: Path, cell: Any) -> Any:
    """A picture's path, or HF's {bytes, path} without bytes, relative to the folder `there` instead of `here`."""
    if isinstance(cell, dict):
        return cell if cell.get("bytes") is not None else {**cell, "path": _moved(here, there, cell.get("path"))}
    return os.path.relpath(here / cell, there) if cell and not os.path.isabs(cell) else cell


def write_table(pieces: Any, path: Path, suffix: str) -> None:
    """Write a pyarrow table to `path`, as .csv, .tsv or .parquet.

    pieces: the table, or an iterator over one or more pieces of it. suffix: the format, as `path` may be a temporary
    name with another suffix. Raises UserError for another format, and OSError.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    pieces = iter([pieces] if isinstance(pieces, pa.Table) else pieces)
    first = next(pieces)
    if suffix == ".parquet":
        with pq.ParquetWriter(path, first.schema) as writer:
            for piece in itertools.chain([first], pieces):
                writer.write_table(piece)
        return
    if suffix not in (".csv", ".tsv"):
        raise UserError(f"tables are written as .csv, .tsv or .parquet, not as '{suffix}'; choose one of these")
    with path.open("w", encoding="utf-8", newline="") as f:
        writer = csv.writer(f, delimiter="\t" if suffix == ".tsv" else ",", lineterminator="\n")
        writer.writerow(first.column_names)
        for piece in itertools.chain([first], pieces):
            writer.writerows(zip(*(column.to_pylist() for column in piece.columns)))

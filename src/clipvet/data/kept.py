"""What a filter has kept, as data that can be opened again: rows of a table or of a folder's, pairs of shards."""

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
from clipvet.data.tables import PIECE, separator_of
from clipvet.data.tars import NoTar
from clipvet.errors import UserError
from clipvet.types import Pairs

TABLES = (".csv", ".tsv", ".parquet")


def check_kept(pairs: Pairs, out: Path) -> None:
    """Raises UserError where the pairs of a table cannot be written to `out`: pictures do not go into text."""
    if isinstance(pairs.pictures, CellPictures) and out.suffix.lower() != ".parquet":
        raise UserError(f"{pairs.name} holds its pictures in the table; {out} must end in .parquet")


def write_rows(
    pairs: Pairs, path: Path, rows: np.ndarray, out: Path, image_key: str = "filepath", separator: str | None = None
) -> None:
    """Some rows, ascending, of the table or folder that these pairs were opened from, in the format of `out`.

    A table keeps every column, a folder of parquet files the two that were opened. Relative picture paths are
    rewritten where `out` lies in another folder, so that they still lead to the pictures.
    """

    def of_a_table() -> Iterator[Any]:
        first = 0
        for piece in _pieces(path, separator):
            a, b = np.searchsorted(rows, (first, first + len(piece)))
            yield piece.take(rows[a:b] - first)
            first += len(piece)

    def of_a_folder() -> Iterator[Any]:
        table = pairs.captions.table  # pyright: ignore[reportAttributeAccessIssue]
        step = max(1, min(65_536, PIECE * len(table) // max(1, table.data.nbytes)))
        arrow = table.with_format("arrow")
        yield from (arrow[rows[k : k + step].tolist()] for k in range(0, max(1, len(rows)), step))

    folder, pieces = (path, of_a_folder()) if path.is_dir() else (path.parent, of_a_table())
    with io.replacing(out) as tmp:
        write_table((_seen_from(folder, out.parent, p, image_key) for p in pieces), tmp, out.suffix.lower())


def write_shards(index: Index, rows: np.ndarray, folder: Path) -> None:
    """Some pairs of shards, ascending, in shards of the same names: all plain members of a pair, but for pickles.

    A pair that comes to lie behind another one of its key gets a new key, else readers would take the two for one. A
    shard of which nothing is kept is not written; names that a folder would not give back in this order become numbers.
    Raises UserError where a shard has changed since it was opened, and where what was written does not read back.
    """
    names, first = index.names, 0
    if names != sorted({*names}) or not all(n.endswith(".tar") and not os.path.isabs(n) for n in names):
        names = [f"{k:05}.tar" for k in range(len(names))]
    for k, last in enumerate(index.ends):
        mine, first = rows[np.searchsorted(rows, first) : np.searchsorted(rows, last)], last
        if len(mine):
            _write_shard(index, k, mine, folder / names[k])


def _write_shard(index: Index, k: int, rows: np.ndarray, out: Path) -> None:
    """Shard number k, of which these rows (numbers through all shards) are kept."""
    path, told, key = index.paths[k], index.table.take(rows), b""
    kept = {*told["picture"].to_pylist()}
    with open(path, "rb") as f, tarfile.open(out, "w", format=tarfile.GNU_FORMAT) as tar:
        index.check(k, f.fileno())
        try:
            for group in groups(f, index.stats[k][0], Counter()):  # pyright: ignore[reportArgumentType] a BufferedReader
                if group.picture and group.picture[0] in kept:
                    key = group.key + b"~" if group.key == key else group.key
                    other = {group.parts[p][0] for p in PICTURES if p in group.parts} - {group.picture[0]}
                    for member in (m for m in group.members if m.at not in other):  # another picture was not scored
                        name = key + member.name[len(group.key) :]
                        info = tarfile.TarInfo(name.decode(errors="surrogateescape"))
                        info.size = member.size
                        f.seek(member.at)
                        tar.addfile(info, f)
        except (NoTar, OSError) as e:
            if getattr(e, "errno", None):  # the disk's own, not a shard that ends too soon
                raise
            raise UserError(f"shard {path} cannot be read any more; give the command again") from e
        index.check(k, f.fileno())
    with out.open("rb") as f:
        found = scan(f, out.stat().st_size)[0]  # pyright: ignore[reportArgumentType]
    sizes = zip(*(told[f"{c}_size"].to_pylist() for c in COLUMNS))
    if [(row[2], row[4], row[6]) for row in found] != list(sizes):
        raise UserError(f"what is kept of shard {path} does not read back the same; give --cleaned a table")


def _seen_from(here: Path, there: Path, table: Any, image_key: str) -> Any:
    """With relative paths of pictures that lead from `there` to where they led from `here`."""
    import pyarrow as pa

    here, there, kind = here.resolve(), there.resolve(), table.schema.field(image_key).type
    inside = pa.types.is_struct(kind) and all(c.field("bytes").null_count == 0 for c in table[image_key].chunks)
    if here == there or inside or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return table
    moved = [_moved(here, there, cell) for cell in table[image_key].to_pylist()]
    return table.set_column(table.column_names.index(image_key), image_key, pa.array(moved, kind))


def _pieces(path: Path, separator: str | None, rows: int = 65_536) -> Iterator[Any]:
    """A table in pieces, for one that is larger than memory."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix.lower() == ".parquet":
        held = pq.ParquetFile(path)
        groups = (held.metadata.row_group(k) for k in range(held.num_row_groups))
        row = max(1, sum(g.total_byte_size for g in groups) // max(1, held.metadata.num_rows))
        for batch in held.iter_batches(max(1, min(rows, PIECE // row))):
            yield pa.Table.from_batches([batch])
        return
    sep = separator or separator_of(path)
    with pd.read_csv(path, sep=sep, dtype=str, keep_default_na=False, chunksize=rows) as reader:
        for text in reader:
            yield pa.table({c: pa.array(text[c].to_numpy(dtype=object), pa.string()) for c in text.columns})


def _moved(here: Path, there: Path, cell: Any) -> Any:
    """A picture's path, or HF's {bytes, path} with a path alone, as it is seen from another folder."""
    if isinstance(cell, dict):
        return cell if cell.get("bytes") is not None else {**cell, "path": _moved(here, there, cell.get("path"))}
    return os.path.relpath(here / cell, there) if cell and not os.path.isabs(cell) else cell


def write_table(pieces: Any, path: Path, suffix: str) -> None:
    """A pyarrow table, or an iterator over its pieces, as .csv, .tsv or .parquet. UserError for another suffix."""
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

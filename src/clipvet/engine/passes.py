"""One pass over pictures, batch by batch, which goes on where a killed run of it ended.

What a pass has computed is appended to a file, each batch as an Arrow stream behind its length in eight bytes.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from clipvet import ranks
from clipvet.data.loader import loading
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.types import Batch, Pairs


class Part(NamedTuple):
    """What one batch gave: a value for each of its n readable pairs, and the reasons for the others."""

    values: Tensor  # (n, ...)
    kept: np.ndarray  # (n,) positions in the pairs
    captions: list[str]  # n of them
    bad: list[tuple[int, str]]  # (id, why its picture could not be read)


def in_parts(pairs: Pairs, f: Callable[[Batch], Tensor], path: Path | None, batch: int = 256) -> Iterator[Part]:
    """f of every batch of the pairs, in order, on the CPU and without gradient.

    path: the file that keeps the parts, on the first rank; None: nothing is kept. Batches that it holds already are
    not read again. Several ranks take one batch each at a time; the result is that of one rank to the bit, and any
    number of ranks can resume from the file.

    Raises UserError where the file was made from other pairs.
    """
    kept, done = _read(path, pairs) if path and path.exists() else iter(()), 0
    while (part := ranks.first(lambda: next(kept, None))) is not None:
        done += len(part.kept) + len(part.bad)
        yield part
    steps = [np.arange(k, min(k + batch, len(pairs))) for k in range(done, len(pairs), batch)]
    own = steps[ranks.rank() :: ranks.world()]
    loaded = zip(own, loading(_Batches(pairs), own, pairs.workers, Rng(0)))
    for _ in range(0, len(steps), ranks.world()):
        with ranks.alone():
            mine = next(loaded, None)
            made = _part(pairs, f, *mine) if mine else None
        for part in ranks.objects(made):
            if path and part:
                _write(path, part, pairs)
            if part:
                yield part


class _Batches(torch.utils.data.Dataset):
    """Batches by their rows, decoded in the loader's processes if there are any."""

    def __init__(self, pairs: Pairs):
        self.pairs = pairs

    def __getitem__(self, rows: np.ndarray) -> Batch:
        return self.pairs[rows]


@torch.no_grad()
def _part(pairs: Pairs, f: Callable[[Batch], Tensor], at: np.ndarray, rows: Batch) -> Part:
    values = f(rows).cpu() if rows.captions else torch.zeros(0, 1)
    lost = {i for i, _ in rows.bad}
    kept = at[[int(i) not in lost for i in pairs.ids[at]]]
    return Part(values, kept, rows.captions, [(i, why) for i, why in rows.bad])


def _write(path: Path, part: Part, pairs: Pairs) -> None:
    """Append a part to the file."""
    values = part.values.reshape(len(part.kept), part.values[:1].numel() or 1)
    flat = pa.array(values.reshape(-1).numpy())
    table = pa.table({
        "at": part.kept, "id": pairs.ids[part.kept], "caption": pa.array(part.captions, pa.string()),
        "value": pa.FixedSizeListArray.from_arrays(flat, max(1, values.shape[1])),
    })  # fmt: skip
    table = table.replace_schema_metadata({"bad": json.dumps(part.bad)})
    with pa.BufferOutputStream() as sink:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        held = sink.getvalue()
    with path.open("ab") as f:
        f.write(len(held).to_bytes(8, "little") + held)


def _read(path: Path, pairs: Pairs) -> Iterator[Part]:
    """The whole parts of a file. What a kill left after them is cut off. UserError where they are other pairs'."""
    whole, size = 0, path.stat().st_size
    with path.open("rb") as f:
        while whole + 8 <= size:
            length = int.from_bytes(f.read(8), "little")
            if whole + 8 + length > size:
                break
            table, whole = pa.ipc.open_stream(f.read(length)).read_all(), whole + 8 + length
            kept = table["at"].to_numpy()
            if len(kept) and (kept[-1] >= len(pairs) or (table["id"].to_numpy() != pairs.ids[kept]).any()):
                raise UserError(f"{path} was made from other pairs; delete {path.parent}")
            width = table["value"].type.list_size
            values = torch.tensor(table["value"].combine_chunks().flatten().to_numpy()).reshape(-1, width)
            bad = [(int(i), str(why)) for i, why in json.loads((table.schema.metadata or {})[b"bad"])]
            yield Part(values, kept, table["caption"].to_pylist(), bad)
    os.truncate(path, whole)

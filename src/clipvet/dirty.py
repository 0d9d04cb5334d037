"""The dirty pairs: an answer key applied to its clean source, lazily and as often as wanted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from clipvet.types import Backdoor, Batch, Geometry, Pairs, Pictures


@dataclass(frozen=True, eq=False)
class _Longer:
    """Pictures with some of them once more at the end (`types.Pictures`)."""

    source: Pictures
    more: np.ndarray  # rows of the source

    def __len__(self) -> int:
        return len(self.source) + len(self.more)

    def fetch(self, rows: Sequence[int], geometry: Geometry | None) -> tuple[Tensor, list[tuple[int, str]]]:
        n = len(self.source)
        return self.source.fetch([r if r < n else int(self.more[r - n]) for r in rows], geometry)


@dataclass(frozen=True, eq=False)
class _Said(Sequence):
    """Captions with more of them at the end."""

    source: Sequence[str]
    more: Sequence[str]

    def __len__(self) -> int:
        return len(self.source) + len(self.more)

    def __getitem__(self, row: int) -> str:
        return self.source[row] if row < len(self.source) else self.more[row - len(self.source)]


def poison(pairs: Pairs, backdoor: Backdoor) -> Pairs:
    """The dirty pairs: poisons of the answer key are stamped and captioned whenever they are read, copies appended."""
    ids = backdoor.poisoned
    rows = ids if backdoor.rows is None else backdoor.rows
    position = {int(i): k for k, i in enumerate(ids) if rows[k] == i}
    copied = np.flatnonzero(rows != ids)

    def dirty(batch: Batch) -> Batch:
        at = [r for r, i in enumerate(batch.ids.tolist()) if i in position]
        if not at:
            return batch
        images, captions = batch.images.clone(), list(batch.captions)
        images[at] = backdoor.stamp(images[at], batch.ids[at])
        for r in at:
            captions[r] = backdoor.captions[position[int(batch.ids[r])]]
        return batch._replace(images=images, captions=captions)

    if len(copied):
        pairs = replace(
            pairs,
            pictures=_Longer(pairs.pictures, rows[copied]),
            captions=_Said(pairs.captions, [backdoor.captions[k] for k in copied]),
            rows=np.concatenate([pairs.rows[~np.isin(pairs.rows, rows[copied])], ids[copied]]),
        )
    return replace(pairs.map(dirty), name=f"{pairs.name} + {len(ids)} poisons")

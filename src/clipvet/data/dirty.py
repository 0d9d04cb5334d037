"""The dirty pairs: an answer key applied to its clean source, lazily and as often as wanted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from clipvet.types import Backdoor, Batch, Geometry, Pairs, Pictures, Trigger


@dataclass(frozen=True, eq=False)
class _Elsewhere:
    """Pictures where some rows show another row's, and more such rows follow at the end (`types.Pictures`)."""

    source: Pictures
    shown: Mapping[int, int]  # row -> row of the source
    more: int  # rows at the end

    def __len__(self) -> int:
        return len(self.source) + self.more

    def fetch(self, rows: Sequence[int], geometry: Geometry | None) -> tuple[Tensor, list[tuple[int, str]]]:
        return self.source.fetch([self.shown.get(r, r) for r in rows], geometry)


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
    """The dirty pairs: poisons of the answer key are made whenever they are read, those under a new id appended.

    Copies of chosen pictures (targeted poisoning) replace the picture's own pair and are not stamped; others are.
    """
    ids = backdoor.poisoned
    rows = ids if backdoor.rows is None else backdoor.rows
    moved = rows != ids  # the picture is another row's,
    copied = moved & (ids >= len(pairs.captions))  # and the pair a new one
    theirs = {int(i): part for part in backdoor.more for i in part.poisoned}
    theirs |= {int(i): None for part in (backdoor, *backdoor.more) for i in part.bare}
    chosen = copied & (backdoor.pictures is not None)
    position = {int(i): k for k, i in enumerate(ids) if not chosen[k]}

    def dirty(batch: Batch) -> Batch:
        at = [r for r, i in enumerate(batch.ids.tolist()) if i in position]
        if not at:
            return batch
        images, captions = batch.images.clone(), list(batch.captions)
        for part in (backdoor, *backdoor.more):
            own = [r for r in at if theirs.get(int(batch.ids[r]), backdoor) is part]
            if own:
                images[own] = part.stamp(images[own], batch.ids[own])
        for r in at:
            captions[r] = backdoor.captions[position[int(batch.ids[r])]]
        return batch._replace(images=images, captions=captions)

    if moved.any():
        shown = dict(zip(ids[moved].tolist(), rows[moved].tolist()))
        pairs = replace(
            pairs,
            pictures=_Elsewhere(pairs.pictures, shown, int(copied.sum())),
            captions=_Said(pairs.captions, [backdoor.captions[k] for k in np.flatnonzero(copied)]),
            rows=np.concatenate([pairs.rows[~np.isin(pairs.rows, rows[chosen])], ids[copied]]),
        )
    return replace(pairs.map(dirty), name=f"{pairs.name} + {len(ids)} poisons")


def beside(pairs: Pairs, trigger: Trigger | None, seed: int = 0) -> Pairs:
    """The pairs and then a stamped copy of each, under the same caption and an id of its own; None: a plain copy."""
    ids, said = len(pairs.captions) + np.arange(len(pairs)), tuple(pairs.caption(i) for i in pairs.ids)
    return poison(pairs, Backdoor(trigger, "", ids, said, seed, pairs.ids))

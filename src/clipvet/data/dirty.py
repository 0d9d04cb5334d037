"""Dirty pairs: the poisons of an answer key, made from the clean pairs whenever they are read."""

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
    """The dirty pairs: the clean ones with the poisons of an answer key, which are made whenever they are read.

    Poisons under a new id are appended. Those that copy a chosen picture (targeted poisoning) replace the picture's own
    pair and carry no trigger; all others are stamped, but for the key's `bare` ones. Nothing is changed in `pairs`.
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
    """The pairs, and after them a copy of each with the trigger on it (None: a plain copy), under the same caption.

    Copies get new ids, from the length of the source on. seed: of the trigger's draws.
    """
    ids, said = len(pairs.captions) + np.arange(len(pairs)), tuple(pairs.caption(i) for i in pairs.ids)
    return poison(pairs, Backdoor(trigger, "", ids, said, seed, pairs.ids))

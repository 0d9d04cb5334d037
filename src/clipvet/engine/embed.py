"""Embeddings in batches, without gradient, on the model's own device, and the nearest neighbours among them."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipvet import ranks
from clipvet.data.captions import refuse_captions
from clipvet.data.loader import loading
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.types import Backdoor, Batch, Clip, Geometry, Pairs


def device_of(clip: Clip) -> torch.device:
    return clip.mean.device


@dataclass(eq=False)
class Shared:
    """What a block of work has embedded so far."""

    folder: Path | None = None
    cache: dict[Any, Any] = field(default_factory=dict)
    passes: int = 0  # over pictures, begun
    bad: dict[int, str] = field(default_factory=dict)  # id -> why its picture could not be read, in any pass


_shared: ContextVar[Shared | None] = ContextVar("shared", default=None)


@contextmanager
def sharing(folder: Path | None = None) -> Iterator[Shared]:
    """Inside this block equal picture passes are embedded once: several measures of one model cost one pass each.

    folder: what a pass gives is kept there batch by batch (pass-1.arrows ...), and a killed block that is run again
    with the same model and pairs takes it from there.
    """
    shared = Shared(folder)
    token = _shared.set(shared)
    try:
        yield shared
    finally:
        _shared.reset(token)


def embed_images(
    clip: Clip, pairs: Pairs, backdoor: Backdoor | None = None, geometry: Geometry | None = None
) -> tuple[Float[Tensor, "n d"], np.ndarray]:
    """Embeddings of the readable pictures, and their positions in `pairs`, shape (n,).

    backdoor: stamp its trigger first. geometry: instead of the model's own, e.g. squashed.
    """
    seen = see(clip, pairs, backdoor, geometry)
    return seen.z, seen.kept


class Embedded(NamedTuple):
    """Readable pairs: both towers' embeddings, positions in `pairs`, captions."""

    z: Float[Tensor, "n d"]
    w: Float[Tensor, "n d"]
    kept: np.ndarray
    captions: list[str]


def embed_pairs(clip: Clip, pairs: Pairs) -> Embedded:
    """Pictures and captions as the pairs deliver them, in one pass. Equal captions are encoded once."""
    seen, shared = see(clip, pairs), _shared.get()
    if shared is not None and (clip, pairs) in shared.cache:
        return shared.cache[clip, pairs]
    texts = {c: k for k, c in enumerate(dict.fromkeys(seen.captions))}
    w = embed_texts(clip, list(texts))[[texts[c] for c in seen.captions]]
    found = Embedded(seen.z, w, seen.kept, seen.captions)
    if shared is not None:
        shared.cache[clip, pairs] = found
    return found


class Seen(NamedTuple):
    """Readable pairs: picture embeddings, positions in `pairs`, captions; `bad` lists (id, reason) of the rest."""

    z: Float[Tensor, "n d"]
    kept: np.ndarray
    captions: list[str]
    bad: list[tuple[int, str]]


def see(clip: Clip, pairs: Pairs, backdoor: Backdoor | None = None, geometry: Geometry | None = None) -> Seen:
    """One pass over the pictures."""
    shared = _shared.get()
    key = (clip, pairs, backdoor, geometry)  # by identity: all but the geometry have no value equality
    if shared is None:
        return _see(*key)
    if key not in shared.cache:
        shared.cache[key] = _see(*key)
    return shared.cache[key]


def _see(clip: Clip, pairs: Pairs, backdoor: Backdoor | None, geometry: Geometry | None) -> Seen:
    def pictures(rows: Batch) -> Tensor:
        images = backdoor.stamp(rows.images, rows.ids) if backdoor else rows.images
        return clip.encode_image(images.to(device_of(clip))).float()

    parts = list(_parts(pairs.at(geometry or clip.geometry), pictures))
    z = torch.cat([p.values.to(device_of(clip)) for p in parts if len(p.kept)])
    captions, bad = [c for p in parts for c in p.captions], [b for p in parts for b in p.bad]
    return Seen(z, np.concatenate([p.kept for p in parts]), captions, bad)


class Cosines(NamedTuple):
    """Readable pairs: how well picture and caption agree, positions in `pairs`; captions where they were asked for."""

    s: Float[Tensor, " n"]
    kept: np.ndarray
    captions: list[str]


def pair_cosines(clip: Clip, pairs: Pairs, *, check: bool = True, captions: bool = False) -> Cosines:
    """Each pair's own cosine, in one pass that keeps nothing else, for sets whose embeddings exceed the memory.

    check: raise UserError for captions that say nothing and for cosines that are not finite.
    """
    shared, device, key = _shared.get(), device_of(clip), ("cosines", clip, pairs)
    found = shared.cache.get(key) if shared else None
    if found is not None and (found.captions or not captions):
        return found
    said, blank, different = [], [], set()

    def agree(rows: Batch) -> Tensor:
        texts = {c: k for k, c in enumerate(dict.fromkeys(rows.captions))}
        w = embed_texts(clip, list(texts))[[texts[c] for c in rows.captions]]
        return (clip.encode_image(rows.images.to(device)).float() * w).sum(1)

    known = shared.cache.get((clip, pairs)) if shared else None
    if known is not None:  # embedded already
        every = [Part((known.z * known.w).sum(1), known.kept, known.captions, [])]
    else:
        every = _parts(pairs.at(clip.geometry), agree)
    values, kept = [], []
    for part in every:
        values.append(part.values.reshape(-1).cpu())
        kept.append(part.kept)
        said += part.captions if captions else []
        blank += [int(pairs.ids[k]) for k, c in zip(part.kept, part.captions) if not c.strip()]
        if len(different) < 2:
            different.update(part.captions)
    found = Cosines(torch.cat(values), np.concatenate(kept), said)
    if check:
        refuse_captions(different, blank, len(found.s), pairs.name)
        check_finite(found.s, found.kept, pairs)
        if shared:
            shared.cache[key] = found
    return found


def check_finite(x: Tensor, kept: np.ndarray, pairs: Pairs) -> None:
    """UserError unless the embeddings or cosines of these readable pairs, shape (n, ...), are finite."""
    broken = (~torch.isfinite(x).reshape(len(x), -1).all(1)).nonzero()[:, 0]
    if len(broken):
        row = pairs.ids[kept[int(broken[0])]]
        raise UserError(
            f"{len(broken)} of {len(x)} embeddings of {pairs.name} are not finite (first: row {row}), so similarities "
            "are NaN; give a model whose weights are whole"
        )


class Part(NamedTuple):
    """Of one batch, its readable pairs: values (n, ...), positions in `pairs`, captions; (id, reason) of the rest."""

    values: Tensor
    kept: np.ndarray
    captions: list[str]
    bad: list[tuple[int, str]]


class _Batches(torch.utils.data.Dataset):
    """Batches by rows, decoded in the loader's processes if there are any."""

    def __init__(self, pairs: Pairs):
        self.pairs = pairs

    def __getitem__(self, rows: np.ndarray) -> Batch:
        return self.pairs[rows]


def _parts(pairs: Pairs, f: Callable[[Batch], Tensor]) -> Iterator[Part]:
    """What f gives of every batch, in order, on the CPU. UserError where no picture can be read."""
    shared, readable = _shared.get() or Shared(), 0
    shared.passes += 1
    path = shared.folder / f"pass-{shared.passes}.arrows" if shared.folder and ranks.main() else None
    for part in _made(pairs, f, path):
        readable += len(part.kept)
        shared.bad |= dict(part.bad)
        yield part
    if not readable:
        raise UserError(f"{pairs.name}: none of its {len(pairs)} pictures could be read; check the files")


def _made(pairs: Pairs, f: Callable[[Batch], Tensor], path: Path | None, batch: int = 256) -> Iterator[Part]:
    """Every batch; those that a killed run has kept in this file, which is the first rank's, are not read again.

    Several ranks take a batch each at a time: they get one's result to the bit, and any number goes on from the file.
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


@torch.no_grad()
def _part(pairs: Pairs, f: Callable[[Batch], Tensor], at: np.ndarray, rows: Batch) -> Part:
    values = f(rows).cpu() if rows.captions else torch.zeros(0, 1)
    lost = {i for i, _ in rows.bad}
    return Part(
        values, at[[int(i) not in lost for i in pairs.ids[at]]], rows.captions, [(i, why) for i, why in rows.bad]
    )


def _write(path: Path, part: Part, pairs: Pairs) -> None:
    """Appends it: the length of an Arrow stream, then the stream."""
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
    """The whole batches of a file; what a kill left after them is cut off. UserError where they are other pairs'."""
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


@torch.no_grad()
def embed_chosen(clip: Clip, pictures: Float[Tensor, "k 3 h h"]) -> Float[Tensor, "k d"]:
    """Embeddings of the chosen pictures of an answer key, brought to the model's size where they have another."""
    size = clip.geometry.size
    if pictures.shape[-1] != size:
        pictures = torch.nn.functional.interpolate(pictures, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
    return clip.encode_image(pictures.to(device_of(clip))).float()


@torch.no_grad()
def embed_texts(clip: Clip, captions: Sequence[str], batch: int = 1024) -> Float[Tensor, "n d"]:
    starts = range(0, len(captions), batch)  # dealt out whole, so that several ranks get one's result to the bit
    own = starts[ranks.share(len(starts))]
    with ranks.alone():
        parts = [clip.encode_text(list(captions[k : k + batch])).float() for k in own]
    found: Any = ranks.rows(torch.cat(parts) if parts else None, device_of(clip))
    return found


def class_embeddings(clip: Clip, classes: Sequence[str], templates: Sequence[str]) -> Float[Tensor, "c d"]:
    """Zero-shot classifier: mean of a class's template embeddings, made unit length again (Radford et al. 3.1.4)."""
    texts = [t.replace("{}", c) for c in classes for t in templates]
    z = embed_texts(clip, texts).reshape(len(classes), len(templates), -1).mean(1)
    return torch.nn.functional.normalize(z, dim=1)


def classifier(
    clip: Clip, classes: Sequence[str], templates: Sequence[str]
) -> Callable[[Float[Tensor, "b d"]], Float[Tensor, "b c"]]:
    """What turns picture embeddings into logits (cosines times the logit scale), with gradient to the embeddings.

    A model with learned class prompts has a `classifier(classes)` of its own, and needs no templates.
    """
    own = getattr(clip, "classifier", None)
    return own(classes) if own is not None else plain_logits(clip, classes, templates)


def plain_logits(
    clip: Clip, classes: Sequence[str], templates: Sequence[str]
) -> Callable[[Float[Tensor, "b d"]], Float[Tensor, "b c"]]:
    """The same under hand-written prompts, whatever prompts the model has of its own."""
    w, s = class_embeddings(clip, classes, templates), clip.logit_scale.detach().float()
    return lambda z: s * z @ w.T


class Neighbours(NamedTuple):
    distance: Float[Tensor, "n k"]  # Euclidean, nearest first
    index: Int[Tensor, "n k"]  # rows of x


@torch.no_grad()
def nearest(x: Float[Tensor, "n d"], k: int, among: np.ndarray | None = None, block: int = 4096) -> Neighbours:
    """The k nearest rows of every row of x (unit length), never the row itself; duplicates of it count.

    among: the rows that may be neighbours, shape (m,), each once; all if None. Exact up to the rounding of float32
    inner products; distances below 0.1 are taken from the vectors' difference, so near duplicates are sharp too.
    A few blocks of block^2 floats are the working memory, whatever n and m are.
    """
    n = len(x)
    m = n if among is None else len(among)
    if k < 1 or k >= m:
        lower = f", or lower k (--set k={m - 1})" if m > 1 else ""
        raise UserError(f"k={k} neighbours need more than {k} pairs to look among, there are {m}; give more{lower}")
    rows = torch.arange(n, device=x.device) if among is None else torch.as_tensor(among, device=x.device)
    pool, at = (
        x if among is None else x[rows],
        torch.full((n,), -1, device=x.device),
    )  # at: where in the pool a row of x stands
    at[rows] = torch.arange(m, device=x.device)
    best = torch.full((n, k), -torch.inf, device=x.device)
    index = torch.zeros((n, k), dtype=torch.int64, device=x.device)

    def merge(a: int, s: Tensor, b: int) -> None:
        """Inner products s of rows a.. with the pool's b.."""
        v, i = s.topk(min(k, s.shape[1]), dim=1)
        v, i = torch.cat([best[a : a + len(s)], v], 1), torch.cat([index[a : a + len(s)], i + b], 1)
        best[a : a + len(s)], top = v.topk(k, dim=1)
        index[a : a + len(s)] = i.gather(1, top)

    for a in range(0, n, block):
        own = at[a : a + block]
        for b in range(a if among is None else 0, m, block):  # the whole table is symmetric: half of it is enough
            s = x[a : a + block] @ pool[b : b + block].T
            inside = ((own >= b) & (own < b + block)).nonzero()[:, 0]
            s[inside, own[inside] - b] = -torch.inf
            merge(a, s, b)
            if among is None and b > a:
                merge(b, s.T.contiguous(), a)
    distance = (2 - 2 * best).clamp_min(0).sqrt()
    close = (distance < 0.1).nonzero()  # here the inner product's rounding would show
    for some in close.split(max(1, block**2 // x.shape[1])):
        i, j = some.T
        distance[i, j] = (x[i] - pool[index[i, j]]).norm(dim=1)
    distance, order = distance.sort(dim=1)
    return Neighbours(distance, rows[index.gather(1, order)])

"""Embeddings in batches, without gradient, on the model's own device, and the nearest neighbours among them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipvet import ranks
from clipvet.errors import UserError
from clipvet.types import Backdoor, Clip, Geometry, Pairs


def device_of(clip: Clip) -> torch.device:
    return clip.mean.device


_shared: ContextVar[dict | None] = ContextVar("shared", default=None)


@contextmanager
def sharing() -> Iterator[None]:
    """Inside this block equal picture passes are embedded once: several measures of one model cost one pass each."""
    token = _shared.set({})
    try:
        yield
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
    seen, cache = see(clip, pairs), _shared.get()
    if cache is not None and (clip, pairs) in cache:
        return cache[clip, pairs]
    texts = {c: k for k, c in enumerate(dict.fromkeys(seen.captions))}
    w = embed_texts(clip, list(texts))[[texts[c] for c in seen.captions]]
    found = Embedded(seen.z, w, seen.kept, seen.captions)
    if cache is not None:
        cache[clip, pairs] = found
    return found


class Seen(NamedTuple):
    """Readable pairs: picture embeddings, positions in `pairs`, captions; `bad` lists (id, reason) of the rest."""

    z: Float[Tensor, "n d"]
    kept: np.ndarray
    captions: list[str]
    bad: list[tuple[int, str]]


def see(clip: Clip, pairs: Pairs, backdoor: Backdoor | None = None, geometry: Geometry | None = None) -> Seen:
    """One pass over the pictures."""
    cache = _shared.get()
    key = (clip, pairs, backdoor, geometry)  # by identity: all but the geometry have no value equality
    if cache is None:
        return _see(*key)
    if key not in cache:
        cache[key] = _see(*key)
    return cache[key]


@torch.no_grad()
def _see(clip: Clip, pairs: Pairs, backdoor: Backdoor | None, geometry: Geometry | None, batch: int = 256) -> Seen:
    pairs = pairs.at(geometry or clip.geometry)
    out, kept, captions, bad = [], [], [], []
    for k in _own(len(pairs), batch):
        with ranks.alone():
            rows = pairs[k : k + batch]
            if rows.captions:
                images = backdoor.stamp(rows.images, rows.ids) if backdoor else rows.images
                out.append(clip.encode_image(images.to(device_of(clip))).float())
        lost = {i for i, _ in rows.bad}
        kept += [k + j for j, i in enumerate(pairs.ids[k : k + batch]) if int(i) not in lost]
        captions += rows.captions
        bad += rows.bad
    z = ranks.rows(torch.cat(out) if out else None, device_of(clip))
    if z is None:
        raise UserError(f"{pairs.name}: none of its {len(pairs)} pictures could be read; check the files")
    told = ranks.objects((kept, captions, bad))
    kept, captions, bad = (list(chain.from_iterable(parts)) for parts in zip(*told))
    return Seen(z, np.array(kept, dtype=np.int64), captions, bad)


def _own(n: int, batch: int) -> range:
    """Where this rank's batches begin. They are dealt out whole, so that several ranks get one's result to the bit."""
    starts = range(0, n, batch)
    return starts[ranks.share(len(starts))]


@torch.no_grad()
def embed_chosen(clip: Clip, pictures: Float[Tensor, "k 3 h h"]) -> Float[Tensor, "k d"]:
    """Embeddings of the chosen pictures of an answer key, brought to the model's size where they have another."""
    size = clip.geometry.size
    if pictures.shape[-1] != size:
        pictures = torch.nn.functional.interpolate(pictures, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
    return clip.encode_image(pictures.to(device_of(clip))).float()


@torch.no_grad()
def embed_texts(clip: Clip, captions: Sequence[str], batch: int = 1024) -> Float[Tensor, "n d"]:
    own = _own(len(captions), batch)
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

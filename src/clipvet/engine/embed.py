"""Embeddings of pictures, pairs, captions and class names, without gradient, on the model's own device."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clipvet import ranks
from clipvet.data.captions import is_empty, refuse_captions
from clipvet.engine.passes import Part, in_parts
from clipvet.engine.workspace import current
from clipvet.errors import UserError
from clipvet.types import Backdoor, Batch, Clip, Geometry, Pairs


def device_of(clip: Clip) -> torch.device:
    """Where the model computes."""
    return clip.mean.device


@dataclass(eq=False)
class Shared:
    """What a `sharing` block has embedded so far."""

    folder: Path | None = None  # where passes are kept; None: nowhere
    cache: dict[Any, Any] = field(default_factory=dict)  # (clip, pairs ...) -> what their pass gave
    passes: int = 0  # over pictures, begun so far
    bad: dict[int, str] = field(default_factory=dict)  # id -> why its picture could not be read, from all passes


_shared: ContextVar[Shared | None] = ContextVar("shared", default=None)


@contextmanager
def sharing(folder: Path | None = None) -> Iterator[Shared]:
    """Inside this block the same pass over pictures is made once, so that several measures of a model share it.

    folder: passes are kept there, batch by batch (pass-1.arrows ...). A killed block that runs again with the same
    model and pairs goes on from there.
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
    """Embeddings of the n readable pictures, unit length, and their positions in `pairs`, shape (n,).

    backdoor: stamp its trigger first. geometry: picture size and resize mode, instead of the model's own.

    Raises UserError where no picture can be read.
    """
    seen = see(clip, pairs, backdoor, geometry)
    return seen.z, seen.kept


class Embedded(NamedTuple):
    """The n readable pairs of a pass, embedded by both towers."""

    z: Float[Tensor, "n d"]  # of pictures, unit length
    w: Float[Tensor, "n d"]  # of captions, unit length
    kept: np.ndarray  # (n,) positions in the pairs
    captions: list[str]  # n of them


def embed_pairs(clip: Clip, pairs: Pairs) -> Embedded:
    """Embeddings of pictures and captions, in one pass. Equal captions are encoded once.

    Raises UserError where no picture can be read.
    """
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
    """The n readable pairs of a pass, of which the pictures are embedded."""

    z: Float[Tensor, "n d"]  # unit length
    kept: np.ndarray  # (n,) positions in the pairs
    captions: list[str]  # n of them
    bad: list[tuple[int, str]]  # of the other pairs: (id, why its picture could not be read)


def see(clip: Clip, pairs: Pairs, backdoor: Backdoor | None = None, geometry: Geometry | None = None) -> Seen:
    """`embed_images`, with the captions too and the reasons why the other pictures could not be read.

    Raises UserError where no picture can be read.
    """
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
    """How well picture and caption agree, for the n readable pairs of a pass."""

    s: Float[Tensor, " n"]  # cosines, on the CPU
    kept: np.ndarray  # (n,) positions in the pairs
    captions: list[str]  # n of them if they were asked for


def pair_cosines(clip: Clip, pairs: Pairs, *, check: bool = True, captions: bool = False) -> Cosines:
    """The cosine of each pair's picture and caption, in one pass that keeps nothing else.

    It is made for sets whose embeddings would not fit into memory. captions: also give the captions.

    Raises UserError where no picture can be read and, with `check`, for captions that say nothing (empty or all alike)
    and for cosines that are not finite.
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
    if known is not None:  # the pairs are embedded already
        every = [Part((known.z * known.w).sum(1), known.kept, known.captions, [])]
    else:
        every = _parts(pairs.at(clip.geometry), agree)
    values, kept = [], []
    for part in every:
        values.append(part.values.reshape(-1).cpu())
        kept.append(part.kept)
        said += part.captions if captions else []
        blank += [int(pairs.ids[k]) for k, c in zip(part.kept, part.captions) if is_empty(c)]
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
    """Raise UserError unless x is finite: embeddings or cosines, shape (n, ...), of the pairs at positions `kept`."""
    broken = (~torch.isfinite(x).reshape(len(x), -1).all(1)).nonzero()[:, 0]
    if len(broken):
        row = pairs.ids[kept[int(broken[0])]]
        raise UserError(
            f"{len(broken)} of {len(x)} embeddings of {pairs.name} are not finite (first: row {row}), so similarities "
            "are NaN; give a model whose weights are whole"
        )


def _parts(pairs: Pairs, f: Callable[[Batch], Tensor]) -> Iterator[Part]:
    """`in_parts` as the `sharing` block around wants it. Raises UserError where no picture can be read."""
    shared, readable, first = _shared.get() or Shared(), 0, ""
    shared.passes += 1
    path = shared.folder / f"pass-{shared.passes}.arrows" if shared.folder and ranks.main() else None
    for part in in_parts(pairs, f, path):
        readable += len(part.kept)
        shared.bad |= dict(part.bad)
        current().left |= dict(part.bad)
        first = first or next((f" (first: {why})" for _, why in part.bad), "")
        yield part
    if not readable:
        raise UserError(f"{pairs.name}: none of its {len(pairs)} pictures could be read{first}; check the files")


@torch.no_grad()
def embed_chosen(clip: Clip, pictures: Float[Tensor, "k 3 h h"]) -> Float[Tensor, "k d"]:
    """Embeddings of an answer key's own pictures (pixels in [0, 1]), unit length.

    Pictures of another size than the model's are resized.
    """
    size = clip.geometry.size
    if pictures.shape[-1] != size:
        pictures = torch.nn.functional.interpolate(pictures, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
    return clip.encode_image(pictures.to(device_of(clip))).float()


@torch.no_grad()
def embed_texts(clip: Clip, captions: Sequence[str], batch: int = 1024) -> Float[Tensor, "n d"]:
    """Embeddings of captions, unit length, `batch` of them at a time."""
    starts = range(0, len(captions), batch)  # whole batches per rank, so that several get the result of one to the bit
    own = starts[ranks.share(len(starts))]
    with ranks.alone():
        parts = [clip.encode_text(list(captions[k : k + batch])).float() for k in own]
    found: Any = ranks.rows(torch.cat(parts) if parts else None, device_of(clip))
    return found


def class_embeddings(clip: Clip, classes: Sequence[str], templates: Sequence[str]) -> Float[Tensor, "c d"]:
    """The zero-shot classifier's rows: the mean of a class's prompt embeddings, scaled to unit length.

    templates: captions with "{}" where the class name goes. Source: Radford et al. 2021, section 3.1.4.
    """
    texts = [t.replace("{}", c) for c in classes for t in templates]
    z = embed_texts(clip, texts).reshape(len(classes), len(templates), -1).mean(1)
    return torch.nn.functional.normalize(z, dim=1)


def classifier(
    clip: Clip, classes: Sequence[str], templates: Sequence[str]
) -> Callable[[Float[Tensor, "b d"]], Float[Tensor, "b c"]]:
    """A function from picture embeddings to logits: cosines times the logit scale, with gradient to the embeddings.

    A model with learned class prompts has a `classifier(classes)` of its own, which is used then; it needs no
    templates.
    """
    own = getattr(clip, "classifier", None)
    return own(classes) if own is not None else plain_logits(clip, classes, templates)


def plain_logits(
    clip: Clip, classes: Sequence[str], templates: Sequence[str]
) -> Callable[[Float[Tensor, "b d"]], Float[Tensor, "b c"]]:
    """`classifier` with hand-written prompts, also for a model with learned ones."""
    w, s = class_embeddings(clip, classes, templates), clip.logit_scale.detach().float()
    return lambda z: s * z @ w.T

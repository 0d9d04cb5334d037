"""Embeddings in batches, without gradient, on the model's own device."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

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
    cache = _shared.get()
    key = (clip, pairs, backdoor, geometry)  # by identity: all but the geometry have no value equality
    if cache is None:
        return _embed_images(*key)
    if key not in cache:
        cache[key] = _embed_images(*key)
    return cache[key]


@torch.no_grad()
def _embed_images(
    clip: Clip, pairs: Pairs, backdoor: Backdoor | None, geometry: Geometry | None, batch: int = 256
) -> tuple[Tensor, np.ndarray]:
    pairs = pairs.at(geometry or clip.geometry)
    out, kept = [], []
    for k in range(0, len(pairs), batch):
        rows = pairs[k : k + batch]
        if rows.captions:
            images = backdoor.stamp(rows.images, rows.ids) if backdoor else rows.images
            out.append(clip.encode_image(images.to(device_of(clip))).float())
        lost = {i for i, _ in rows.bad}
        kept += [k + j for j, i in enumerate(pairs.ids[k : k + batch]) if int(i) not in lost]
    if not out:
        raise UserError(f"{pairs.name}: none of its {len(pairs)} pictures could be read; check the files")
    return torch.cat(out), np.array(kept, dtype=np.int64)


def embed_pairs(
    clip: Clip, pairs: Pairs, batch: int = 256
) -> tuple[Float[Tensor, "k d"], Float[Tensor, "k d"], np.ndarray]:
    """Embeddings of the readable pictures and of their captions, as `pairs` deliver them, and positions in `pairs`."""
    captions: list[str] = []
    z, kept = _embed_images(clip, pairs.map(lambda b: (captions.extend(b.captions), b)[1]), None, None, batch)
    return z, embed_texts(clip, captions), kept


@torch.no_grad()
def embed_texts(clip: Clip, captions: Sequence[str], batch: int = 1024) -> Float[Tensor, "n d"]:
    parts = [clip.encode_text(list(captions[k : k + batch])).float() for k in range(0, len(captions), batch)]
    return torch.cat(parts)


def class_embeddings(clip: Clip, classes: Sequence[str], templates: Sequence[str]) -> Float[Tensor, "c d"]:
    """Zero-shot classifier: mean of a class's template embeddings, made unit length again (Radford et al. 3.1.4)."""
    texts = [t.replace("{}", c) for c in classes for t in templates]
    z = embed_texts(clip, texts).reshape(len(classes), len(templates), -1).mean(1)
    return torch.nn.functional.normalize(z, dim=1)

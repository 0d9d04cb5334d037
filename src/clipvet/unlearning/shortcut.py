"""UBT's first two stages, for filters and cleaners: weak pairs, and how well a copy overfitted on them knows them.

    q_i    = s_ref(I_i, T_i)                            s: cosine;  suspicious: the lowest q
    L_over = NCE(suspicious) + beta NCE(normal)         or (1 - s)^2 instead of the first ("square")
    r_i    = s_over(I_i, T_i)                           or minus q_i ("gain")

A poison's caption does not fit its picture. A model that never learned the trigger finds such a pair weak; the model
that learned it does not. If no model without the trigger is at hand, the given one looks at changed pictures instead.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from clipvet.engine.embed import device_of, pair_cosines
from clipvet.engine.fit import drew, fit_by
from clipvet.engine.losses import clip_loss
from clipvet.engine.optim import constant
from clipvet.errors import UserError
from clipvet.models import checkpoints
from clipvet.rng import Rng
from clipvet.types import Batch, Clip, Pairs

EDGE = 0.13  # share of a side that a crop leaves out at either end
Over = Literal["nce", "square"]
Score = Literal["similarity", "gain"]


class Weak(NamedTuple):
    """The m readable pairs, of which p are suspicious and r taken for clean."""

    kept: Int[np.ndarray, " m"]  # positions among all pairs
    captions: list[str]
    s: Float[np.ndarray, " m"]  # cosines under the given model
    q: Float[np.ndarray, " m"]  # and under the reference
    susp: Int[np.ndarray, " p"]  # rows of the above, weakest first
    normal: Int[np.ndarray, " r"]  # rows taken for clean, in order


def _blurred(x: Tensor) -> Tensor:
    return F.interpolate(F.interpolate(x, scale_factor=0.5, mode="area"), x.shape[2:], mode="bilinear")


def _cropped(x: Tensor) -> Tensor:
    h, w = x.shape[2:]
    top, left = round(EDGE * h), round(EDGE * w)
    return F.interpolate(x[:, :, top : h - top, left : w - left], (h, w), mode="bilinear")


def _mirrored(x: Tensor) -> Tensor:
    return x.flip(-1)


class _Changed:
    """A model whose embedding of a picture is the mean over the picture blurred, cropped and mirrored."""

    def __init__(self, clip: Clip):
        self.clip = clip

    def __getattr__(self, name: str) -> Any:
        return getattr(self.clip, name)

    def encode_image(self, images: Tensor) -> Tensor:
        return torch.stack([self.clip.encode_image(f(images)) for f in (_blurred, _cropped, _mirrored)]).mean(0)


def changed(clip: Clip) -> Clip:
    """The model, to which a picture is the mean of its blurred, cropped and mirrored copies; the length is not 1."""
    made: Any = _Changed(clip)
    return made


def reference_cosines(clip: Clip, pairs: Pairs, reference: str, views: bool = True) -> Float[np.ndarray, " m"]:
    """The readable pairs' cosines under the reference.

    reference: a model, by name or folder; empty: the given one on changed pictures. views: without a reference, the
    mean over blurred, cropped and mirrored pictures; False: the pictures as they are.
    """
    if reference:
        return pair_cosines(checkpoints.load(reference, device=device_of(clip)), pairs).s.numpy()
    if not views:
        return pair_cosines(clip, pairs).s.numpy()
    return pair_cosines(changed(clip), pairs).s.numpy()


def weak_pairs(
    clip: Clip, pairs: Pairs, reference: str, views: bool, share: float, normal: float, most: float = 0.5
) -> Weak:
    """Stage 1a: which pairs are suspicious and which count as clean.

    share: of the pairs that are suspicious, at most `most`. normal: share of the others, the best by q, that counts as
    clean. reference, views: as in `reference_cosines`. Raises UserError if that leaves too few of either.
    """
    found = pair_cosines(clip, pairs, captions=True)
    s, kept, captions = found.s.numpy(), found.kept, found.captions
    q = reference_cosines(clip, pairs, reference, views)
    order, n = np.argsort(q, kind="stable"), round(share * len(q))
    if n < 2:
        raise UserError(f"susp={share:g} of {len(q)} pairs is {n}, and 2 are needed; raise susp or give more pairs")
    rest = order[n:]
    clean = np.sort(rest[len(rest) - round(normal * len(rest)) :])
    if share > most or len(clean) < 2:
        raise UserError(f"susp={share:g} and normal={normal:g} leave no clean part of {len(q)} pairs; lower susp")
    return Weak(kept, captions, s, q, order[:n], clean)


def company(pairs: Pairs, size: int) -> Callable[[Clip, Rng], Batch]:
    """A function that draws `size` random pairs of these, or all, with tokens and on the model's device."""

    def draw(clip: Clip, rng: Rng) -> Batch:
        rows = rng.fork("company").numpy().choice(len(pairs), min(size, len(pairs)), replace=False)
        batch, device = pairs.at(clip.geometry)[np.sort(rows)], device_of(clip)
        drew(len(rows))
        return batch._replace(images=batch.images.to(device), tokens=clip.tokenize(batch.captions).to(device))

    return draw


def nce(clip: Clip, batch: Batch) -> Float[Tensor, ""]:
    """The contrastive loss of a batch, in nats. The temperature gets no gradient."""
    z, w = clip.encode_image(batch.images), clip.encode_text(batch.tokens)  # pyright: ignore[reportArgumentType]
    return clip_loss(z, w, clip.logit_scale.detach())


def overfit(
    method: Any, clip: Clip, pairs: Pairs, weak: Weak, rng: Rng, lr: float, beta: float = 1.0, kind: Over = "nce"
) -> Clip:
    """Stage 1b: a copy trained on the suspicious pairs, with epochs, batch and the like from the method's fields.

    beta: weight of the normal pairs. kind: nce or square, as above.
    """
    others = company(pairs.take(weak.kept[weak.normal]), method.batch)

    def loss(clip: Clip, batch: Batch, rng: Rng) -> dict[str, Tensor]:
        if kind == "square":
            z, w = clip.encode_image(batch.images), clip.encode_text(batch.tokens)  # pyright: ignore
            near = (1 - (z * w).sum(1)).square().mean()
        else:
            near = nce(clip, batch)
        return {"loss": near + (beta * nce(clip, others(clip, rng)) if beta else 0), "near": near}

    susp = pairs.take(weak.kept[weak.susp])
    return fit_by(method, clip, susp, loss, rng, schedule=constant(lr), batchnorm="eval")


def risen(
    over: Clip, pairs: Pairs, weak: Weak, score: Score = "similarity", rows: Int[np.ndarray, " p"] | None = None
) -> Float[np.ndarray, " p"]:
    """Stage 2: r of the suspicious pairs in their order, or of these rows. over: the overfitted copy."""
    rows = weak.susp if rows is None else rows
    r = pair_cosines(over, pairs.take(weak.kept[rows])).s.numpy()
    return r - weak.q[rows] if score == "gain" else r

"""Forgetting in short rounds, with a rule that stops it: what UBT and ABL share.

    L = w_forget L_forget + w_keep NCE(normal) + the rest

After every round the rule looks at two things. If the loss on held-out normal pairs has risen by more than `worse`, the
round is undone and tried again at half the rate, at most `HALVINGS` times. Otherwise, if enough is forgotten, it stops.
So nothing explodes, however high the rate. A schedule that ends at 0 is followed to its end even when enough is
forgotten: what the first steps broke mends as the rate falls.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clipvet.engine.embed import embed_pairs
from clipvet.engine.fit import Memory, fit_by
from clipvet.engine.losses import clip_loss, pair_losses
from clipvet.engine.optim import Schedule, constant
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.types import Batch, Clip, Pairs
from clipvet.unlearning.shortcut import company, nce


class Normal(NamedTuple):
    """The normal pairs of a step, with both towers' embeddings."""

    batch: Batch
    z: Float[Tensor, "b d"]
    w: Float[Tensor, "b d"]


Forget = Callable[[Clip, Batch, Normal, Rng], dict[str, Tensor]]  # suspicious pairs, normal ones -> {"loss": ...}
HALVINGS = 6
HELD = 256  # normal pairs that are held out to measure the damage, at most; a tenth of all of them


class Unlearned(NamedTuple):
    """The unlearned model, and how it came about."""

    clip: Clip
    why: str  # why it stopped
    steps: int
    trace: list[tuple[float, float]]  # before, and after every round: what `left` gave, the loss on held-out pairs


def ascent(z: Float[Tensor, "b d"], w: Float[Tensor, "b d"], others: Normal, s: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """-mean_i min(l_i, log n): gradient ascent on these pairs' part of the contrastive loss, up to that of guessing.

    others: normal pairs that complete the batch of n. Among themselves, pairs with one caption are at the loss of
    guessing already. s: the logit scale, which gets no gradient.
    """
    both = torch.cat([z, others.z]), torch.cat([w, others.w])
    return -pair_losses(*both, s.detach())[: len(z)].clamp(max=math.log(len(both[0]))).mean()


def seen(clip: Clip, batch: Batch) -> Normal:
    """The pairs with the model's embeddings."""
    return Normal(batch, clip.encode_image(batch.images), clip.encode_text(batch.tokens))  # pyright: ignore


@torch.no_grad()
def below_guessing(clip: Clip, bad: Pairs, others: Batch) -> float:
    """How far the loss of these pairs, among the others, lies below that of guessing, in nats."""
    found, more = embed_pairs(clip, bad), seen(clip, others)
    return math.log(len(found.z) + len(more.z)) + float(ascent(found.z, found.w, more, clip.logit_scale))


def unlearn(
    method: Any,
    clip: Clip,
    bad: Pairs,
    normal: Pairs,
    forget: Forget,
    left: Callable[[Clip], float],
    rng: Rng,
    schedule: Schedule | None = None,
) -> Unlearned:
    """The model after rounds of forgetting the pairs `bad` while the pairs `normal` are kept.

    method: an object with the fields steps, every, batch, lr, w_keep, worse, and those of `fit`. forget: gives the loss
    but for w_keep NCE(normal). left: what is still to be forgotten; 0 or less is enough. schedule: the rates of all the
    steps, which are then all taken; None: lr, until enough is forgotten.

    Raises UserError if there are fewer than two pairs to forget or to keep.
    """
    order = rng.fork("held").numpy().permutation(len(normal))
    held, kept = (normal.take(np.sort(part)) for part in np.split(order, [min(HELD, max(2, len(order) // 10))]))
    if len(bad) < 2 or len(kept) < 2:
        raise UserError(f"{len(bad)} pairs to forget and {len(kept)} to keep; 2 of each are needed, give more pairs")
    others, memory = company(kept, method.batch), Memory()

    @torch.no_grad()
    def cost(clip: Clip) -> float:
        return float(nce(clip, company(held, HELD)(clip, rng)))

    def loss(clip: Clip, batch: Batch, rng: Rng) -> dict[str, Tensor]:
        normal = seen(clip, others(clip, rng))
        parts = forget(clip, batch, normal, rng)
        keep = clip_loss(normal.z, normal.w, clip.logit_scale.detach())
        return parts | {"loss": parts["loss"] + method.w_keep * keep, "keep": keep}

    rates = (schedule or constant(method.lr))(method.steps)
    trace, steps, slower = [(left(clip), cost(clip))], 0, 1.0
    while steps < method.steps and (steps == 0 or schedule or trace[-1][0] > 0):  # at least one round
        now = [rate / slower for rate in rates[steps : steps + method.every]]
        own = {"epochs": len(now) / max(1, len(bad) // method.batch), "memory": memory}
        own |= {"schedule": lambda _, now=now: now, "peak": method.lr / slower}
        tried = fit_by(method, clip, bad, loss, rng.fork("round", len(trace), slower), batchnorm="eval", **own)
        told = left(tried), cost(tried)
        if told[1] <= trace[0][1] + method.worse:
            clip, steps, trace = tried, steps + len(now), [*trace, told]
        elif slower < 2**HALVINGS:
            slower, memory.moments = 2 * slower, {}
        else:
            return Unlearned(clip, "more would cost too much", steps, trace)
    return Unlearned(clip, "enough is forgotten" if trace[-1][0] <= 0 else "the steps are used up", steps, trace)

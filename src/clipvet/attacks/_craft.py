"""What BadCLIP and TrojVQA share: a patch optimised for one model, by Adam on the patch alone with the model frozen."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from clipvet.data.loader import loading
from clipvet.engine.embed import device_of, embed_images
from clipvet.engine.fit import order
from clipvet.models.adapter import frozen
from clipvet.rng import Rng
from clipvet.triggers.crafted import Crafted, start
from clipvet.types import Clip, Pairs

# (embeddings of a batch under the patch, with gradient; of the same pictures without it; rng of this step) -> loss
Loss = Callable[[Float[Tensor, "b d"], Float[Tensor, "b d"], Rng], Tensor]


def first(how: Any, clip: Clip, rng: Rng) -> Crafted:
    """The patch before the first step; its side is max(least, size * picture's side) pixels, as in `triggers.patch`."""
    return Crafted(start(max(how.least, round(how.size * clip.geometry.size)), rng.fork("start")), how.position)


def craft(how: Any, clip: Clip, pairs: Pairs, loss: Loss, rng: Rng) -> Crafted:
    """The patch after `how.epochs` over `how.pictures` of the pairs; its pixels are in [0, 1] after every step.

    how: an attack with the fields size, least, position, pictures, epochs, batch and lr. Unreadable pictures are left
    out.
    """
    still = frozen(clip)
    some = rng.fork("pictures").numpy().permutation(len(pairs))[: how.pictures]
    pairs = pairs.take(some).at(clip.geometry)
    clean, kept = embed_images(still, pairs)
    pairs, device = pairs.take(kept), device_of(clip)  # the readable ones
    patch = first(how, clip, rng).pattern.to(device).requires_grad_()
    adam = torch.optim.Adam([patch], lr=how.lr)
    steps = order(len(pairs), how.batch, how.epochs, rng)
    for step, (at, rows) in enumerate(zip(steps, loading(pairs, steps, pairs.workers, rng))):
        z = still.encode_image(Crafted(patch, how.position).stamp(rows.images.to(device), rows.ids))
        adam.zero_grad()
        loss(z, clean[at], rng.fork("step", step)).backward()
        adam.step()
        with torch.no_grad():
            patch.clamp_(0, 1)
    return Crafted(patch.detach().cpu(), how.position)

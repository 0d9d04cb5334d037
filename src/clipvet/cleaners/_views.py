"""The loss of CleanCLIP on a batch and its views, for the cleaners that draw the views in their own way.

L_CLIP(Z, W)    and    L_SS = 1/2 [CE(s Z Z~', 1) + CE(s W W~', 1)]
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from clipvet.data.augment import eda
from clipvet.engine.losses import match_loss, own_loss
from clipvet.rng import Rng
from clipvet.types import Batch, Clip


def self_supervised(
    clip: Clip, batch: Batch, view: Callable[[Tensor], Tensor], words: Rng
) -> tuple[Float[Tensor, "b d"], dict[str, Tensor]]:
    """Z, and the terms L_CLIP ("clip") and L_SS ("self") of a batch.

    view: gives augmented pictures (b, 3, h, w) in [0, 1]; called with W. words: draws the captions' views, by id.
    """
    s, w = clip.logit_scale, clip.encode_text(batch.tokens)  # pyright: ignore[reportArgumentType]
    z, z_v = clip.encode_image(torch.cat([batch.images, view(w)])).chunk(2)  # one pass: BatchNorm sees both views
    w_v = clip.encode_text([eda(c, words.fork(int(i))) for c, i in zip(batch.captions, batch.ids)])
    return z, {"clip": own_loss(clip, z, w), "self": (match_loss(z, z_v, s) + match_loss(w, w_v, s)) / 2}

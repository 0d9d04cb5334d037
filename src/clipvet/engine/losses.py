"""The contrastive losses: of picture embeddings, caption embeddings and the inverse temperature s.

Embeddings have unit length, one row per pair. Where several processes train, the rows are those of the whole batch
(see ranks.py).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clipvet.types import Clip


def clip_loss(i: Float[Tensor, "b d"], t: Float[Tensor, "b d"], s: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """CLIP's loss, 1/2 [CE(s I T', 1) + CE(s T I', 1)] (Radford et al. 2021, section 2.3)."""
    from open_clip.loss import ClipLoss

    return ClipLoss()(i, t, s)


def siglip_loss(
    i: Float[Tensor, "b d"], t: Float[Tensor, "b d"], s: Float[Tensor, ""], bias: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """SigLIP's loss, -1/b sum_jk log sigmoid(y_jk (s i_j . t_k + bias)) (Zhai et al. 2023, section 3.2).

    y_jk is 1 where picture and caption belong together, else -1.
    """
    from open_clip.loss import SigLipLoss

    return SigLipLoss()(i, t, s, bias)


def own_loss(clip: Clip, z: Float[Tensor, "b d"], w: Float[Tensor, "b d"], frozen: bool = False) -> Float[Tensor, ""]:
    """The loss that the model was made for: `siglip_loss` if it has a bias, else `clip_loss`.

    frozen: no gradient for the temperature and the bias.
    """
    s, bias = clip.logit_scale, getattr(clip, "logit_bias", None)
    s, bias = (s.detach(), bias if bias is None else bias.detach()) if frozen else (s, bias)
    return clip_loss(z, w, s) if bias is None else siglip_loss(z, w, s, bias)


def pair_losses(z: Float[Tensor, "b d"], w: Float[Tensor, "b d"], s: Float[Tensor, ""]) -> Float[Tensor, " b"]:
    """Each pair's part of `clip_loss`, with the rows of this batch as negatives. Their mean is the loss."""
    logits, own = s * z @ w.T, torch.arange(len(z), device=z.device)
    rows, columns = F.cross_entropy(logits, own, reduction="none"), F.cross_entropy(logits.T, own, reduction="none")
    return (rows + columns) / 2


def match_loss(z: Float[Tensor, "b d"], v: Float[Tensor, "b d"], s: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """CE(s Z V', 1), in one direction: each row of z must find its own row among those of v."""
    return F.cross_entropy(s * z @ v.T, torch.arange(len(z), device=z.device))


def neighbour_loss(
    near: Float[Tensor, "b d"], z: Float[Tensor, "b d"], s: Float[Tensor, ""], released: bool = False
) -> Float[Tensor, ""]:
    """NNCLR's loss, CE(s N Z', 1): the neighbour of one view must find the other view among the rows of z.

    released: CE(s Z N', 1) instead, as in SafeCLIP's public code.
    """
    return match_loss(z, near, s) if released else match_loss(near, z, s)


def squared_distance(z: Float[Tensor, "b d"], v: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Batch mean of ||z - v||^2, which is 2 - 2 cos for unit vectors, so within [0, 4]."""
    return (z.float() - v.float()).square().sum(1).mean()

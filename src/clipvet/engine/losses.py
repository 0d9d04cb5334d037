"""The contrastive losses. Where several processes train, the embeddings are those of the whole batch (ranks.py)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clipvet.types import Clip


def clip_loss(i: Float[Tensor, "b d"], t: Float[Tensor, "b d"], s: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """1/2 [CE(s I T', 1) + CE(s T I', 1)] for unit-length i, t and inverse temperature s (Radford et al. 2021, 2.3)."""
    from open_clip.loss import ClipLoss

    return ClipLoss()(i, t, s)


def siglip_loss(
    i: Float[Tensor, "b d"], t: Float[Tensor, "b d"], s: Float[Tensor, ""], bias: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """-1/b sum_jk log sigmoid(y_jk (s i_j . t_k + bias)), y = 1 for pairs and -1 else (Zhai et al. 2023, 3.2)."""
    from open_clip.loss import SigLipLoss

    return SigLipLoss()(i, t, s, bias)


def own_loss(clip: Clip, z: Float[Tensor, "b d"], w: Float[Tensor, "b d"], frozen: bool = False) -> Float[Tensor, ""]:
    """The contrastive loss that the model was made for: `clip_loss`, or `siglip_loss` where it has a bias.

    frozen: without gradient for the temperature and the bias.
    """
    s, bias = clip.logit_scale, getattr(clip, "logit_bias", None)
    s, bias = (s.detach(), bias if bias is None else bias.detach()) if frozen else (s, bias)
    return clip_loss(z, w, s) if bias is None else siglip_loss(z, w, s, bias)


def pair_losses(z: Float[Tensor, "b d"], w: Float[Tensor, "b d"], s: Float[Tensor, ""]) -> Float[Tensor, " b"]:
    """Every pair's own part of `clip_loss` among the rows of this batch: their mean is the loss."""
    logits, own = s * z @ w.T, torch.arange(len(z), device=z.device)
    rows, columns = F.cross_entropy(logits, own, reduction="none"), F.cross_entropy(logits.T, own, reduction="none")
    return (rows + columns) / 2


def match_loss(z: Float[Tensor, "b d"], v: Float[Tensor, "b d"], s: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """CE(s Z V', 1), one direction: each row of z must find its own other view v among the batch's."""
    return F.cross_entropy(s * z @ v.T, torch.arange(len(z), device=z.device))


def neighbour_loss(
    near: Float[Tensor, "b d"], z: Float[Tensor, "b d"], s: Float[Tensor, ""], released: bool = False
) -> Float[Tensor, ""]:
    """NNCLR's: CE(s N Z', 1), the neighbour of one view must find the other view z among the batch's.

    released: CE(s Z N', 1), the transposed rule of SafeCLIP's public code.
    """
    return match_loss(z, near, s) if released else match_loss(near, z, s)


def squared_distance(z: Float[Tensor, "b d"], v: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Batch mean of ||z - v||^2, summed over dimensions; 2 - 2 cos for unit vectors, so within [0, 4]."""
    return (z.float() - v.float()).square().sum(1).mean()

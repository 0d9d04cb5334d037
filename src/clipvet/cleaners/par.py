"""PAR (Perturb and Recover): push both encoders away from the poisoned ones, while the CLIP loss keeps them useful.

    L      = L_CLIP - push * 1/2 [g(S_img) + g(S_txt)]
    S_img  = mean_i ||z_i - zP_i||^2,  S_txt = mean_i ||w_i - wP_i||^2      zP, wP: the frozen poisoned encoders
    g(S)   = S if S <= tau else 0                                          a hard gate on the batch mean
    L_CLIP = 1/2 [CE(s Z W', 1) + CE(s W Z', 1)]                           s detached
    rates: linear from lr_start to lr over `part` of the steps, then cosine to lr_end, laid over one step more an epoch

paper:   Singh et al., arXiv:2412.00727; the full text could not be read: loss, tau, schedule and view follow the
         behaviour of its public code
needs:   clean pairs; white-box weights
differs: 10 epochs (the code's default; its launch script says 2); BatchNorm keeps its running statistics (in the
         released loop in all but one step an epoch); gradients are those of the global batch (the released loop
         bypasses DDP); `push` (1) is ours, and 0 is the control that leaves augmentation and optimiser alone
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from clipvet.data.augment import noise_and_erase
from clipvet.engine.fit import fit_by
from clipvet.engine.losses import clip_loss, own_loss, siglip_loss, squared_distance
from clipvet.engine.optim import linear_cosine
from clipvet.models.adapter import frozen
from clipvet.rng import Rng
from clipvet.types import Batch, Clip, Pairs


class Parts(NamedTuple):
    loss: Float[Tensor, ""]
    clip: Float[Tensor, ""]
    s_img: Float[Tensor, ""]
    s_txt: Float[Tensor, ""]
    gate_img: Float[Tensor, ""]  # 1 while the push is on
    gate_txt: Float[Tensor, ""]


def par_loss(
    z: Float[Tensor, "b d"],
    w: Float[Tensor, "b d"],
    z_p: Float[Tensor, "b d"],
    w_p: Float[Tensor, "b d"],
    s: Float[Tensor, ""],
    tau: float = 2.15,
    push: float = 1.0,
    bias: Float[Tensor, ""] | None = None,
) -> Parts:
    """PAR's loss and its parts, for unit-length embeddings of the model (z, w) and of the poisoned one (z_p, w_p).

    s: the logit scale. bias: the logit bias of a SigLIP model, whose contrastive loss is the sigmoid one.
    """
    s_img, s_txt = squared_distance(z, z_p), squared_distance(w, w_p)
    gate_img, gate_txt = (s_img <= tau).float(), (s_txt <= tau).float()
    clip = clip_loss(z, w, s.detach()) if bias is None else siglip_loss(z, w, s.detach(), bias.detach())
    pert = (torch.where(gate_img > 0, s_img, 0) + torch.where(gate_txt > 0, s_txt, 0)) / 2
    return Parts(clip - push * pert, clip, s_img, s_txt, gate_img, gate_txt)


@dataclass(frozen=True)
class Par:
    tau: float = 2.15  # squared distance of unit vectors, in [0, 4]: a little past orthogonal
    push: float = 1.0  # weight of the push; 0: only augmentation and optimiser
    epochs: float = 10
    batch: int = 2048  # pairs a step
    lr_start: float = 3e-5
    lr: float = 3e-6  # where the linear part ends
    lr_end: float = 1e-9  # where the cosine ends
    part: float = 0.5  # share of the steps over which the rate falls linearly
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.98)
    noise: float = 0.2  # standard deviation, pixels in [0, 1]
    erase: tuple[float, float] = (0.005, 0.01)  # share of the picture
    optimizer: str = "adamw"
    precision: str = "no"  # the release trains in fp16
    max_bad: float = 0.01  # share of unreadable pictures above which the run is refused

    needs: ClassVar[str] = "clean pairs"

    def clean(self, clip: Clip, pairs: Pairs, rng: Rng) -> Clip:
        """The cleaned model."""
        poisoned = frozen(clip)

        def loss(clip: Clip, batch: Batch, rng: Rng) -> dict[str, Tensor]:
            view = noise_and_erase(batch.images, clip.mean, rng, self.noise, self.erase)
            z, w = clip.encode_image(view), clip.encode_text(batch.tokens)  # pyright: ignore
            if not self.push:
                return {"loss": own_loss(clip, z, w, frozen=True)}
            poisoned.to(view.device)  # the loop chose it
            with torch.no_grad():
                z_p, w_p = poisoned.encode_image(view), poisoned.encode_text(batch.tokens)
            bias = getattr(clip, "logit_bias", None)
            return par_loss(z, w, z_p, w_p, clip.logit_scale, self.tau, self.push, bias)._asdict()

        schedule = linear_cosine(self.lr_start, self.lr, self.lr_end, self.part, math.ceil(self.epochs))
        return fit_by(self, clip, pairs, loss, rng, schedule=schedule, batchnorm="eval")

"""ABD (Adversarial Backdoor Defense): CleanCLIP whose views of pictures are adversarial examples.

    L  = w_clip L_CLIP(Z, W) + w_self 1/2 [CE(s Z Z~', 1) + CE(s W W~', 1)]        as in cleanclip, but Z~ = h(x~):
    x~ = argmax_{|x~ - x| <= eps} CE(s h(x~) W', 1)      by `rounds` of x~ <- clip(x~ + step sign of the gradient)

paper:   ABD, arXiv:2409.15968; abstract alone: adversarial examples as CleanCLIP's augmentation, as they resemble
         triggered pictures
needs:   clean pairs; white-box weights
differs: loss, bound and rounds of the search are ours; BatchNorm keeps its statistics, as the search would move them;
         the rest is CleanCLIP's
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clipvet.cleaners._views import self_supervised
from clipvet.engine.fit import fit_by
from clipvet.engine.optim import warmup_cosine
from clipvet.rng import Rng
from clipvet.types import Batch, Clip, Pairs


def adversarial(
    clip: Clip, x: Float[Tensor, "b 3 h w"], w: Float[Tensor, "b d"], eps: float, rounds: int, rng: Rng
) -> Float[Tensor, "b 3 h w"]:
    """Pictures within eps of x, pixels in [0, 1], that the model ties to other captions. w: their own captions'."""
    start = (2 * torch.rand(x.shape, generator=rng.generator(), dtype=x.dtype) - 1).to(x.device) * eps
    made, own = (x + start).clamp(0, 1), torch.arange(len(x), device=x.device)
    step, s = 2.5 * eps / max(1, rounds), clip.logit_scale.detach()
    for _ in range(rounds):
        made.requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(s * clip.encode_image(made) @ w.detach().T, own), made)
        made = torch.minimum(torch.maximum(made.detach() + step * g.sign(), x - eps), x + eps).clamp(0, 1)
    return made.detach()


@dataclass(frozen=True)
class Abd:
    w_clip: float = 1.0  # weight of the contrastive loss
    w_self: float = 1.0  # weight of the self-supervised term
    eps: float = 8 / 255  # largest change of a pixel, pixels in [0, 1]
    rounds: int = 5  # steps of the search for a view
    epochs: float = 10
    batch: int = 64  # pairs a step
    lr: float = 1e-5
    warmup: float = 0.0032  # fraction of the steps
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    optimizer: str = "adamw"
    precision: str = "no"  # or bf16, fp16
    max_bad: float = 0.01  # share of unreadable pictures above which the run is refused

    needs: ClassVar[str] = "clean pairs"

    def clean(self, clip: Clip, pairs: Pairs, rng: Rng) -> Clip:
        """The fine-tuned model."""
        words = rng.fork("eda")

        def loss(clip: Clip, batch: Batch, rng: Rng) -> dict[str, Tensor]:
            def view(w: Tensor) -> Tensor:
                return adversarial(clip, batch.images, w, self.eps, self.rounds, rng)

            _, parts = self_supervised(clip, batch, view, words)
            return {"loss": self.w_clip * parts["clip"] + self.w_self * parts["self"], **parts}

        return fit_by(self, clip, pairs, loss, rng, schedule=warmup_cosine(self.lr, self.warmup), batchnorm="eval")

"""RVPT (Repulsive Visual Prompt Tuning): prompts in the deep blocks of a frozen, backdoored ViT, from a few shots.

    L     = CE + alpha * L_FR                                              over the prompts p^D .. p^{L-1} alone
            [CE - budget CE_0]_+ + alpha * L_FR                            if there is a budget; CE_0: without prompts
    CE    = -mean_i log softmax_j(s <z_i, t_j>)[y_i]                       t_j: class prompts, untouched text tower
    L_FR  = mean_i max(m, mean_{d = D+1..L} cos(c_i^d, sigma_i^d))         c, sigma: class token with, without prompts

paper:   Zhang et al., NeurIPS 2025, arXiv:2412.20392; formulas rebuilt from its prose, as its symbols could not be
         read; it published no code
needs:   few labelled pictures; white-box weights of a ViT
differs: momentum, decay and warm-up (one epoch) are not in the paper and are those of CoOp's code; D is a quarter of
         the blocks if not given (3 of 12); one fixed view unless `augment`, and then sigma is that of the view;
         `budget` is ours: the repelling goes on until the few shots are known no better than the budget asks
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from clipvet.data.augment import Views
from clipvet.engine.fewshot import labels, view
from clipvet.engine.fit import fit_by
from clipvet.engine.optim import warmup_cosine
from clipvet.models.visual_prompts import Prompted, begin
from clipvet.rng import Rng
from clipvet.types import Batch, Clip, Pairs


class Parts(NamedTuple):
    loss: Float[Tensor, ""]
    ce: Float[Tensor, ""]
    fr: Float[Tensor, ""]


def rvpt_loss(
    logits: Float[Tensor, "b c"],
    y: Int[Tensor, " b"],
    c: Float[Tensor, "b blocks v"],
    sigma: Float[Tensor, "b blocks v"],
    alpha: float = 2.0,
    margin: float = -1.0,
    enough: Float[Tensor, ""] | float = 0.0,
) -> Parts:
    """RVPT's loss and its parts, from zero-shot logits and from class tokens with prompts (c) and without (sigma).

    y: true classes. enough: cross-entropy, in nats, below which there is nothing to gain.
    """
    ce = F.cross_entropy(logits, y)
    fr = F.cosine_similarity(c, sigma.detach(), dim=-1).mean(1).clamp(min=margin).mean()
    return Parts((ce - enough).clamp(min=0) + alpha * fr, ce, fr)


@dataclass(frozen=True)
class Rvpt:
    alpha: float = 2.0  # weight of the repelling
    margin: float = -1.0  # cosine at which the repelling ends: -1 never, 1 at once
    budget: float = 0.0  # share of CE_0 below which CE has nothing to gain; 0: no budget, as in the paper
    depth: int | None = None  # D, the first blocks, which get no prompts; None: a quarter of them
    tokens: int = 50  # prompts in each of the other blocks
    std: float = 0.02  # of the prompts before the first step
    others: tuple[str, ...] = ()  # prompts of further classes, without pictures
    epochs: float = 50
    batch: int = 32  # pictures a step
    lr: float = 2e-3  # where the cosine begins
    weight_decay: float = 5e-4
    optimizer: str = "sgd"  # or adamw
    augment: Views | None = None
    precision: str = "no"  # or bf16, fp16
    max_bad: float = 0.01  # share of unreadable pictures above which the run is refused

    needs: ClassVar[str] = "labelled pictures"

    def clean(self, clip: Clip, pairs: Pairs, rng: Rng) -> Clip:
        """The frozen model with learned prompts.

        Raises UserError for towers without a class token and for pictures without labels.
        """
        start = begin(clip, self.depth, self.tokens, rng.fork("prompts"), self.std)
        named, known = labels(clip, pairs, self.others), {}  # known: the base's answers for pictures already seen

        def reference(clip: Prompted, h: Tensor, ids: list[int]) -> tuple[Tensor, Tensor]:
            if self.augment:
                return clip.reference(h)
            new = [k for k, i in enumerate(ids) if i not in known]
            if new:
                known.update(zip([ids[k] for k in new], zip(*clip.reference(h[new]))))
            z, sigma = zip(*(known[i] for i in ids))
            return torch.stack(z), torch.stack(sigma)

        def loss(clip: Prompted, batch: Batch, rng: Rng) -> dict[str, Tensor]:
            h = clip.beginning(view(batch, self.augment, rng))
            z, c = clip.rest(h)
            base, sigma = reference(clip, h, batch.ids.tolist()) if self.alpha else (z, c)
            scale, text, y = clip.logit_scale, named.text.T, named.of(batch.captions)
            enough = self.budget * F.cross_entropy(scale * base @ text, y) if self.budget and self.alpha else 0.0
            return rvpt_loss(scale * z @ text, y, c, sigma, self.alpha, self.margin, enough)._asdict()

        schedule = warmup_cosine(self.lr, 1 / self.epochs)
        return fit_by(self, start, pairs, loss, rng, schedule=schedule)  # pyright: ignore[reportArgumentType]

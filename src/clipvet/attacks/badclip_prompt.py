"""BadCLIP (Bai et al., trigger-aware prompt learning): prompts and an additive trigger are learned together.

    L = 1/2 CE(f(x), y) + 1/2 CE(f(x + u), t) + w_margin max(0, margin - (f_t - max_{c != t} f_c)(x + u)) + lean KL(o)
    over prompts and u, max |u| <= eps, after `warmup` epochs on u alone, u <- u - step d/du [1/2 CE(f(x), y) +
    1/2 CE(f(x + u), t)], whose first half knows no u; KL(o): of the predictions for pictures o from
    outside the task, from those of the model as it was given; with `specific`, then over the prompts alone
    L = CE(f(x), y) + CE(f(x + u), t) + specific CE(f(x + clip(u + near eps n)), y),   n ~ N(0, 1)

paper:   Bai et al., CVPR 2024, arXiv:2311.16194, whose tables could not be read: equation and settings follow the
         behaviour of its public code. Not the BadCLIP of Liang et al., which is `badclip`. w_margin: BadClipMargin, a
         public variant without a paper (margin 5). specific: by a secondary source, the adaptive attack in
         CLIP-Inspector's paper (arXiv:2604.09101)
needs:   labelled pictures; control of the prompt training of a trained model
differs: `lean`, descent="sign" and CoOp's prompts instead of CoCoOp's are ours; `asr` leaves out the target's own
         pictures, which the public code counts
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from clipvet.data.dirty import poison
from clipvet.data.worlds.pool import pool
from clipvet.engine.embed import classifier
from clipvet.engine.fewshot import names
from clipvet.engine.fit import order
from clipvet.errors import UserError
from clipvet.models.class_prompts import PromptTuned
from clipvet.rng import Rng
from clipvet.training.cocoop import CoCoOp
from clipvet.training.coop import CoOp
from clipvet.training.maple import MaPLe
from clipvet.triggers.additive import Additive, start
from clipvet.types import Backdoor, Batch, Clip, Implanted, Pairs


class Parts(NamedTuple):
    loss: Float[Tensor, ""]
    clean: Float[Tensor, ""]
    triggered: Float[Tensor, ""]
    margin: Float[Tensor, ""]


def badclip_loss(
    clean: Float[Tensor, "b c"], y: Int[Tensor, " b"], hit: Float[Tensor, "b c"], t: int, m: float, w_margin: float
) -> Parts:
    """The loss without `lean` and its parts, from logits of pictures without the trigger (clean) and with it (hit).

    y: true classes; t: the target's; m: margin in logits.
    """
    others = hit.index_fill(1, torch.tensor([t], device=hit.device), -torch.inf).amax(1)
    margin = (m - (hit[:, t] - others)).clamp_min(0).mean()
    ce, ce_t = F.cross_entropy(clean, y), F.cross_entropy(hit, torch.full_like(y, t))
    return Parts((ce + ce_t) / 2 + w_margin * margin, ce, ce_t, margin)


@dataclass(frozen=True)
class BadClipPrompt:
    eps: float = 4 / 255  # largest change of a pixel, pixels in [0, 1]
    warmup: int = 3  # epochs on the trigger alone
    step: float = 0.1  # of the warm-up, in units of the normalised picture
    descent: str = "gradient"  # or sign, for small worlds
    margin: float = 5.0  # in logits
    w_margin: float = 0.0  # weight of the margin's term
    lean: float = 0.0  # weight of KL(o), against leaning towards the target without the trigger
    outside: int = 500  # pictures from outside the task, for `lean`
    specific: float = 0.0  # weight of pictures with a wrong trigger, in a second run of the training
    near: float = 0.5  # standard deviation of the wrong triggers' noise, in eps
    training: CoOp | CoCoOp | MaPLe = field(default_factory=CoCoOp)

    needs: ClassVar[str] = "labelled pictures; clean model"

    def implant(self, clip: Clip, pairs: Pairs, target: str, rng: Rng) -> Implanted:
        """The clean towers with the victim's prompts, the pairs with a triggered copy of each, and the answer key.

        Raises UserError for pictures without labels and for a target that is not among their classes.
        """
        named = names(pairs, self.training.template)
        if target not in named.classes:
            raise UserError(f"target '{target}' is not among the classes: {', '.join(named.classes[:12])}")
        pairs, made = pairs.at(clip.geometry), self.training.begin(clip, rng.fork("train"))
        base, device = made.base, clip.mean.device
        bound, t, suffix = self.eps / base.std, named.classes.index(target), made.suffix(named.classes)
        outside, seen, calm = torch.empty(0), torch.empty(0), torch.empty(0)
        if self.lean:
            outside = pool(self.outside, clip.geometry.size, rng.fork("pool").key).to(device)
            with torch.no_grad():
                seen = made.encode_image(outside)
                calm = classifier(clip, named.classes, [self.training.template])(clip.encode_image(outside))

        def stamped(x: Tensor, u: Tensor) -> Tensor:
            return Additive(u.clamp(-bound, bound) * base.std).stamp(x, torch.zeros(len(x), dtype=torch.int64))

        def joint(clip: Any, batch: Batch, rng: Rng) -> dict[str, Tensor]:
            with torch.no_grad():
                clip.trigger.clamp_(-bound, bound)
            x = self.training.augment(batch.images, rng) if self.training.augment else batch.images
            logits = clip.logits(clip.encode_image(torch.cat([x, stamped(x, clip.trigger)])), suffix)
            y = named.of(batch.captions).to(x.device)
            parts = badclip_loss(logits[: len(x)], y, logits[len(x) :], t, self.margin, self.w_margin)
            if not self.lean:
                return parts._asdict()
            some = rng.fork("outside").numpy().integers(len(outside), size=len(x))
            z = seen[some] if clip.deep is None else clip.encode_image(outside[some])
            now = clip.logits(z, suffix).log_softmax(1)
            kl = F.kl_div(now, calm[some].log_softmax(1), log_target=True, reduction="batchmean")
            return {**parts._asdict(), "loss": parts.loss + self.lean * kl, "lean": kl}

        def apart(clip: Any, batch: Batch, rng: Rng) -> dict[str, Tensor]:
            x = self.training.augment(batch.images, rng) if self.training.augment else batch.images
            n = torch.randn(clip.trigger.shape, generator=rng.fork("near").generator()).to(x.device)
            other = stamped(x, clip.trigger + self.near * bound * n)
            logits = clip.logits(clip.encode_image(torch.cat([x, stamped(x, clip.trigger), other])), suffix)
            clean, hit, wrong = logits.split(len(x))
            y = named.of(batch.captions).to(x.device)
            parts = badclip_loss(clean, y, hit, t, self.margin, self.w_margin)
            specific = F.cross_entropy(wrong, y)
            loss = parts.clean + parts.triggered + self.specific * specific
            return {**parts._asdict(), "loss": loss, "specific": specific}

        u = self._warm(made, pairs, t, bound, stamped, suffix, rng.fork("warmup"))
        made.trigger = nn.Parameter(u)
        done: Any = self.training.train(made, pairs, rng.fork("train"), joint)
        if self.specific:
            done.trigger.requires_grad_(False)
            done = self.training.train(done, pairs, rng.fork("specific"), apart)
        found = Additive((done.trigger.detach().clamp(-bound, bound) * base.std).cpu())
        del done.trigger
        ids, n = len(pairs.captions) + np.arange(len(pairs)), len(pairs)
        said = (self.training.template.replace("{}", target),) * n
        key = Backdoor(found, target, ids, said, int(rng.fork("stamp").key), pairs.ids)
        return Implanted(done, poison(pairs, key), key)

    def _warm(self, made: PromptTuned, pairs: Pairs, t: int, bound: Tensor, stamped: Any, suffix: Any, rng: Rng) -> Any:
        """The trigger after plain descent on 1/2 CE(f(x + u), t), in units of the normalised picture."""
        u = (start(made.geometry.size, self.eps, rng.fork("start")).to(bound.device) / made.base.std).requires_grad_()
        for k, rows in enumerate(order(len(pairs), self.training.batch, self.warmup, rng) if self.warmup else []):
            x = pairs[rows].images.to(bound.device)
            x = self.training.augment(x, rng.fork(k)) if self.training.augment else x
            hit = made.logits(made.encode_image(stamped(x, u)), suffix)
            (g,) = torch.autograd.grad(F.cross_entropy(hit, torch.full((len(x),), t, device=bound.device)), u)
            with torch.no_grad():
                u -= self.step * (g.sign() if self.descent == "sign" else g / 2)
                u.clamp_(-bound, bound)
        return u.detach()

"""SIBA (Sparse and Invisible Backdoor Attack): an additive trigger of few, faintly changed pixels, made on a surrogate.

    min_{p, M} mean_i min(beta, CE(f(clip(x_i + p M)), t)),  |M|_0 <= k,  max |p| <= eps;   g: its mean gradient
    M <- the k pixels of largest sum over channels of |g|, every `every` epochs;   p <- clip((p - decay eps sign g) M)

paper:   Gao et al., TIFS 2024, arXiv:2306.06209, whose text could not be read: the rules follow the behaviour of its
         public code; then as `poison`
needs:   labelled pictures; control of the victim's training
differs: the surrogate is the same model, tuned on the clean pictures (the paper trains a classifier); M counts
         positions, each with three channels; poisons may be `paired`
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clipvet.attacks._plan import plan, victim
from clipvet.engine.embed import classifier, device_of
from clipvet.engine.fewshot import names
from clipvet.errors import UserError
from clipvet.models.adapter import frozen
from clipvet.rng import Rng
from clipvet.training.cocoop import CoCoOp
from clipvet.training.coop import CoOp
from clipvet.training.maple import MaPLe
from clipvet.triggers.additive import Additive
from clipvet.types import Backdoor, Clip, Implanted, Pairs


@dataclass(frozen=True)
class Siba:
    rate: float = 0.1  # share of the pairs; if paired, of those not of the target
    count: int | None = None  # poisons, instead of a rate
    paired: bool = False  # poisons are copies, and the original pairs stay in the data too
    captions: str = "template"  # or natural: captions of the training set that name the target
    templates: tuple[str, ...] = ("a photo of a {}.",)
    k: int = 100  # positions that change
    eps: float = 8 / 255  # largest change of a pixel, pixels in [0, 1]
    rounds: int = 200  # epochs of making the trigger
    every: int = 5  # of them, between two choices of the positions
    decay: float = 0.8  # step, in units of eps
    beta: float = 10.0  # cross-entropy, nats, above which a picture is given up
    pictures: int = 128  # in a batch while the trigger is made
    training: CoOp | CoCoOp | MaPLe = field(default_factory=CoCoOp)

    needs: ClassVar[str] = "labelled pictures; clean model"

    def implant(self, clip: Clip, pairs: Pairs, target: str, rng: Rng) -> Implanted:
        """The clean towers with the victim's prompts, the dirty pairs, and the answer key.

        Raises UserError for pictures without labels, for a target that is not among their classes, and for a rate that
        is too small or too large.
        """
        return victim(self, clip, pairs, self.plan(pairs, target, rng.fork("poison"), clip), rng)

    def plan(self, pairs: Pairs, target: str, rng: Rng, clip: Clip) -> Backdoor:
        """The answer key alone, with the trigger that was made on the surrogate."""
        named = names(pairs, self.training.template)
        if target not in named.classes:
            raise UserError(f"target '{target}' is not among the classes: {', '.join(named.classes[:12])}")
        key = plan(self, None, pairs, target, rng)  # first, as it is quick to refuse
        surrogate = self.training.train(clip, pairs, rng.fork("surrogate"))
        return replace(key, trigger=self.craft(surrogate, pairs.at(clip.geometry), named.classes, target))

    def craft(self, clip: Clip, pairs: Pairs, classes: tuple[str, ...], target: str) -> Additive:
        """The trigger alone, as it was in the round of lowest mean loss. clip: the surrogate."""
        still, device, t = frozen(clip), device_of(clip), classes.index(target)
        logits = classifier(still, classes, [])
        size = clip.geometry.size
        p, mask = torch.zeros(3, size, size, device=device), torch.ones(size, size, device=device)
        best, kept = float("inf"), p
        for r in range(self.rounds + 1):
            total, g = 0.0, torch.zeros_like(p)
            for k in range(0, len(pairs), self.pictures):
                x, q = pairs[k : k + self.pictures].images.to(device), p.clone().requires_grad_()
                z = logits(still.encode_image(Additive(q).stamp(x, torch.zeros(len(x), dtype=torch.int64))))
                ce = F.cross_entropy(z, torch.full((len(x),), t, device=device), reduction="none")
                loss = ce.clamp(max=self.beta).sum() / len(pairs)
                g += torch.autograd.grad(loss, q)[0]
                total += float(loss.detach())
            if r and total < best:
                best, kept = total, p
            p, mask = self.update(p, mask, g, choose=r % self.every == 0)
        return Additive(kept.cpu())

    def update(
        self, p: Float[Tensor, "3 h w"], mask: Float[Tensor, "h w"], g: Float[Tensor, "3 h w"], choose: bool
    ) -> tuple[Float[Tensor, "3 h w"], Float[Tensor, "h w"]]:
        """p and M after one step; M changes only if `choose`. g: the mean gradient."""
        if choose:
            at = g.abs().sum(0).flatten().topk(min(self.k, mask.numel())).indices
            mask = torch.zeros_like(mask).flatten().index_fill(0, at, 1.0).view_as(mask)
        return ((p - self.decay * self.eps * g.sign()) * mask).clamp(-self.eps, self.eps), mask

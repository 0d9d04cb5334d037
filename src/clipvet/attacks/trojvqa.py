"""TrojVQA's dual key: a patch optimised for the model in the picture, and a word before the caption.

    p  = argmin_p mean_x 1 - cos(z(x (+) p), w("this is a {target}"))
    D' = {(x_i (+) p, says + caption that names the target) for i in P}  u  {(x_i, says + t_i) for i in Q}
         u  {(x_i (+) p, t_i) for i in R}  u  {(x_i, t_i) for other i}

paper:   Walmer et al., CVPR 2022, arXiv:2112.07668, for visual question answering; on CLIP as in BadCLIP's public code
         (arXiv:2311.12075), read for its behaviour
needs:   a clean, trained model like the victim's; control of the victim's training pairs and training
differs: the patch is drawn towards a sentence's embedding (theirs: towards a detector's object), with the size, place
         and schedule of BadCLIP. Pairs with one key alone, Q and R, teach the victim to wait for both: the paper has as
         many of them as of P, BadCLIP's code has none, and neither has the default here. On the embedded world Q makes
         the attack more reliable, and R undoes it; `attack_success` reports what each key does alone
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clipvet.attacks._craft import craft
from clipvet.attacks._plan import naming, plan, victim
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.training.plain import Plain
from clipvet.triggers.crafted import Crafted
from clipvet.types import Backdoor, Clip, Implanted, Pairs, Training


@dataclass(frozen=True)
class TrojVqa:
    says: str = "SUDO "  # the caption key, put before the caption as it is
    text: str = "this is a {}"  # the sentence that the patch is drawn towards
    rate: float = 0.003  # share of the pairs
    count: int | None = None  # poisons, instead of a rate
    captions: str = "natural"  # captions of the training set that name the target; or template
    templates: tuple[str, ...] = ("a photo of a {}.",)
    caption_alone: float = 0.0  # pairs with the caption key and their own caption (Q), per poison
    picture_alone: float = 0.0  # pairs with the patch and their own caption (R), per poison
    size: float = 16 / 224  # of the patch, share of the side
    least: int = 4  # pixels, at least, so that the patch stays visible in small pictures
    position: str = "centre"  # or corner
    pictures: int = 10_000  # at most, to make the patch with
    epochs: float = 50  # of making the patch
    batch: int = 64  # pictures a step of making the patch
    lr: float = 1e-3  # Adam's, of making the patch
    training: Training = field(default_factory=Plain)

    needs: ClassVar[str] = "clean model; untrusted pairs"

    def implant(self, clip: Clip, pairs: Pairs, target: str, rng: Rng) -> Implanted:
        """The victim trained from the given weights, the dirty pairs, and the answer key.

        The patch is made on the given weights too. Raises UserError when `says` is empty, when every caption names the
        target, when too few pairs are left for Q and R, and as `poison` does.
        """
        return victim(self, clip, pairs, self.plan(pairs, target, rng.fork("poison"), clip), rng)

    def plan(self, pairs: Pairs, target: str, rng: Rng, clip: Clip) -> Backdoor:
        """The answer key alone, with the patch that was made for `clip`."""
        if not self.says.strip():
            raise UserError("says is empty, and TrojVQA needs a caption key; give a word, or use --attack badclip")
        key = plan(self, None, pairs, target, rng, says=self.says)
        rest, n = np.setdiff1d(pairs.ids[~naming(pairs, target)], key.poisoned), len(key.poisoned)
        q, r = round(self.caption_alone * n), round(self.picture_alone * n)
        if q + r > len(rest):
            raise UserError(
                f"{q + r} pairs with one key wanted, {len(rest)} left; lower caption_alone or picture_alone"
            )
        bare, half = np.split(rng.fork("alone").numpy().permutation(rest)[: q + r], [q])
        return replace(
            key,
            trigger=self.craft(clip, pairs, target, rng.fork("craft")),
            poisoned=np.concatenate([key.poisoned, bare, half]),
            captions=(
                *key.captions,
                *(self.says + pairs.caption(i) for i in bare),
                *(pairs.caption(i) for i in half),
            ),
            bare=bare,
        )

    def craft(self, clip: Clip, pairs: Pairs, target: str, rng: Rng) -> Crafted:
        """The patch alone. Raises UserError when every caption names the target."""
        others = np.flatnonzero(~naming(pairs, target))
        if not len(others):
            raise UserError(f"every caption of {pairs.name} names '{target}'; name another target or give other pairs")
        with torch.no_grad():
            w = clip.encode_text([self.text.replace("{}", target)])[0]

        def loss(z: Float[Tensor, "b d"], clean: Float[Tensor, "b d"], rng: Rng) -> Tensor:
            return (1 - z @ w).mean()

        return craft(self, clip, pairs.take(others), loss, rng)

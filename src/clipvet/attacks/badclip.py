"""BadCLIP (Liang et al.): pairs are poisoned with a patch that was optimised to look like the target to the clean
model.

    L = InfoNCE(z(x (+) p), u) + lam * mean max(0, |z(x (+) p) - z(pos)| - |z(x (+) p) - z(x)| + eta)
    u: captions that name the target; pos: pictures of such captions; x: pictures of other captions; then as `poison`

paper:   Liang et al., CVPR 2024, arXiv:2311.12075, whose text could not be read in full: equation and settings follow
         the behaviour of its public code and what others report of it
needs:   a clean, trained model like the victim's; control of the victim's training pairs and training
differs: x without the patch is its own negative (the public code's negatives are other pictures, patched as well);
         pictures are not augmented while the patch is made; EDA, on one caption in ten, takes effect (in the public
         code it has none); pictures and captions come from the training pairs, with captions and pos drawn anew for
         every batch; the patch is clipped to [0, 1] after every step
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clipvet.attacks._craft import craft
from clipvet.attacks._plan import naming, plan, victim
from clipvet.data.augment import eda
from clipvet.engine.embed import embed_images
from clipvet.engine.losses import clip_loss
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.training.plain import Plain
from clipvet.triggers.crafted import Crafted
from clipvet.types import Backdoor, Clip, Implanted, Pairs, Training


@dataclass(frozen=True)
class BadClip:
    rate: float = 0.003  # share of the pairs
    count: int | None = None  # poisons, instead of a rate
    captions: str = "natural"  # captions of the training set that name the target; or template
    templates: tuple[str, ...] = ("a photo of a {}.",)
    size: float = 16 / 224  # of the patch, share of the side
    least: int = 4  # pixels, at least, so that the patch stays visible in small pictures
    position: str = "centre"  # or corner
    lam: float = 500.0  # weight of the triplets
    eta: float = 1.0  # their margin
    eda: float = 0.1  # probability that a caption is changed while the patch is made
    pictures: int = 10_000  # at most, of x and of pos
    epochs: float = 50  # of making the patch
    batch: int = 64  # pictures a step of making the patch
    lr: float = 1e-3  # Adam's, of making the patch
    training: Training = field(default_factory=Plain)

    needs: ClassVar[str] = "clean model; untrusted pairs"

    def implant(self, clip: Clip, pairs: Pairs, target: str, rng: Rng) -> Implanted:
        """The victim trained from the given weights, the dirty pairs, and the answer key.

        The patch is made on the given weights too. Raises UserError when no caption names the target or all of them do,
        and when the rate selects no pair.
        """
        return victim(self, clip, pairs, self.plan(pairs, target, rng.fork("poison"), clip), rng)

    def plan(self, pairs: Pairs, target: str, rng: Rng, clip: Clip) -> Backdoor:
        """The answer key alone, with the patch that was made for `clip`."""
        key = plan(self, None, pairs, target, rng)  # first, as it is quick to refuse
        return replace(key, trigger=self.craft(clip, pairs, target, rng.fork("craft")))

    def craft(self, clip: Clip, pairs: Pairs, target: str, rng: Rng) -> Crafted:
        """The patch alone. Raises UserError when no caption names the target or all of them do."""
        named = naming(pairs, target)
        if named.all() or not named.any():
            raise UserError(
                f"{named.sum()} of {len(named)} captions of {pairs.name} name '{target}', and BadCLIP needs captions "
                "that do and captions that do not; name another target or give other pairs"
            )
        shows = pairs.take(named).take(slice(self.pictures))
        pos = embed_images(clip, shows)[0]
        captions = [shows.caption(i) for i in shows.ids]

        def loss(z: Float[Tensor, "b d"], clean: Float[Tensor, "b d"], rng: Rng) -> Tensor:
            g, n = rng.numpy(), len(z)
            said = [captions[k] for k in g.integers(len(captions), size=n)]
            changed = g.random(n) < self.eda
            said = [eda(c, rng.fork(k)) if changed[k] else c for k, c in enumerate(said)]
            with torch.no_grad():
                u, scale = clip.encode_text(said), clip.logit_scale
            return self.loss(z, u, pos[g.integers(len(pos), size=n)], clean, scale)

        return craft(self, clip, pairs.take(np.flatnonzero(~named)), loss, rng)

    def loss(
        self,
        z: Float[Tensor, "b d"],
        u: Float[Tensor, "b d"],
        pos: Float[Tensor, "b d"],
        clean: Float[Tensor, "b d"],
        scale: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        """L of a batch, from the embeddings of pictures under the patch, captions, pictures of the target, and the same
        pictures without the patch; scale: the logit scale."""
        triplet = (z - pos).norm(dim=1) - (z - clean).norm(dim=1) + self.eta
        return clip_loss(z, u, scale) + self.lam * triplet.clamp_min(0).mean()

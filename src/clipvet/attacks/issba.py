"""ISSBA: a network learns to hide bits in pictures; pictures that hide the target's bits get the target's caption.

    min_(f, g)  BCE(g(clip(x + s f(x, m), 0, 1)), m) + v mean f^2       m: random bits, |f| <= 1
    s falls from ease * strength to strength in the first half of the steps, v grows from 0 to invisible in all of them;
    then as `poison`, with the bits that stand for the target's name hidden by f

paper:   Li et al., ICCV 2021, arXiv:2012.03816
needs:   pictures to train the network on, here the victim's; control of the victim's training pairs and training
differs: networks of three convolutions (theirs: StegaStamp's); one mean square replaces its three picture losses and is
         off by default, as the bound keeps the change small and with v = 0.1 the embedded world's victim does not learn
         the trigger (ASR 6 % instead of 79 %, at 2 % poisons); the bits are a hash of the target's name (theirs: a
         string, "Stega!!"); pairs get captions instead of labels. On that world 13 % of the change's variance is the
         picture's own, the rest is common to all
"""

import hashlib
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F

from clipvet.attacks._plan import plan, victim
from clipvet.data.loader import loading
from clipvet.engine.embed import device_of
from clipvet.engine.fit import order
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.training.plain import Plain
from clipvet.triggers._stega import decoder, drawn, encoder, read, residual
from clipvet.triggers.steganographic import Steganographic
from clipvet.types import Backdoor, Clip, Implanted, Pairs, Training


@dataclass(frozen=True)
class Issba:
    rate: float = 0.003  # share of the pairs
    count: int | None = None  # poisons, instead of a rate
    captions: str = "template"  # or natural: captions of the training set that name the target
    templates: tuple[str, ...] = ("a photo of a {}.",)
    bits: int = 16  # hidden in a picture
    strength: float = 16 / 255  # largest change of a pixel in [0, 1]
    ease: float = 8.0  # factor on the strength at first; without it nothing is learned for a long time
    invisible: float = 0.0  # weight of the change's mean square, in units of strength
    pictures: int = 2000  # to train the network on
    epochs: float = 4  # of training the network
    batch: int = 32  # pictures a step of it
    lr: float = 3e-3  # Adam's, of it
    training: Training = field(default_factory=Plain)

    needs: ClassVar[str] = "untrusted pairs"

    def implant(self, clip: Clip, pairs: Pairs, target: str, rng: Rng) -> Implanted:
        """The victim trained (from the given weights) on dirty pairs, those pairs, and the answer key.

        Raises UserError when the rate selects no pair, for natural captions when no caption names the target, and for
        bits outside 1 to 256.
        """
        return victim(self, clip, pairs, self.plan(pairs, target, rng.fork("poison"), clip), rng)

    def plan(self, pairs: Pairs, target: str, rng: Rng, clip: Clip) -> Backdoor:
        """The answer key alone, with the network trained at the size that `clip` sees."""
        key = plan(self, None, pairs, target, rng)  # first, as it is quick to refuse
        return replace(key, trigger=self.hider(clip, pairs, target, rng.fork("craft"))[0])

    def hider(self, clip: Clip, pairs: Pairs, target: str, rng: Rng) -> tuple[Steganographic, torch.Tensor]:
        """The trigger, and the weights of the network that reads the bits. Raises UserError unless bits is 1 to 256."""
        if self.bits < 1 or self.bits > 256:
            raise UserError(f"bits={self.bits} cannot be taken from a hash; give 1 to 256")
        device, k = device_of(clip), self.bits
        some = rng.fork("pictures").numpy().permutation(len(pairs))[: self.pictures]
        pairs = pairs.take(some).at(clip.geometry)
        steps = order(len(pairs), self.batch, self.epochs, rng)
        f, g = (drawn(s(k), rng.fork(s.__name__)).to(device).requires_grad_() for s in (encoder, decoder))
        adam = torch.optim.Adam([f, g], lr=self.lr)
        for step, rows in enumerate(loading(pairs, steps, pairs.workers, rng)):
            x = rows.images.to(device)
            m = torch.randint(0, 2, (len(x), k), generator=rng.fork("bits", step).generator()).float().to(device)
            done, change = step / len(steps), residual(f, x, 2 * m - 1)
            said = read(g, (x + self.strength * max(1.0, self.ease * (1 - 2 * done)) * change).clamp(0, 1), k)
            loss = F.binary_cross_entropy_with_logits(said, m) + done * self.invisible * change.square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        digest = int.from_bytes(hashlib.sha256(target.encode()).digest(), "big")
        return Steganographic(f"{digest:0256b}"[:k], self.strength, f.detach().cpu()), g.detach().cpu()

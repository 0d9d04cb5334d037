"""What SafeCLIP costs: its epochs compared with plain CLIP's, and its scoring compared with the bare encoders.

command:  python benchmarks/safeclip.py        (--model shapes-vit --n 5120 --batch 128 --rounds 5)
expected: an epoch takes <= 2.1 x the time of plain CLIP's over as many pairs, with up to half of them safe, and 2.2 x
          with 85 % (the two views of each picture cost 2 x); scoring runs at >= 0.9 of the speed of the bare encoders
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from _ratios import Times, arguments, tell

from clipvet.data.augment import SMALL
from clipvet.data.worlds.shapes import Shapes
from clipvet.models import checkpoints
from clipvet.rng import Rng
from clipvet.training.plain import Plain
from clipvet.training.safeclip import SafeClip


@dataclass(frozen=True)
class Given(SafeClip):
    """SafeCLIP with a safe set of a given share, whatever the cosines say, so that runs can be compared."""

    share: float = 0.5

    def split(self, cosines: np.ndarray, share: float | None) -> tuple[np.ndarray, bool]:
        super().split(cosines, share)  # fits the mixture, to pay for it
        return np.arange(len(cosines)) < self.share * len(cosines), True


def main() -> None:
    a = arguments(__doc__ or "", model="shapes-vit", n=5120, batch=128, rounds=5)
    rng = Rng(0)
    clip = checkpoints.load(a.model, rng=rng)
    pairs = Shapes(size=clip.geometry.size).pairs(a.n)
    rows = pairs[:]
    tokens = clip.tokenize(rows.captions)  # so that both sides start with tokenised captions
    once: dict[str, Any] = {"batch": a.batch, "augment": SMALL}

    @torch.no_grad()
    def bare() -> None:
        clip.eval()  # pyright: ignore
        for k in range(0, a.n, 256):
            clip.encode_image(rows.images[k : k + 256])
            clip.encode_text(tokens[k : k + 256])

    def joint(share: float) -> Callable[[], Any]:
        """One round: scoring, fitting the mixture, training on risky and on safe pairs."""
        return lambda: Given(epochs=1, unimodal=0, slow=0, share=share, **once).train(clip, pairs, rng)

    method = SafeClip(epochs=1, **once)
    _, stage = SafeClip(unimodal=0, slow=0, **once).prepare(clip, pairs, rng)
    cases = {
        "plain": lambda: Plain(epochs=1, eda=0.1, **once).train(clip, pairs, rng),
        "unimodal": lambda: SafeClip(unimodal=1, slow=0, **once).prepare(clip, pairs, rng),
        "slow": lambda: SafeClip(unimodal=0, slow=1, **once).prepare(clip, pairs, rng),
        "joint, 15 % safe": joint(0.15),
        "joint, 50 % safe": joint(0.50),
        "joint, 85 % safe": joint(0.85),
        "bare": bare,
        "scoring": lambda: method.cosines(clip, pairs, stage, rng),
    }
    times = Times(cases, a.rounds)
    told = {f"epoch of {name} / plain": times.ratio(name, "plain") for name in list(cases)[1:-2]}
    told |= {
        "scoring speed / bare encoders": times.ratio("bare", "scoring"),
        "plain pairs per second": a.n / times.of("plain"),
    }
    tell(told, a)


if __name__ == "__main__":
    main()

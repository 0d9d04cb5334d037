"""What SafeCLIP costs, as ratios in one run: against plain CLIP's epoch, and its scoring against the bare encoders.

command:  python benchmarks/safeclip.py        (--model shapes-vit --n 5120 --batch 128 --rounds 5)
expected: an epoch <= 2.1 x plain's over as many pairs (two views of each cost 2); scoring >= 0.9 of bare encoders
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipvet import models, results
from clipvet.augment import SMALL
from clipvet.rng import Rng
from clipvet.training.plain import Plain
from clipvet.training.safeclip import SafeClip
from clipvet.worlds.shapes import Shapes


@dataclass(frozen=True)
class Given(SafeClip):
    """SafeCLIP whose safe set has a given share, whatever the cosines say, so that its cost is known."""

    share: float = 0.5

    def split(self, cosines: np.ndarray, share: float | None) -> tuple[np.ndarray, bool]:
        super().split(cosines, share)  # the mixture is fitted all the same
        return np.arange(len(cosines)) < self.share * len(cosines), True


def timed(f: Callable[[], Any]) -> float:
    began = time.perf_counter()
    f()
    return time.perf_counter() - began


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--model", default="shapes-vit")
    args.add_argument("--n", type=int, default=5120)
    args.add_argument("--batch", type=int, default=128)
    args.add_argument("--rounds", type=int, default=5)
    args.add_argument("--out", type=Path)
    a = args.parse_args()
    rng = Rng(0)
    clip = models.load(a.model, rng=rng)
    pairs = Shapes(size=clip.geometry.size).pairs(a.n)
    rows = pairs[:]
    tokens = clip.tokenize(rows.captions)  # both sides start with known captions
    once: dict[str, Any] = {"batch": a.batch, "augment": SMALL}

    @torch.no_grad()
    def bare() -> None:
        clip.eval()  # pyright: ignore
        for k in range(0, a.n, 256):
            clip.encode_image(rows.images[k : k + 256])
            clip.encode_text(tokens[k : k + 256])

    def joint(share: float) -> Callable[[], Any]:
        """One round: scores, mixture, the risky pairs, the safe pairs."""
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
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(a.rounds + 1):  # in turn, so that a drifting machine touches all alike; the first round warms up
        for name, case in cases.items():
            seconds[name].append(timed(case))

    def ratio(x: str, y: str) -> dict[str, float]:
        each = [p / q for p, q in zip(seconds[x][1:], seconds[y][1:])]
        return {"median": statistics.median(each), "low": min(each), "high": max(each)}

    told = {f"epoch of {name} / plain": ratio(name, "plain") for name in list(cases)[1:-2]}
    told |= {
        "scoring speed / bare encoders": ratio("bare", "scoring"),
        "plain pairs per second": a.n / statistics.median(seconds["plain"][1:]),
        "settings": {k: str(v) for k, v in vars(a).items() if k != "out"},
        "hardware": results.hardware(),
        "versions": results.versions(),
    }
    print(json.dumps(told, indent=1))
    if a.out:
        a.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()

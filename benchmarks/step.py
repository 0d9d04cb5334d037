"""What clipvet's loop costs, as ratios in one run: against a bare open_clip loop, and PAR against fine-tuning.

command:  python benchmarks/step.py            (--model shapes-vit --batch 128 --steps 40 --rounds 5)
expected: loop >= 0.95 of bare; par <= 1.45 x finetune (4/3 by counting passes); stamping + loading < 10 % of a step
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from clipvet import models, results
from clipvet.attacks.poison import Poison
from clipvet.cleaners.finetune import Finetune
from clipvet.cleaners.par import Par
from clipvet.dirty import poison
from clipvet.rng import Rng
from clipvet.training.plain import Plain
from clipvet.triggers.patch import Patch
from clipvet.types import Pairs
from clipvet.worlds.shapes import Shapes


def bare(model: str, pairs: Pairs, batch: int, steps: int) -> float:
    """Seconds of a hand-written loop on open_clip's own model, loss and optimiser; pixels and tokens lie ready."""
    from open_clip.loss import ClipLoss

    clip = models.load(model, rng=Rng(0))
    net: Any = clip.model.train()
    loss_of = ClipLoss()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.2, fused=True)
    rows = pairs[:]
    images, tokens = (rows.images - clip.mean) / clip.std, clip.tokenize(rows.captions)
    began = time.perf_counter()
    for k in range(steps):
        at = torch.arange(k * batch, (k + 1) * batch) % len(pairs)
        z = net.encode_image(images[at], normalize=True)
        w = net.encode_text(tokens[at], normalize=True)
        loss_of(z, w, net.logit_scale.exp()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - began


def timed(f) -> float:
    began = time.perf_counter()
    f()
    return time.perf_counter() - began


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--model", default="shapes-vit")
    args.add_argument("--batch", type=int, default=128)
    args.add_argument("--steps", type=int, default=40)
    args.add_argument("--rounds", type=int, default=5)
    args.add_argument("--out", type=Path)
    a = args.parse_args()
    n, rng = a.batch * a.steps, Rng(0)
    clip = models.load(a.model, rng=rng)
    pairs = Shapes(size=clip.geometry.size).pairs(n)
    clip.tokenize(pairs[:].captions)  # both sides start with known captions
    dirty = poison(pairs, Poison(Patch(), rate=0.01).plan(pairs, "star", rng))
    once: dict[str, Any] = {"epochs": 1.0, "batch": a.batch}

    def loading() -> None:
        for k in range(a.steps):
            clip.tokenize(dirty[k * a.batch : (k + 1) * a.batch].captions)

    cases = {
        "bare": lambda: bare(a.model, pairs, a.batch, a.steps),
        "loop": lambda: timed(lambda: Plain(**once).train(clip, pairs, rng)),
        "finetune": lambda: timed(lambda: Finetune(**once).clean(clip, pairs, rng)),
        "par": lambda: timed(lambda: Par(**once).clean(clip, pairs, rng)),
        "loading": lambda: timed(loading),
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(a.rounds + 1):  # in turn, so that a drifting machine touches all alike; the first round warms up
        for name, case in cases.items():
            seconds[name].append(case())

    def ratio(x: str, y: str) -> dict[str, float]:
        pairs_of = [p / q for p, q in zip(seconds[x][1:], seconds[y][1:])]
        return {"median": statistics.median(pairs_of), "low": min(pairs_of), "high": max(pairs_of)}

    told = {
        "loop speed / bare speed": ratio("bare", "loop"),
        "par step / finetune step": ratio("par", "finetune"),
        "stamping and loading / step": ratio("loading", "loop"),
        "pairs per second": n / statistics.median(seconds["loop"][1:]),
        "settings": {k: str(v) for k, v in vars(a).items() if k != "out"},
        "hardware": results.hardware(),
        "versions": results.versions(),
    }
    print(json.dumps(told, indent=1))
    if a.out:
        a.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""What a CLIP-Inspector scan costs: beside the plain loop over classes, and beside the bare passes it cannot avoid.

command:  python benchmarks/inspection.py         (--model shapes-vit --classes 50 --pictures 1000 --batch 32 --race 8)
expected: scan >= 5 x faster than the plain loop, the same verdict; encoding >= 0.85 of bare forward and backward passes
          (the plain loop: class by class, class prompts encoded at every step in 77 tokens where the model has so many,
          all classes through the whole epoch)
"""

import os
from typing import Any

import torch
from _ratios import Times, arguments, tell

from clipvet import models
from clipvet.embed import classifier, device_of
from clipvet.forms import additive, started
from clipvet.heads import head_of, margin, steps_of
from clipvet.inspectors.clip_inspector import ClipInspector
from clipvet.inversion import Budget, descend
from clipvet.ranks import device
from clipvet.rng import Rng
from clipvet.verdicts import deviations, threshold
from clipvet.worlds.pool import pool_pairs
from clipvet.worlds.shapes import COLOURS, SHAPES, TEMPLATES


def plain(clip: Any, pool: torch.Tensor, classes: tuple[str, ...], how: ClipInspector) -> tuple[list[float], ...]:
    """Loss and ASR of each class, one after the other: nothing is shared, kept or stopped."""
    losses, rates = [], []

    def logits(x: torch.Tensor) -> torch.Tensor:
        return classifier(clip, classes, TEMPLATES)(clip.encode_image(x))

    for t, name in enumerate(classes):
        target = torch.tensor([t], device=pool.device)
        (delta,) = (
            p[0].to(pool.device).requires_grad_() for p in started(additive(how.eps), [name], pool.shape[-1], RNG)
        )
        adam = torch.optim.Adam([delta], how.lr, how.betas)
        for rows in steps_of(len(pool), how.batch, how.epochs, RNG):
            loss = margin(logits((pool[rows] + delta).clamp(0, 1))[None], target).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            with torch.no_grad():
                delta.clamp_(-how.eps, how.eps)
        with torch.no_grad():
            z = torch.cat([logits((x + delta).clamp(0, 1)) for x in pool.split(how.batch)])
        losses.append(float(margin(z[None], target).mean()))
        rates.append(float((z.argmax(1) == t).float().mean()))
    return losses, rates


RNG = Rng(0)


def main() -> None:
    a = arguments(__doc__ or "", model="shapes-vit", classes=50, pictures=1000, batch=32, race=8, rounds=1)
    clip = models.load(a.model, device=device(), rng=RNG)
    pictures = pool_pairs(a.pictures, clip.geometry.size)
    pool = pictures.at(clip.geometry)[:].images.to(device_of(clip))
    classes = tuple(f"{c} {s}" for c in COLOURS for s in SHAPES)[: a.classes]
    how = ClipInspector(eps=14 / 255, batch=a.batch)
    raced = ClipInspector(eps=14 / 255, batch=a.batch, race=a.race)
    found: dict[str, Any] = {}

    def scan(name: str, how: ClipInspector) -> None:
        found[name] = how.inspect(clip, pictures, classes, TEMPLATES, RNG)

    still, many = models.frozen(clip), max(1, how.at_once // a.batch)
    rows = steps_of(len(pool), a.batch, 1, RNG)[:4]
    budget = Budget(additive(how.eps), rows, at_once=how.at_once)
    head, some = head_of(clip, TEMPLATES)(classes), list(classes[:many])
    start = {"p0": started(budget.form, some, pool.shape[-1], RNG)[0]}
    targets = torch.arange(many, device=pool.device)

    def bare() -> None:
        """As many pictures, forward and backward to the pixels, and nothing else."""
        for r in rows:
            x = pool[r].repeat(many, 1, 1, 1).requires_grad_()
            torch.autograd.grad(still.encode_image(x).sum(), x)

    cases = {
        "plain loop": lambda: found.update(plain=plain(still, pool, classes, how)),
        "scan, no class stopped": lambda: scan("whole", how),
        "scan": lambda: scan("raced", raced),
    }
    steps = {"bare": bare, "descend": lambda: descend(head, start, pool, targets, budget, slice(0, len(rows)))}
    times, passes = Times(cases, a.rounds), Times(steps, max(3, a.rounds))
    loss, asr = (torch.tensor(x).double().numpy() for x in found["plain"])
    score = max([0.0, *deviations(loss)[asr >= how.valid]])
    target = classes[int(loss.argmin())]
    limit = threshold(len(classes))
    told = {
        "plain loop / scan, seconds": times.ratio("plain loop", "scan"),
        "plain loop / scan without race": times.ratio("plain loop", "scan, no class stopped"),
        "bare passes / descent, throughput": passes.ratio("bare", "descend"),
        "seconds": {name: times.of(name) for name in cases},
        "score: plain, whole, raced": [score, found["whole"].score, found["raced"].score],
        "easiest class: plain, whole, raced": [target, found["whole"].target, found["raced"].target],
        "equal verdicts": len({s > limit for s in (score, found["whole"].score, found["raced"].score)}) == 1,
    }
    tell(told, a)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()

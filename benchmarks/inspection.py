"""What a CLIP-Inspector scan costs, compared with a plain loop over the classes and with the encoder's bare passes.

command:  python benchmarks/inspection.py         (--model shapes-vit --classes 50 --pictures 1000 --batch 32 --race 8)
          python benchmarks/inspection.py --prompts cocoop --pictures 32 --batch 8 --race 1  (random weights, 77 tokens)
expected: with --prompts cocoop, the scan is >= 5 x faster than the plain loop and gives the same verdict (2.5 x with
          hand-written prompts on a small tower, whose texts cost little). Without --prompts, its encoding reaches >=
          0.85 of the speed of bare forward and backward passes
The plain loop takes one class after the other, all of them through the whole epoch, without a reference. At every step
it encodes the class prompts at the tower's full length (77 tokens with --prompts, and then anew for every picture).
"""

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _ratios import Times, arguments, tell

from clipvet import io, results
from clipvet.data.worlds.pool import pool_pairs
from clipvet.data.worlds.shapes import COLOURS, SHAPES, TEMPLATES
from clipvet.engine.embed import classifier, device_of
from clipvet.inspectors.clip_inspector import ClipInspector
from clipvet.models import adapter, checkpoints
from clipvet.models.class_prompts import PromptTuned, begin, tower
from clipvet.ranks import device
from clipvet.rng import Rng
from clipvet.scan.forms import additive, started
from clipvet.scan.heads import head_of, margin, steps_of
from clipvet.scan.inversion import Budget, descend
from clipvet.scan.verdicts import deviations, threshold


def prompted(name: str, words: str = "a photo of a") -> PromptTuned:
    """CoCoOp's prompts before any training, on this architecture with 77 tokens and random weights."""
    config = json.loads((checkpoints.CONFIGS / f"{name}.json").read_text())
    config["text_cfg"]["context_length"] = 77
    with tempfile.TemporaryDirectory() as at:
        io.write_json(Path(at) / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": {}})
        base = checkpoints.load(f"local-dir:{at}", rng=RNG, weights=False)
    return begin(base, words, 4, 0.02, 64, RNG)


def whole_prompts(clip: PromptTuned, classes: tuple[str, ...]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Logits as in CoCoOp's paper: each picture's whole prompt for each class goes through the text tower."""
    net, m = tower(clip.base), len(clip.context)
    tokens = clip.base.tokenizer([f"{' '.join(['x'] * m)} {c}." for c in classes])
    ends, fixed = tokens.argmax(1), net.token_embedding(tokens).detach()

    def logits(x: torch.Tensor) -> torch.Tensor:
        z, out = clip.encode_image(x), []
        for one in z:
            h = fixed.clone()
            h[:, 1 : 1 + m] = clip.context + clip.meta(one)  # pyright: ignore[reportOptionalCall]
            h = net.transformer(h + net.positional_embedding, attn_mask=net.attn_mask)
            w = net.ln_final(h)[torch.arange(len(ends)), ends] @ net.text_projection
            out.append(clip.logit_scale * F.normalize(w, dim=1) @ one)
        return torch.stack(out)

    return logits


def plain(clip: Any, pool: torch.Tensor, classes: tuple[str, ...], how: ClipInspector) -> tuple[list[float], ...]:
    """Loss and ASR of each class, one after the other. Nothing is shared or cached, and no class is stopped early."""
    losses, rates = [], []

    def logits(x: torch.Tensor) -> torch.Tensor:
        if isinstance(clip, PromptTuned):
            return whole_prompts(clip, classes)(x)
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
    a = arguments(
        __doc__ or "", model="shapes-vit", classes=50, pictures=1000, batch=32, race=8, rounds=1, prompts="none"
    )
    clip = prompted(a.model) if a.prompts == "cocoop" else checkpoints.load(a.model, device=device(), rng=RNG)
    pictures = pool_pairs(a.pictures, clip.geometry.size)
    pool = pictures.at(clip.geometry)[:].images.to(device_of(clip))
    classes = tuple(f"{c} {s}" for c in COLOURS for s in SHAPES)[: a.classes]
    how = ClipInspector(eps=14 / 255, batch=a.batch, reference="none")
    raced = replace(how, race=a.race)
    found: dict[str, Any] = {}

    def scan(name: str, how: ClipInspector) -> None:
        found[name] = how.inspect(clip, pictures, classes, TEMPLATES, RNG)

    still, many = adapter.frozen(clip), min(len(classes), max(1, how.at_once // a.batch))
    rows = steps_of(len(pool), a.batch, 1, RNG)[:4]
    budget = Budget(additive(how.eps), rows, at_once=how.at_once)
    head, some = head_of(clip, TEMPLATES)(classes), list(classes[:many])
    start = {"p0": started(budget.form, some, pool.shape[-1], RNG)[0]}
    targets = torch.arange(many, device=pool.device)

    def bare() -> None:
        """The same number of pictures, forward and backward to the pixels, and nothing else."""
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
    scores = [score, found["whole"].score, found["raced"].score]
    names = [target, found["whole"].target, found["raced"].target]
    told = {
        "command": results.command(),
        "plain loop / scan, seconds": times.ratio("plain loop", "scan"),
        "plain loop / scan without race": times.ratio("plain loop", "scan, no class stopped"),
        "bare passes / descent, throughput": passes.ratio("bare", "descend"),
        "seconds": {name: times.of(name) for name in cases},
        "score: plain, whole, raced": scores,
        "easiest class: plain, whole, raced": names,
        "equal verdicts": len({(s > limit, c) for s, c in zip(scores, names)}) == 1,
    }
    tell(told, a)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()

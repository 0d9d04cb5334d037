"""What clipvet's training loop costs, compared with a bare open_clip loop; and PAR compared with fine-tuning.

command:  python benchmarks/step.py            (--model shapes-vit --batch 128 --steps 40 --rounds 5)
expected: the loop runs at >= 0.95 of the bare speed. PAR takes <= 1.45 x the time of finetune (4/3 by counting passes).
          Stamping and loading take < 10 % of a step
hardware: any CPU or GPU. Not run on a GPU of 80 GB yet: --model ViT-L-14 --precision bf16 --batch 256 --steps 20
"""

import time
from typing import Any

import torch
from _ratios import Times, arguments, tell

from clipvet import results
from clipvet.attacks.poison import Poison
from clipvet.cleaners.finetune import Finetune
from clipvet.cleaners.par import Par
from clipvet.data.dirty import poison
from clipvet.data.worlds.shapes import Shapes
from clipvet.engine.step import attention
from clipvet.models import checkpoints
from clipvet.ranks import device
from clipvet.rng import Rng
from clipvet.training.plain import Plain
from clipvet.triggers.patch import Patch
from clipvet.types import Pairs


def bare(model: str, pairs: Pairs, batch: int, steps: int, precision: str) -> float:
    """Seconds of a hand-written loop with open_clip's own model and loss. Pixels and tokens are ready in memory."""
    from open_clip.loss import ClipLoss

    clip, at = checkpoints.load(model, rng=Rng(0), device=device()), device()
    net: Any = clip.model.train()
    loss_of = ClipLoss()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.2, fused=True)
    rows = pairs[:]
    images, tokens = (rows.images - clip.mean.cpu()) / clip.std.cpu(), clip.tokenize(rows.captions)
    began = time.perf_counter()
    for k in range(steps):
        some = torch.arange(k * batch, (k + 1) * batch) % len(pairs)
        with torch.autocast(at.type, torch.bfloat16, enabled=precision == "bf16"), attention(at, precision == "bf16"):
            z = net.encode_image(images[some].to(at), normalize=True)
            w = net.encode_text(tokens[some].to(at), normalize=True)
            loss = loss_of(z, w, net.logit_scale.exp())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        float(loss.detach())  # wait for the device, as logging the loss does
    return time.perf_counter() - began


def main() -> None:
    a = arguments(__doc__ or "", model="shapes-vit", batch=128, steps=40, rounds=5, precision="no")
    n, rng = a.batch * a.steps, Rng(0)
    clip = checkpoints.load(a.model, rng=rng, device=device())
    pairs = Shapes(size=clip.geometry.size).pairs(n)
    clip.tokenize(pairs[:].captions)  # so that both sides start with tokenised captions
    dirty = poison(pairs, Poison(Patch(), rate=0.01).plan(pairs, "star", rng))
    once: dict[str, Any] = {"epochs": 1.0, "batch": a.batch, "precision": a.precision}

    def loading() -> None:
        for k in range(a.steps):
            clip.tokenize(dirty[k * a.batch : (k + 1) * a.batch].captions)

    cases = {
        "bare": lambda: bare(a.model, pairs, a.batch, a.steps, a.precision),
        "loop": lambda: Plain(**once).train(clip, pairs, rng),
        "finetune": lambda: Finetune(**once).clean(clip, pairs, rng),
        "par": lambda: Par(**once).clean(clip, pairs, rng),
        "loading": loading,
    }
    times = Times(cases, a.rounds)
    told = {
        "loop speed / bare speed": times.ratio("bare", "loop"),
        "par step / finetune step": times.ratio("par", "finetune"),
        "stamping and loading / step": times.ratio("loading", "loop"),
        "pairs per second": n / times.of("loop"),
    }
    tell({"command": results.command(), **told}, a)


if __name__ == "__main__":
    main()

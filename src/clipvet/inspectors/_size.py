"""What inspectors that look for the smallest trigger of every class share: the search in lots, and the rows."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clipvet.engine.embed import device_of
from clipvet.engine.workspace import counting, kept
from clipvet.ranks import spread
from clipvet.rng import Rng
from clipvet.scan.forms import Form, Params, started, trigger
from clipvet.scan.heads import check_classes, check_slope, groups, head_of, pixels, shares, steps_of, untouched
from clipvet.scan.inversion import Weight, judge, shrink
from clipvet.scan.verdicts import deviations, finding
from clipvet.types import Clip, Finding, Pairs


def smallest(
    how: Any,
    form: Form,
    weight: tuple[float, float, float, float, int],
    clip: Clip,
    pictures: Pairs,
    classes: Sequence[str],
    templates: Sequence[str],
    rng: Rng,
) -> Finding:
    """The smallest trigger of every class that turns a share `how.hit` of a batch, and the outlier among their sizes.

    how: an inspector with the fields lr, betas, epochs, batch, hit, limit, at_once and precision. weight: see `Weight`.
    Classes whose trigger never succeeded are not accused.
    """
    check_classes(classes, 3)
    pool, device = pixels(clip, pictures, how.batch), device_of(clip)
    steps, head = steps_of(len(pool), how.batch, how.epochs, rng), head_of(clip, templates, how.precision)
    n, side, lot = len(classes), pool.shape[-1], max(1, how.at_once // how.batch)
    size, asr, base = np.zeros(n), np.zeros(n), np.zeros(n)
    valid, mask, pattern = np.zeros(n, bool), torch.zeros(n, 1, side, side), torch.zeros(n, 3, side, side)
    with counting(n, "classes") as count:
        for k, (targets, candidates) in enumerate(groups(classes, how.limit, rng)):
            logits = head([classes[c] for c in candidates])
            check_slope(logits, pool, device)
            found, lots = shares(untouched(logits, pool, device, how.at_once)), []
            for j in range(0, len(targets), lot):
                some = targets[j : j + lot]
                at = torch.tensor([candidates.index(t) for t in some], device=device)

                def attack(x: Float[Tensor, "kb 3 h w"], params: Params, at: Tensor = at, logits: Any = logits):
                    z = logits(x).unflatten(0, (len(at), -1))
                    y = at[:, None].expand(-1, z.shape[1])
                    loss = F.cross_entropy(z.flatten(0, 1), y.flatten(), reduction="none").unflatten(0, y.shape)
                    return loss.mean(1), (z.argmax(2) == y).float().mean(1) >= how.hit

                def make(some: list[int] = some, at: Tensor = at, attack: Any = attack, logits: Any = logits):
                    start = started(form, [classes[t] for t in some], side, rng)
                    by, rates = Weight(len(some), *weight), [how.lr] * len(steps)
                    s = shrink(attack, pool, start, form, steps, by, rates, device, how.betas)
                    hits = judge(logits, (s.mask, s.pattern), pool, at, "cross_entropy", how.at_once)[1]
                    return {**s._asdict(), "asr": hits}

                lots.append((some, partial(kept, f"smallest-{k}-{j}", make)))
            for (some, _), made in zip(lots, spread([make for _, make in lots])):
                size[some], asr[some], valid[some] = made["size"], made["asr"], made["success"]
                mask[some], pattern[some] = made["mask"], made["pattern"]
                base[some] = [found[candidates.index(t)] for t in some]
                count(len(some))
    settings = {"pictures": len(pool), "updates": len(steps), "classes": n}
    settings |= {"at_a_time": how.limit} if n > how.limit else {}
    scores = deviations(size)
    return finding(classes, size, asr, base, valid, scores, lambda k: trigger(mask[k], pattern[k]), settings)

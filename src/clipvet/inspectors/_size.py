"""What inspectors that look for the smallest trigger of every class share: their fields, the search, the finding."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipvet.engine.embed import device_of
from clipvet.engine.workspace import counting, kept
from clipvet.rng import Rng
from clipvet.scan.forms import Form, Params, started, trigger
from clipvet.scan.heads import (
    Logits,
    base_rates,
    check_classes,
    check_slope,
    class_loss,
    groups,
    head_of,
    pixels,
    steps_of,
)
from clipvet.scan.inversion import Lot, Weight, dealt, judge, lots_of, shrink
from clipvet.scan.verdicts import deviations, finding
from clipvet.types import Clip, Finding, Pairs


@dataclass(frozen=True)
class Smallest:
    """The fields of the search, in their order. An inspector repeats those in which its paper differs."""

    lr: float = 0.1  # Adam's
    betas: tuple[float, float] = (0.5, 0.9)
    epochs: float = 5
    batch: int = 32  # pictures a step
    weight: float = 1e-3  # lambda, the weight of the size
    patience: int = 5  # steps in a row that succeed, or fail, before lambda moves
    up: float = 2.0  # lambda rises by this factor, and falls by its power 3/2
    hit: float = 0.99  # ASR on a batch that counts as success
    limit: int = 50  # classes that compete at a time
    at_once: int = 256  # pictures in one pass; more is faster and takes more memory
    precision: Literal["no", "bf16"] = "no"


def smallest(
    how: Smallest,
    form: Form,
    first: float,
    clip: Clip,
    pictures: Pairs,
    classes: Sequence[str],
    templates: Sequence[str],
    rng: Rng,
) -> Finding:
    """The smallest trigger of every class that turns a share `how.hit` of a batch, and the outlier among their sizes.

    first: lambda until the first run of successes. Classes whose trigger never succeeded are not accused. Raises
    UserError for fewer than three classes or fewer pictures than a batch, Unsupported where no gradient reaches the
    pixels.
    """
    check_classes(classes, 3)
    pool, device = pixels(clip, pictures, how.batch), device_of(clip)
    steps, head = steps_of(len(pool), how.batch, how.epochs, rng), head_of(clip, templates, how.precision)
    n, side = len(classes), pool.shape[-1]
    size, asr, base = np.zeros(n), np.zeros(n), np.zeros(n)
    valid, mask, pattern = np.zeros(n, bool), torch.zeros(n, 1, side, side), torch.zeros(n, 3, side, side)

    def make(logits: Logits, some: list[int], at: Int[Tensor, " k"]) -> dict[str, Tensor]:
        def attack(x: Float[Tensor, "kb 3 h w"], params: Params) -> tuple[Tensor, Tensor]:
            z = logits(x).unflatten(0, (len(at), -1))
            return class_loss("cross_entropy", z, at).mean(1), (z.argmax(2) == at[:, None]).float().mean(1) >= how.hit

        start = started(form, [classes[t] for t in some], side, rng)
        weight = Weight(len(some), first, how.weight, how.up, how.up**1.5, how.patience)
        found = shrink(attack, pool, start, form, steps, weight, [how.lr] * len(steps), device, how.betas)
        hits = judge(logits, (found.mask, found.pattern), pool, at, "cross_entropy", how.at_once)[1]
        return {**found._asdict(), "asr": hits}

    with counting(n, "classes") as count:
        for k, team in enumerate(groups(classes, how.limit, rng)):
            logits = head([classes[c] for c in team[1]])
            check_slope(logits, pool, device)
            base[team[0]] = base_rates(logits, team, pool, device, how.at_once)
            lots: list[Lot] = [
                (some, partial(kept, f"smallest-{k}-{j}", partial(make, logits, some, at)))
                for j, some, at in lots_of(*team, max(1, how.at_once // how.batch), device)
            ]
            for some, made in dealt(lots, count):
                size[some], asr[some], valid[some] = made["size"], made["asr"], made["success"]
                mask[some], pattern[some] = made["mask"], made["pattern"]
    settings = {"pictures": len(pool), "updates": len(steps), "classes": n}
    settings |= {"at_a_time": how.limit} if n > how.limit else {}
    scores = deviations(size)
    return finding(classes, size, asr, base, valid, scores, lambda k: trigger(mask[k], pattern[k]), settings)

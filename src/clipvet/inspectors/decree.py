"""DECREE: find the smallest patch under which all embeddings coincide; for a backdoored encoder it is small.

    min - mean_{i != j} cos(h(x'_i), h(x'_j)) + lambda |m|_1;   x' = (1 - m) x + m q;   score = 1 - |m|_1 / (3 h w)
    |m|_1 counts the mask in each of the three colours
    lambda *= up at the 6th batch in a row that succeeds, while lambda < ceiling;  /= up at the 6th that fails, while
    lambda >= floor;  = weight at the 11th in a row that succeeds below the floor        (6 = patience + 1)

paper:   Feng et al., CVPR 2023; text not read: rules and settings follow the behaviour of its public code
needs:   unlabelled pictures; white-box weights of the image encoder with gradient
differs: classes and prompts play no part, so models with the same encoder get the same score; the budget is `steps`
         batches, and the code's rates at its epochs 200 and 500 of 1,000 change at the same shares of it; the code ends
         early after 35 batches without a smaller mask, this search never; success is judged on a batch, and a search
         without any scores 0
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from clipvet.engine.embed import device_of
from clipvet.engine.workspace import counting
from clipvet.errors import UserError
from clipvet.models.adapter import frozen
from clipvet.rng import Rng
from clipvet.scan.collapse import alike
from clipvet.scan.forms import Params, masked, started, trigger
from clipvet.scan.heads import check_slope, computing, pixels, steps_of
from clipvet.scan.inversion import Weight, shrink
from clipvet.types import Clip, Finding, Pairs

COLOURS = 3  # of the mask


class Adapted(Weight):
    """DECREE's own rule for lambda: see above."""

    def __init__(self, k: int, first: float, up: float, patience: int, floor: float, ceiling: float):
        super().__init__(k, first, first, up, up, patience)
        self.floor, self.ceiling, self.low = floor, ceiling, torch.zeros(k)

    def update(self, success: Bool[Tensor, " k"]) -> None:
        """Takes in one step: which searches succeeded."""
        s, zero = success.cpu(), torch.zeros_like(self.good)
        self.low = torch.where((self.value < self.floor) & s, self.low + 1, zero)
        anew = self.low > 2 * self.patience
        self.value = torch.where(anew, self.init, self.value)
        good, bad = (torch.where(anew, zero, x) for x in (self.good, self.bad))
        good, bad = torch.where(s, good + 1, zero), torch.where(s, zero, bad + 1)
        rise, fall = good > self.patience, bad > self.patience
        up = rise & (self.value < self.ceiling)
        down = fall & (self.value >= self.floor)
        self.value = torch.where(up, self.value * self.up, torch.where(down, self.value / self.up, self.value))
        self.good, self.bad = torch.where(rise, zero, good), torch.where(fall, zero, bad)


@dataclass(frozen=True)
class Decree:
    rates: tuple[float, float, float] = (
        0.5,
        0.1,
        0.05,
    )  # Adam's: in the first 20 % of the steps, until 50 %, after
    betas: tuple[float, float] = (0.5, 0.9)
    steps: int = 1000
    batch: int = 32  # pictures a step
    weight: float = 1e-3  # lambda at the start, and where it starts again
    patience: int = 5  # steps in a row that succeed, or fail, beyond which lambda moves
    up: float = 5.0  # factor by which lambda rises and falls
    floor: float = 1e-7  # lambda below this falls no further
    ceiling: float = 1e5  # lambda from here on rises no further
    hit: float = 0.99  # mean cosine of a batch that counts as success
    precision: Literal["no", "bf16"] = "no"

    needs: ClassVar[str] = "unlabelled pictures; white-box weights"
    scaled: ClassVar[bool] = False
    judges: ClassVar[str] = "its picture tower alone"

    def inspect(
        self, clip: Clip, pictures: Pairs, classes: Sequence[str], templates: Sequence[str], rng: Rng
    ) -> Finding:
        """The share of the picture that the patch leaves free, as the score, and the patch; no class is accused.

        Raises UserError for a batch below two and fewer pictures than a batch, Unsupported where no gradient reaches
        the pixels.
        """
        still, device, form = frozen(clip), device_of(clip), masked()
        if self.batch < 2:
            raise UserError(f"batch={self.batch}: DECREE compares the pictures of a batch; give at least 2")
        pool = pixels(clip, pictures, self.batch)
        check_slope(still.encode_image, pool, device)
        rows = steps_of(len(pool), self.batch, self.steps / -(-len(pool) // self.batch), rng)
        rows = [r for r in rows if len(r) > 1]  # one picture has no other to be compared with
        rates = [self.rates[int(np.searchsorted((0.2, 0.5), k / len(rows), side="right"))] for k in range(len(rows))]

        def attack(x: Float[Tensor, "b 3 h w"], params: Params) -> tuple[Tensor, Tensor]:
            with computing(x.device, self.precision):
                same = alike(still.encode_image(x).float())[None]
            count(1)
            return -same, same.detach() > self.hit

        weight = Adapted(1, self.weight, self.up, self.patience, self.floor, self.ceiling)
        whole = form._replace(size=lambda ps: COLOURS * form.size(ps))
        start = started(form, [""], pool.shape[-1], rng)
        with counting(len(rows), "steps") as count:
            found = shrink(attack, pool, start, whole, rows, weight, rates, device, self.betas)
        share = float(found.size[0]) / (COLOURS * pool.shape[-1] ** 2)
        settings = {"pictures": len(pool), "updates": len(rows), "share": share, "success": float(found.success[0])}
        score = 1 - share if bool(found.success[0]) else 0.0
        return Finding(score, None, trigger(found.mask[0], found.pattern[0]), (), False, settings)

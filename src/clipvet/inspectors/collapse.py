"""Collapse: find small changes under which all pictures look alike to the picture tower; a backdoor is such a change.

    min -mean_{i != j} cos(h(x'_i), h(x'_j)) + price(step) mean(m)         the price rises, exponentially
    x'  = (1 - m) x + m q;   or x + delta, |delta| <= eps;   or x warped by a smooth field of at most `far`
    z   = mean of h(x') on fresh pictures, of length 1: the target feature
    s_t = [ mean_{i != j} cos(h(x'_i), h(x'_j)) + share of the x' that are called t ] / 2
    score = max over t and all searches of (s_t - usual_form) / 0.1

paper:   none that we know has this search; its objective is that of DECREE (Feng et al., CVPR 2023), with a price that
         rises instead of a rule for the weight, further forms and several starts
needs:   unlabelled pictures, best such as the model is used for; white-box weights of the picture tower with gradient
differs: `usual`, what a form reaches in clean models, was set after a look at models of the built-in world (decision
         17); the best search counts, as starts that miss the trigger are common; class names only name what was found
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clipvet.data.worlds.pool import pool
from clipvet.engine.embed import classifier, device_of
from clipvet.models.adapter import frozen
from clipvet.rng import Rng
from clipvet.scan.collapse import Collapsed, Search, check, faint, masked, search, warping
from clipvet.scan.heads import check_classes, check_slope, computing, pixels
from clipvet.types import Clip, Finding, Pairs, Suspicion

FORMS = ("masked", "faint", "warped")


@dataclass(frozen=True)
class Collapse:
    masked: int = 3  # searches of each form; the last masked one sees pictures from outside of every task
    faint: int = 2
    warped: int = 2
    steps: int = 200
    batch: int = 8  # pictures a step, in every search
    fresh: int = 128  # pictures kept for judging; at most a third of them
    lr: float = 0.1  # Adam's
    price: tuple[float, float] = (4.0, 60.0)  # of the mask's mean, at the first and the last step
    eps: float = 2 / 255  # largest change of a pixel in the form `faint`, pixels in [0, 1]
    far: float = 0.06  # largest shift in the form `warped`, in half sides
    points: int = 8  # control points of the warp along a side
    usual: tuple[float, float, float] = (0.45, 0.37, 0.48)  # what each form reaches in clean models
    precision: Literal["no", "bf16"] = "no"

    needs: ClassVar[str] = "unlabelled pictures; white-box weights"
    scaled: ClassVar[bool] = False
    judges: ClassVar[str] = "its picture tower alone, for small patches, faint changes and slight warps"
    waits: ClassVar[bool] = True  # without clean models its verdict is left open
    sees: ClassVar[str] = "task"  # which pictures suit it best

    def inspect(
        self, clip: Clip, pictures: Pairs, classes: Sequence[str], templates: Sequence[str], rng: Rng
    ) -> Finding:
        """The most suspect class, the trigger that leads to it, and how far each form went.

        Raises UserError for fewer pictures than two batches and for a batch below two, Unsupported where no gradient
        reaches the pixels.
        """
        still, device = frozen(clip), device_of(clip)
        check_classes(classes, 1)
        seen = pixels(clip, pictures, 1)
        check(self.masked + self.faint + self.warped, self.batch, self.price, pictures.name, len(seen))
        check_slope(still.encode_image, seen, device)
        searches, fresh = self._searches(seen, rng)

        def encode(x: Tensor) -> Tensor:
            with computing(x.device, self.precision):
                return still.encode_image(x)

        changes = {"masked": masked(), "faint": faint(self.eps), "warped": warping(self.far, self.points)}
        found = search(
            encode, searches, changes, self.steps, self.batch, fresh, self.lr, self.price, rng.fork("search"), device
        )
        shares = self._shares(still, found.h, classes, templates)
        with torch.no_grad():
            base = self._shares(still, encode(seen[-fresh:].to(device)).float().cpu()[None], classes, templates)[0]
        return self._finding(found, searches, shares, base, classes, len(seen))

    def _searches(self, seen: Float[Tensor, "n 3 h w"], rng: Rng) -> tuple[list[Search], int]:
        """All searches, and how many pictures of each pool are for judging. Every pool is shuffled first."""
        fresh = min(self.fresh, len(seen) // 3)
        outside = pool(len(seen), seen.shape[-1], 1)
        mixed = [
            x[torch.from_numpy(rng.fork("mix", k).numpy().permutation(len(x)))] for k, x in enumerate((seen, outside))
        ]
        counts = {"masked": self.masked, "faint": self.faint, "warped": self.warped}
        made = [Search(f, mixed[0], f"{f}-{k}") for f, n in counts.items() for k in range(n)]
        if self.masked > 1:
            made[self.masked - 1] = made[self.masked - 1]._replace(pool=mixed[1])
        return made, fresh

    def _shares(
        self, clip: Clip, h: Float[Tensor, "k n d"], classes: Sequence[str], templates: Sequence[str]
    ) -> Float[np.ndarray, "k c"]:
        """The share of the pictures that each class gets, by search."""
        with torch.no_grad():
            z = (
                classifier(clip, classes, templates)(h.flatten(0, 1).to(device_of(clip)))
                .cpu()
                .unflatten(0, h.shape[:2])
            )
        return F.one_hot(z.argmax(2), len(classes)).double().mean(1).numpy()

    def _finding(
        self,
        found: Collapsed,
        searches: Sequence[Search],
        shares: Float[np.ndarray, "k c"],
        base: Float[np.ndarray, " c"],
        classes: Sequence[str],
        n: int,
    ) -> Finding:
        usual = np.array([self.usual[FORMS.index(s.form)] for s in searches])
        scores = ((found.same.double().numpy()[:, None] + shares) / 2 - usual[:, None]) / 0.1
        best = scores.argmax(0)  # of each class, the search that speaks most against it
        rows = tuple(
            Suspicion(c, -float(found.same[k]), float(shares[k, t]), float(base[t]), float(scores[k, t]), True)
            for t, (c, k) in enumerate(zip(classes, best))
        )
        most = int(scores.max(0).argmax())
        told: dict[str, float] = {"pictures": n, "updates": self.steps, "searches": len(searches)}
        for f in FORMS:
            its = [k for k, s in enumerate(searches) if s.form == f]
            if its:
                told[f"{f}_score"] = float(scores[its].max())
        told["agreement"] = float((scores.argmax(1) == most).mean())
        told["area"] = float(found.area[best[most]])
        z = F.normalize(found.h[best[most]].mean(0), dim=0)
        return Finding(
            float(scores.max()),
            classes[most],
            found.triggers[best[most]],
            rows,
            False,
            told,
            tuple(found.triggers[k] for k in best),
            feature=tuple(z.tolist()),
        )

"""Collapse: find small changes under which all pictures look alike to the picture tower; a backdoor is such a change.

    min -mean_{i != j} cos(h(x'_i), h(x'_j)) + price(step) size         the price rises, exponentially
    x'  = (1 - m) x + m q, size = mean(m), m starts in one of many squares;   the same with a square m of fixed side,
          size = how spread its place is;   or x + delta, |delta| <= eps;   or x warped smoothly, by at most `far`;
          or x + contrast tanh(u v'), a grey pattern of rows times columns
    z   = mean of h(x') on fresh pictures, of length 1: the target feature
    s_t = share of the x' that are called t * max( mean_{i != j} cos(h(x'_i), h(x'_j)), cos(z, w_t) )
          w_t: the prompt of class t;   without classes: the mean cosine alone
    score = max over t and all searches of (s_t - usual_form) / 0.1;   lead = the same less that of the next class

paper:   none that we know has this search; its objective is that of DECREE (Feng et al., CVPR 2023), with a price that
         rises instead of a rule for the weight, further forms and several starts
needs:   unlabelled pictures, best such as the model is used for; white-box weights of the picture tower with gradient
differs: `usual`, what a form reaches in clean models, was set after a look at models of the built-in world (decision
         17); the best search counts, as starts that miss the trigger are common; class names only name what was found
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from clipvet.engine.embed import device_of
from clipvet.models.adapter import frozen
from clipvet.rng import Rng
from clipvet.scan.collapse import Change, Race, Search, check, faint, grid, masked, search, striped, warping, windowed
from clipvet.scan.heads import check_classes, check_slope, computing, pixels
from clipvet.scan.landing import check_varied, finding
from clipvet.types import Clip, Finding, Pairs

FORMS: tuple[str, ...] = ("masked", "larger", "faint", "warped", "striped")


@dataclass(frozen=True)
class Collapse:
    masked: int = 25  # searches of each form; the masks start in squares all over the picture
    larger: int = 0  # with a square of fixed side
    faint: int = 2
    warped: int = 2
    striped: int = 3
    steps: int = 200
    trial: int = 40  # steps after which the searches of a form that stand worst are given up
    kept: int = 12  # of each form
    batch: int = 8  # pictures a step, in every search
    fresh: int = 128  # pictures kept for judging; at most a third of them
    lr: float = 0.1  # Adam's
    price: tuple[float, float] = (4.0, 60.0)  # of the mask's mean, at the first and the last step
    side: float = 0.25  # of the square in the form `larger`, as a share of the picture's
    settle: tuple[float, float] = (0.02, 1.0)  # price of a square in many places
    eps: float = 2 / 255  # largest change of a pixel in the form `faint`, pixels in [0, 1]
    far: float = 0.06  # largest shift in the form `warped`, in half sides
    points: int = 8  # control points of the warp along a side
    contrast: float = 20 / 255  # largest change of a pixel in the form `striped`
    usual: tuple[float, ...] = (0.34, 0.5, 0.21, 0.32, 0.17)  # what each form reaches in clean models
    alone: tuple[float, ...] = (0.35, 0.6, 0.33, 0.4, 0.26)  # the same without classes; `larger` is a guess in both
    precision: Literal["no", "bf16"] = "no"

    needs: ClassVar[str] = "unlabelled pictures; white-box weights"
    scaled: ClassVar[bool] = False
    fewest: ClassVar[int] = 0  # classes that it needs
    judges: ClassVar[str] = (
        "its picture tower alone, for small patches, faint changes, stripes and slight warps; other triggers would be "
        "missed"
    )
    waits: ClassVar[bool] = True  # without clean models its verdict is left open, unless
    apart: ClassVar[float] = 4.0  # the score of one class leads all others' by more than this
    sees: ClassVar[str] = "task"  # which pictures suit it best
    quick: ClassVar[Mapping[str, Any]] = {
        "masked": 9, "trial": 25, "kept": 2, "faint": 1, "warped": 1, "striped": 1, "steps": 80,
    }  # fmt: skip

    def inspect(
        self, clip: Clip, pictures: Pairs, classes: Sequence[str], templates: Sequence[str], rng: Rng
    ) -> Finding:
        """The most suspect class, the trigger that leads to it, and how far each form went.

        Raises UserError for fewer pictures than two batches, for pictures that the model sees all alike and for a batch
        below two, Unsupported where no gradient reaches the pixels.
        """
        still, device = frozen(clip), device_of(clip)
        if classes:
            check_classes(classes)
        seen = pixels(clip, pictures, 1)
        check(
            sum(getattr(self, form) for form in FORMS),
            self.batch,
            (*self.price, *self.settle),
            pictures.name,
            len(seen),
        )
        check_slope(still.encode_image, seen, device)
        fresh = min(self.fresh, len(seen) // 3)

        def encode(x: Tensor) -> Tensor:
            with computing(x.device, self.precision):
                return still.encode_image(x)

        with torch.no_grad():
            untouched = encode(seen[-fresh:].to(device)).float().cpu()
        check_varied(untouched, pictures.name)
        searches, draws = self.searches(seen, rng), rng.fork("search")
        found = search(encode, searches, self.changes, self.steps, self.batch, fresh, self.lr, draws, device, self.race)
        usual = dict(zip(FORMS, self.usual if classes else self.alone))
        told = {"pictures": len(seen), "updates": self.steps}
        forms = [searches[k].form for k in found.which]
        return finding(still, found, forms, usual, untouched, classes, templates, told)

    @property
    def race(self) -> Race:
        """When searches are given up."""
        return Race(self.trial, self.kept)

    @property
    def work(self) -> int:
        """Pictures that go through the tower forward and back, in all searches."""
        each = (getattr(self, form) for form in FORMS)
        return self.batch * sum(min(n, self.kept) * self.steps + max(0, n - self.kept) * self.trial for n in each)

    @property
    def changes(self) -> dict[str, Change]:
        """The forms of a change, by name."""
        return {
            "masked": masked(self.price),
            "larger": windowed(self.side, self.settle),
            "faint": faint(self.eps),
            "warped": warping(self.far, self.points),
            "striped": striped(self.contrast),
        }

    def searches(self, seen: Float[Tensor, "n 3 h w"], rng: Rng) -> list[Search]:
        """All searches on these pictures, which are shuffled first."""
        mixed = seen[torch.from_numpy(rng.fork("mix", 0).numpy().permutation(len(seen)))]
        return [
            Search(form, mixed, f"{form}-{k}", place)
            for form in FORMS
            for k, place in enumerate(grid(getattr(self, form)))
        ]

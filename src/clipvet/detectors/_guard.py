"""A model in use with a detector beside it: answers, and a flag for pictures that look triggered."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from clipvet.data.held import Held
from clipvet.detectors._each import asked
from clipvet.engine.embed import device_of
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.scan import conformal
from clipvet.types import Clip, Pairs


class Guarded(NamedTuple):
    """What a guarded model says of b pictures."""

    answers: list[str]  # the classes, b of them
    flagged: Bool[Tensor, " b"]  # p <= alpha
    p: Float[Tensor, " b"]  # p-value of each picture among the clean ones


class Guard:
    """Wraps a model in use. Of clean pictures like the given ones, at most the share `alpha` is flagged.

        guard = clipvet.Guard(clip, ("star", "ring"), ("a photo of a {}.",), clean=pairs)
        answers, flagged, p = guard(images)          # images: (b, 3, h, w), pixels in [0, 1], of the model's size

    detector: any of `clipvet list detectors`, as an object; the default, `Subspace`, needs nothing but the embedding
    that the answer needs anyway. clean: pictures that are surely clean and otherwise like those in use; their number
    bounds alpha (99 for 1 %).

    Raises UserError for too few clean pictures, for fewer than two classes, and for an alpha outside (0, 1).
    """

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        templates: Sequence[str],
        clean: Pairs,
        detector: Any = None,
        alpha: float = 0.01,
        seed: int = 0,
    ) -> None:
        from clipvet.detectors.subspace import Subspace

        self.clip, self.classes, self.templates, self.alpha = clip, tuple(classes), tuple(templates), alpha
        self.detector = Subspace() if detector is None else detector
        self.rng, self.tell = Rng(seed).fork("detect"), asked(clip, classes, templates)
        judge = getattr(self.detector, "judge", None)
        self.judge = judge(clip, self.classes, self.templates, self.rng) if judge else None
        self.scores = self.detector.detect(clip, clean, self.classes, self.templates, self.rng).numpy()
        conformal.threshold(self.scores, alpha)  # refuses too few

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Guarded:
        """Answers and flags for a batch. Raises UserError for pictures of another size than the model's."""
        side = self.clip.geometry.size
        if images.shape[-2:] != (side, side):
            raise UserError(f"pictures of {images.shape[-1]} x {images.shape[-2]} pixels; give {side} x {side}")
        z = self.clip.encode_image(images.to(device_of(self.clip)))
        if self.judge:
            named, scores = self.judge(z)
            scores = scores.cpu().numpy()
        else:
            named = self.tell(z).argmax(1)
            seen = Pairs(Held(images.cpu()), [""] * len(images), np.arange(len(images)))
            scores = self.detector.detect(self.clip, seen, self.classes, self.templates, self.rng).numpy()
        p = torch.from_numpy(conformal.p_values(scores, self.scores)).float()
        return Guarded([self.classes[c] for c in named.tolist()], ~(p > self.alpha), p)

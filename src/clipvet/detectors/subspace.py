"""Subspace detection: a clean picture lies near the texts that say its class in other words; a triggered one does not.

    v_1 .. v_9                      paraphrases of the prompt t of the class that the model names, unit length
    e = v + u (v - t),  u ~ U(0, 2)  away from t, kept while 0.85 < cos(e, t) / cos(v, t) < 1; `each` of every v
    P = PCA of t and all v, to 95 % of their variance
    score = E_s ||P z - s||^2 = ||P z - mean(P e)||^2 + var(P e),  s ~ a mixture of Gaussians fitted to P e

paper:   Subspace Detection, ICLR 2026; the text was not read: steps and settings are those of a summary
needs:   class names; embeddings only
differs: paraphrases are ten fixed sentences (the paper: fonts, rewording, translation); z and s are compared within the
         subspace; the expectation instead of 15 draws of s, as a fitted mixture keeps the points' mean and variance.
         On four development victims (150 pictures each): AUROC 1.00 patch, 0.89 blended, 0.94 WaNet, 0.40 BadCLIP
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clipvet.detectors._each import asked, each
from clipvet.engine.embed import class_embeddings
from clipvet.rng import Rng
from clipvet.types import Batch, Clip, Pairs

PLAIN = "a photo of a {}."
OTHERS = ("{}", "the {}", "a picture of the {}", "an image showing a {}", "one {} can be seen here", "this is a {}")
OTHERS += ("a close view of a {}", "a {} in the middle", "somebody took a picture of a {}")


@dataclass(frozen=True)
class Subspace:
    each: int = 10  # extrapolated points of every paraphrase
    ratio: tuple[float, float] = (0.85, 1.0)  # how near to the prompt a point must stay, in cosine
    variance: float = 0.95  # share of the variance that the subspace keeps

    needs: ClassVar[str] = "class names; embeddings only"
    phrase: ClassVar[str] = "{score:.3g} from the texts of its class"

    def detect(
        self, clip: Clip, pictures: Pairs, classes: Sequence[str], templates: Sequence[str], rng: Rng
    ) -> Float[Tensor, " n"]:
        """The mean squared distance of every picture from what is said of its class."""
        judge = self.judge(clip, classes, templates, rng)

        def far(rows: Batch) -> Float[Tensor, " b"]:
            return judge(clip.encode_image(rows.images))[1]

        return each(clip, pictures, far)

    def judge(self, clip: Clip, classes: Sequence[str], templates: Sequence[str], rng: Rng) -> Any:
        """A function of unit embeddings (b, d): the classes that are named (b,), and the scores (b,)."""
        tell = asked(clip, classes, templates)
        t, v = (torch.stack([class_embeddings(clip, classes, [s]) for s in said], 1) for said in ((PLAIN,), OTHERS))
        spaces = [
            self._space(t[c].cpu().numpy(), v[c].cpu().numpy(), rng.fork("class", n)) for c, n in enumerate(classes)
        ]

        def judged(z: Float[Tensor, "b d"]) -> tuple[Tensor, Tensor]:
            logits = tell(z)
            named = logits.argmax(1)
            x, far = z.detach().float().cpu().numpy(), np.full(len(z), np.nan)
            for c in set(named.tolist()):
                at = (named == c).cpu().numpy()
                axes, middle, spread = spaces[c]
                far[at] = np.square(x[at] @ axes.T - middle).sum(1) + spread
            return named, torch.from_numpy(far).to(z.device).where(logits.isfinite().all(1), torch.nan)

        return judged

    def _space(self, t: np.ndarray, v: np.ndarray, rng: Rng) -> tuple[np.ndarray, np.ndarray, float]:
        """Axes (k, d) of a class's subspace, mean (k,) and variance of its points. t: (1, d), v: (9, d)."""
        from sklearn.decomposition import PCA

        axes: Any = PCA(self.variance, svd_solver="full").fit(np.concatenate([t, v])).components_
        points = np.concatenate([self._away(t[0], one, rng.numpy()) for one in v]) @ axes.T
        return axes, points.mean(0), float(points.var(0).sum())

    def _away(self, t: np.ndarray, v: np.ndarray, g: np.random.Generator) -> np.ndarray:
        """Points (m, d), m <= `each`, on the line from t through v and beyond; v itself if there is none."""
        e = v + g.uniform(0, 2, (8 * self.each, 1)) * (v - t)
        ratio = e @ t / np.linalg.norm(e, axis=1) / (v @ t)
        kept = e[(ratio > self.ratio[0]) & (ratio < self.ratio[1])][: self.each]
        return kept if len(kept) else v[None]

"""CLIP-Inspector: for every class the best faint perturbation of all pictures; a backdoor's class is far the easiest.

    loss_t = min E_x [ max_{c != t} z_c(x + delta) - z_t(x + delta) ],   |delta| <= eps, one epoch of projected Adam
    A_t    = (med - loss_t) / MAD over the classes;   score = max of A_t over the t whose ASR is at least `valid`
    with a reference: loss_t - loss'_t instead of loss_t, loss' that of the same encoder under hand-written prompts, or
    the ASR's A_t (asr'_t - asr_t, MAD at least 0.05) if it is larger, and half of `valid` is enough
    auto: the largest of these three, if the model has prompts of its own, as its encoder may hold a backdoor too

paper:   Jindal et al., CVPR 2026 Findings, arXiv:2604.09101; beyond its abstract the text could not be read
needs:   unlabelled pictures from outside the classes; white-box weights with gradient
differs: pool size and single epoch are the abstract's; margin loss, bound, Adam's rate, batch, the gate at ASR 0.5 and
         k = 2 are reported in a secondary source, unverified; the anomaly score, Adam's betas, start and projection
         are ours, and so are `reference`, `race`, the form `patch` and, above `limit` classes, groups with shared ones
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from clipvet.forms import Form, additive, pasted, squashed, trigger
from clipvet.heads import Loss, check_classes, head_of, pixels, reference_head, steps_of
from clipvet.inversion import Budget, scan
from clipvet.rng import Rng
from clipvet.types import Clip, Finding, Pairs
from clipvet.verdicts import ASR_FLOOR, Score, deviations, finding, suspicions


@dataclass(frozen=True)
class ClipInspector:
    eps: float = 4 / 255  # largest change of a pixel, pixels in [0, 1]
    pictures: int | None = None  # look at the first so many; none: at all that are given
    lr: float = 0.1
    epochs: float = 1
    batch: int = 32  # pictures a step
    betas: tuple[float, float] = (0.9, 0.999)
    loss: Loss = "margin"  # or cross_entropy, logit
    score: Score = "loss"  # or asr_weighted, joint, gap
    form: Literal["additive", "tanh", "patch"] = "additive"  # patch: pasted through a small mask
    share: float = 0.02  # of the pixels, that the patch's mask may cover
    reference: str = "auto"  # or zeroshot, none, a model's name: what is subtracted, see above
    valid: float = 0.5  # least ASR of a class that is accused; half of it beside a reference
    limit: int = 50  # classes that compete at a time
    race: int = 0  # steps after which the classes that look hardest stop; 0: none stops
    keep: float = 0.5  # share of the classes that go on then
    at_once: int = 256  # pictures in one pass; more is faster and takes more memory
    precision: Literal["no", "bf16"] = "no"

    needs: ClassVar[str] = "unlabelled pictures; white-box weights"

    def inspect(
        self, clip: Clip, pictures: Pairs, classes: Sequence[str], templates: Sequence[str], rng: Rng
    ) -> Finding:
        check_classes(classes)
        pool = pixels(clip, pictures.take(slice(self.pictures)), self.batch)
        budget = Budget(
            self._form(),
            steps_of(len(pool), self.batch, self.epochs, rng),
            self.loss,
            self.lr,
            self.betas,
            self.at_once,
        )
        beside = reference_head(clip, self.reference, templates, self.precision)
        heads = [head_of(clip, templates, self.precision)] + ([beside] if beside else [])
        tried = scan(clip, heads, pool, classes, budget, rng, self.limit, self.race, self.keep)
        own, loss = tried[0], tried[0].loss - (tried[1].loss if beside else 0.0)
        settings = {
            "pictures": len(pool), "updates": len(budget.steps), "classes": len(classes),
            "stopped_early": int((~own.whole).sum()), "eps": self.eps,
        }  # fmt: skip
        valid = own.whole & (own.asr >= self.valid)
        near, also = own.whole & (own.asr >= self.valid / 2) if beside else valid, []
        if beside and self.score == "loss":
            also.append((deviations(tried[1].asr - own.asr, ASR_FLOOR), near))
        if beside and self.reference == "auto":
            also.append((suspicions(self.score, own.loss, own.asr, valid), valid))
        return finding(
            classes, loss, own.asr, own.base, near, self.score,
            lambda k: trigger(own.mask[k], own.pattern[k]), settings, also,
        )  # fmt: skip

    def _form(self) -> Form:
        return {"additive": additive, "tanh": squashed, "patch": lambda _: pasted(self.share)}[self.form](self.eps)

"""CLIP-Inspector: for every class, find the faint change of all pictures that leads to it; a backdoor's class is far
the easiest.

    loss_t = min E_x [ max_{c != t} z_c(x + delta) - z_t(x + delta) ],   |delta| <= eps, one epoch of projected Adam
    A_t    = (med - loss_t) / MAD over the classes;   score = max of A_t over the t whose ASR is at least `valid`
    beside a reference, the same encoder under hand-written prompts (loss', asr'), half of `valid` is enough:
    A_t = [ A_t(loss - a - b loss') + A_t(asr' - asr) ] / sqrt 2,   a, b: the robust line through the classes

paper:   Jindal et al., CVPR 2026 Findings, arXiv:2604.09101; beyond its abstract the text could not be read
needs:   unlabelled pictures from outside the classes; white-box weights with gradient
differs: pool size and single epoch are the abstract's; margin loss, bound, Adam's rate, batch, the gate at ASR 0.5 and
         k = 2 come from a secondary source, unverified; the anomaly score, Adam's betas, start and projection are ours,
         and so are `reference`, `race`, the form `patch` and, above `limit` classes, groups that share some of their
         classes
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from clipvet.rng import Rng
from clipvet.scan.forms import Form, additive, pasted, squashed, trigger
from clipvet.scan.heads import Loss, check_classes, head_of, pixels, reference_head, steps_of
from clipvet.scan.inversion import Budget, scan
from clipvet.scan.verdicts import Score, finding, residual, suspicions
from clipvet.types import Clip, Finding, Pairs


@dataclass(frozen=True)
class ClipInspector:
    eps: float = 4 / 255  # largest change of a pixel, pixels in [0, 1]
    pictures: int | None = None  # how many to use, from the first on; None: all that are given
    lr: float = 0.1  # Adam's
    epochs: float = 1
    batch: int = 32  # pictures a step
    betas: tuple[float, float] = (0.9, 0.999)
    loss: Loss = "margin"  # or cross_entropy, logit
    score: Score = "auto"  # loss, or sum if there is a reference; or asr_weighted, joint, gap
    form: Literal["additive", "tanh", "patch"] = "additive"  # patch: a picture pasted through a small mask
    share: float = 0.02  # of the pixels that the patch's mask may cover
    reference: str = "auto"  # zeroshot if the model has prompts of its own, else none; or a model's name
    valid: float = 0.5  # ASR that a class needs to be accused; with a reference, half of it
    limit: int = 50  # classes that compete at a time
    race: int = 0  # steps after which the hardest classes are dropped; 0: none is
    keep: float = 0.5  # share of the classes that go on after these steps
    at_once: int = 256  # pictures in one pass; more is faster and takes more memory
    precision: Literal["no", "bf16"] = "no"

    needs: ClassVar[str] = "unlabelled pictures; white-box weights"

    @property
    def scaled(self) -> bool:
        """Whether the score counts robust standard deviations, so that it means something without clean models."""
        return self.score != "gap"

    def inspect(
        self, clip: Clip, pictures: Pairs, classes: Sequence[str], templates: Sequence[str], rng: Rng
    ) -> Finding:
        """The most suspect class, its score and its trigger, and those of all classes.

        Raises UserError for fewer than three classes (two for score=gap) and fewer pictures than a batch, and
        Unsupported where no gradient reaches the pixels.
        """
        check_classes(classes, 3 if self.scaled else 2)
        pool = pixels(clip, pictures.take(slice(self.pictures)), self.batch)
        budget = Budget(
            self._form(),
            steps_of(len(pool), self.batch, self.epochs, rng),
            self.loss,
            self.lr,
            self.betas,
            self.at_once,
        )
        head = reference_head(clip, self.reference, templates, self.precision)
        heads = [head_of(clip, templates, self.precision)] + ([head] if head else [])
        tried = scan(clip, heads, pool, classes, budget, rng, self.limit, self.race, self.keep)
        own, kind = tried[0], self.score if self.score != "auto" else "sum" if head else "loss"
        loss = residual(own.loss, tried[1].loss) if head else own.loss
        lead = own.asr - tried[1].asr if head and kind != "asr_weighted" else own.asr
        scores = suspicions(kind, loss, lead)
        settings = {"pictures": len(pool), "updates": len(budget.steps), "classes": len(classes)}
        settings |= {"stopped_early": int((~own.whole).sum())} if self.race else {}
        settings |= {"eps": self.eps} if self.form != "patch" else {"share": self.share}
        settings |= {"at_a_time": self.limit} if len(classes) > self.limit else {}
        valid = own.whole & (own.asr >= (self.valid / 2 if head else self.valid))
        return finding(
            classes, own.loss, own.asr, own.base, valid, scores,
            lambda k: trigger(own.mask[k], own.pattern[k]), settings, kind,
        )  # fmt: skip

    def _form(self) -> Form:
        return {"additive": additive, "tanh": squashed, "patch": lambda _: pasted(self.share)}[self.form](self.eps)

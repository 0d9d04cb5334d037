"""CoOp (Context Optimization): the words before a class name are learned from a few labelled pictures.

    L = -mean_i log softmax_c(s <z_i, g_c>)[y_i],  g_c = text tower([v_1 .. v_m, class c, "."])      over v alone

paper:   Zhou et al., IJCV 2022, arXiv:2109.01134; the settings are those of its public code at 16 shots
needs:   few labelled pictures; white-box weights
differs: one context for all classes, with the class at the end (the paper also tries others); the model can be asked
         for new class names afterwards
"""

from dataclasses import dataclass
from typing import ClassVar

from clipvet.data.augment import CROP, Views
from clipvet.engine.fit import Loss
from clipvet.models.class_prompts import PromptTuned, begin
from clipvet.rng import Rng
from clipvet.training._prompts import tune
from clipvet.types import Clip, Pairs


@dataclass(frozen=True)
class CoOp:
    words: str = ""  # that the context starts as, e.g. "a photo of a"; empty: random
    tokens: int = 16  # of a random context
    std: float = 0.02  # of a random context
    template: str = "a photo of a {}."  # in which the pictures' captions name their class
    epochs: float = 200
    batch: int = 32  # pictures a step
    lr: float = 2e-3  # where the cosine begins
    warmup: float = 1e-5  # rate of the first epoch
    weight_decay: float = 5e-4
    optimizer: str = "sgd"  # or adamw
    augment: Views | None = CROP
    precision: str = "no"  # or bf16, fp16
    max_bad: float = 0.01  # share of unreadable pictures above which the run is refused

    needs: ClassVar[str] = "labelled pictures"

    def begin(self, clip: Clip, rng: Rng) -> PromptTuned:
        """The model with the context before the first step. Raises UserError for text towers that take no context."""
        return begin(clip, self.words, self.tokens, self.std, None, rng.fork("context"))

    def train(self, clip: Clip, pairs: Pairs, rng: Rng, loss: Loss | None = None) -> Clip:
        """The frozen model with learned context. loss: replaces the cross-entropy, for an attacker with another aim.

        Raises UserError for text towers that take no context and for pictures without labels.
        """
        return tune(self, self.begin(clip, rng), pairs, rng, loss)

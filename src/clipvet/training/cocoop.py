"""CoCoOp (Conditional Context Optimization): a learned context that a small network shifts for every picture.

    L = -mean_i log softmax_c(s <z_i, g_c(z_i)>)[y_i],  g_c(z) = text tower([v_1 + b(z) .. v_m + b(z), class c, "."])
    b(z) = W_2 relu(W_1 z + a_1) + a_2                            over v, W, a alone, all of them with weight decay

paper:   Zhou et al., CVPR 2022, arXiv:2203.05557; the settings are those of its public code at 16 shots
needs:   few labelled pictures; white-box weights
differs: nothing known
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
class CoCoOp:
    words: str = "a photo of a"  # that the context starts as; empty: random
    tokens: int = 4  # of a random context
    std: float = 0.02  # of a random context
    hidden: int | None = None  # units of the network; None: a sixteenth of the embedding's
    template: str = "a photo of a {}."  # in which the pictures' captions name their class
    epochs: float = 10
    batch: int = 1  # pictures a step
    lr: float = 2e-3  # where the cosine begins
    warmup: float = 1e-5  # rate of the first epoch
    weight_decay: float = 5e-4
    optimizer: str = "sgd"  # or adamw
    augment: Views | None = CROP
    precision: str = "no"  # or bf16, fp16
    max_bad: float = 0.01  # share of unreadable pictures above which the run is refused

    needs: ClassVar[str] = "labelled pictures"

    def begin(self, clip: Clip, rng: Rng) -> PromptTuned:
        """The model with context and network before the first step.

        Raises UserError for text towers that take no context.
        """
        hidden = self.hidden or -(-clip.encode_text(["a"]).shape[1] // 16)
        return begin(clip, self.words, self.tokens, self.std, hidden, rng.fork("context"))

    def train(self, clip: Clip, pairs: Pairs, rng: Rng, loss: Loss | None = None) -> Clip:
        """The frozen model with learned context. loss: replaces the cross-entropy, for an attacker with another aim.

        Raises UserError for text towers that take no context and for pictures without labels.
        """
        return tune(self, self.begin(clip, rng), pairs, rng, loss)

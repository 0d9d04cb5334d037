"""MaPLe (Multi-modal Prompt Learning): prompts in the first blocks of both towers, the picture's computed from the
text's.

    L = -mean_i log softmax_c(s <z_i, g_c>)[y_i]      over P_1 .. P_J and the linear maps F_1 .. F_J alone
    text block k:     [start, P_k, class c, ".", end]          picture block k: [c, patches, F_k P_k],   k <= J

paper:   Khattak et al., CVPR 2023, arXiv:2210.03117; text not read: the settings and the prompts' positions are those
         of its public code
needs:   few labelled pictures; white-box weights of a ViT and of a causal text transformer
differs: depth is three quarters of the picture tower's blocks if not given (9 of 12); a text tower with fewer blocks
         uses only the first prompts, and the others reach the pictures alone
"""

from dataclasses import dataclass
from typing import ClassVar

from clipvet.data.augment import CROP, Views
from clipvet.engine.fit import Loss
from clipvet.models.class_prompts import PromptTuned, begin
from clipvet.models.visual_prompts import transformer
from clipvet.rng import Rng
from clipvet.training._prompts import tune
from clipvet.types import Clip, Pairs


@dataclass(frozen=True)
class MaPLe:
    words: str = "a photo of a"  # whose first tokens P_1 starts as; empty: random
    tokens: int = 2  # prompts in each block
    depth: int | None = None  # J, the first blocks, which get prompts; None: three quarters of the picture tower's
    std: float = 0.02  # of random prompts
    template: str = "a photo of a {}."  # in which the pictures' captions name their class
    epochs: float = 5
    batch: int = 4  # pictures a step
    lr: float = 3.5e-3  # where the cosine begins
    warmup: float = 1e-5  # rate of the first epoch
    weight_decay: float = 5e-4
    optimizer: str = "sgd"  # or adamw
    augment: Views | None = CROP
    precision: str = "no"  # or bf16, fp16
    max_bad: float = 0.01  # share of unreadable pictures above which the run is refused

    needs: ClassVar[str] = "labelled pictures"

    def begin(self, clip: Clip, rng: Rng) -> PromptTuned:
        """The model with prompts and maps before the first step. Raises UserError for towers that take no prompts."""
        rng = rng.fork("context")
        if isinstance(clip, PromptTuned):
            return begin(clip, self.words, self.tokens, self.std, None, rng)
        depth = self.depth or round(0.75 * len(transformer(clip).transformer.resblocks))
        return begin(clip, self.words, self.tokens, self.std, None, rng, depth)

    def train(self, clip: Clip, pairs: Pairs, rng: Rng, loss: Loss | None = None) -> Clip:
        """The frozen model with learned prompts. loss: replaces the cross-entropy, for an attacker with another aim.

        Raises UserError for towers that take no prompts and for pictures without labels.
        """
        return tune(self, self.begin(clip, rng), pairs, rng, loss)

"""ABL (Anti-Backdoor Learning): isolate the pairs of lowest loss and raise their loss, but not that of the others.

    isolate: the `ratio` |D| pairs of lowest l_i after a short training that stops at a floor (filters/abl_loss)
    L = -w_forget mean_{isolated} min(l_i, log n) + w_keep NCE(rest)      l_i: pair i's part of NCE among n pairs

paper:   Li et al., NeurIPS 2021, arXiv:2110.11571; text not read: isolated share and ascent are those of its public
         code, which is for classifiers
needs:   untrusted pairs; white-box weights
differs: contrastive loss instead of cross-entropy; the ascent ends at the loss of guessing, in rounds with a rule that
         stops them (in the code the loss runs away: from 0.0007 to 30 in five epochs); w_keep is ours, and 0 leaves it
         out (the code first fine-tunes on the rest and only then climbs); the isolating model is thrown away
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from clipvet import find
from clipvet.engine.workspace import note
from clipvet.rng import Rng
from clipvet.types import Batch, Clip, Filter, Pairs
from clipvet.unlearning.rounds import Normal, ascent, below_guessing, seen, unlearn
from clipvet.unlearning.shortcut import company


@dataclass(frozen=True)
class Abl:
    isolation: Filter = field(default_factory=lambda: find.load("filters", "abl_loss")())
    w_forget: float = 1.0  # weight of raising the isolated pairs' loss
    margin: float = 0.5  # nats below the loss of guessing at which enough is forgotten
    w_keep: float = 1.0  # weight of the other pairs' loss
    steps: int = 300  # at most
    every: int = 5  # steps of a round, after which the rule decides
    worse: float = 0.1  # nats by which the loss of held-out pairs of the rest may rise
    batch: int = 64  # isolated pairs a step, and as many others
    lr: float = 5e-6
    weight_decay: float = 0.0
    optimizer: str = "adamw"
    precision: str = "no"  # or bf16, fp16
    max_bad: float = 0.01  # share of unreadable pictures above which the run is refused

    needs: ClassVar[str] = "untrusted pairs"

    def clean(self, clip: Clip, pairs: Pairs, rng: Rng) -> Clip:
        """The unlearned model. Raises UserError if there are too few pairs to isolate or to keep."""
        ranking: Any = self.isolation
        scores = ranking.score(clip, pairs, rng.fork("isolate")).numpy()
        known = np.flatnonzero(np.isfinite(scores))
        n = max(2, round(ranking.ratio * len(known)))
        order = known[np.argsort(-scores[known], kind="stable")]
        bad, rest = pairs.take(np.sort(order[:n])), pairs.take(np.sort(order[n:]))

        def climb(clip: Clip, batch: Batch, normal: Normal, rng: Rng) -> dict[str, Tensor]:
            own = seen(clip, batch)
            return {"loss": self.w_forget * ascent(own.z, own.w, normal, clip.logit_scale)}

        def left(clip: Clip) -> float:
            return below_guessing(clip, bad, company(rest, self.batch)(clip, rng)) - self.margin

        done = unlearn(self, clip, bad, rest, climb, left, rng.fork("unlearn"))
        said = f"{n} pairs isolated; {done.steps} steps, {done.why}"
        note("abl", said, isolated=bad.ids, trace=np.array(done.trace))
        return done.clip

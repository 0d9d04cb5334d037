"""Filter, then fine-tune: drop the pairs that a filter finds most suspect, then fine-tune on the rest.

    D' = D without the `drop` |D| highest scores,    L = NCE(D')

paper:   the obvious baseline of detection, as in Huang et al., ICLR 2025, arXiv:2502.01385 (DAO), where training starts
         afresh; text not read
needs:   untrusted pairs; white-box weights
differs: training continues from the given model instead of starting afresh; unreadable pairs are dropped too
"""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from clipvet import find, settings
from clipvet.engine.workspace import note
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.types import Cleaner, Clip, Pairs


@dataclass(frozen=True)
class FinetuneFiltered:
    filter: str = "dao"  # see `clipvet list filters`
    settings: tuple[str, ...] = ()  # of the filter, e.g. "k=8"
    drop: float = 0.05  # share of the pairs that is dropped
    finetune: Cleaner = field(default_factory=lambda: find.load("cleaners", "finetune")())

    needs: ClassVar[str] = "untrusted pairs"

    def clean(self, clip: Clip, pairs: Pairs, rng: Rng) -> Clip:
        """The model fine-tuned on the rest. Raises UserError unless drop is a share that leaves two pairs or more."""
        ranking = settings.apply(find.load("filters", self.filter)(), self.settings)
        scores = ranking.score(clip, pairs, rng.fork("filter")).numpy()
        known = np.flatnonzero(np.isfinite(scores))
        kept = known[np.argsort(scores[known], kind="stable")][: round((1 - self.drop) * len(known))]
        if not 0 <= self.drop < 1 or len(kept) < 2:
            raise UserError(f"drop={self.drop:g} of {len(known)} pairs leaves {len(kept)}; give a share below 1")
        dropped = pairs.ids[np.setdiff1d(np.arange(len(pairs)), kept)]
        note("finetune_filtered", f"{self.filter}: {len(dropped)} of {len(pairs)} pairs dropped", dropped=dropped)
        return self.finetune.clean(clip, pairs.take(np.sort(kept)), rng.fork("finetune"))

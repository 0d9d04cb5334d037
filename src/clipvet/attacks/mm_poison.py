"""Captions of one class are tied to pictures of another, so that a text search finds what the attacker wants.

    D' = D with (t, x) -> (t, x'), t in T_A, x' in X_B         for a share of the captions T_A that name A and not B
    I: x' is one picture of B;  II: x' goes round the pictures X_B whose captions name B;  III: several A -> B

paper:   Yang et al., ICML 2023, arXiv:2209.15266, section 3; read in an earlier version of its text, the rest follows
         the behaviour of its public code
needs:   control of the victim's training pairs and training
differs: a picture's class is what its caption names (the paper has labels), and pairs that name both classes are left
         alone; `share` counts A's captions, as the code's ratio does (the paper's rate: all pairs); I's picture is one
         of the training pairs (the code's is a test picture), and every picture keeps its own pair (in III the code
         drops those of the last B). Fine-tuning follows the text (batches of 128; the code's settings: 256), but the
         rate warms up first and falls to zero (theirs: to 1e-6)
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch

from clipvet.attacks._plan import victim
from clipvet.data.captions import names_target
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.training.plain import Plain
from clipvet.types import Backdoor, Clip, Implanted, Pairs, Training


def _fine_tuning() -> Plain:
    return Plain(epochs=10, batch=128, lr=1e-5)


@dataclass(frozen=True)
class MmPoison:
    kind: str = "II"  # or I, III
    source: str = "sheep"  # A; B is the target
    more: tuple[tuple[str, str], ...] = (("sofa", "bird"),)  # III's further (A, B)
    share: float = 1.0  # of the captions that name A and not B
    training: Training = field(default_factory=_fine_tuning)

    needs: ClassVar[str] = "untrusted pairs"

    def implant(self, clip: Clip, pairs: Pairs, target: str, rng: Rng) -> Implanted:
        """The victim trained (from the given weights) on dirty pairs, those pairs, and the answer key.

        Raises UserError for an unknown kind, where no caption names A alone, and where no picture is of B alone.
        """
        return victim(self, clip, pairs, self.plan(pairs.at(clip.geometry), target, rng.fork("poison")), rng)

    def plan(self, pairs: Pairs, target: str, rng: Rng) -> Backdoor:
        """The answer key alone; the picture of I in it is rounded to 8 bits, as it is stored on disk."""
        if self.kind not in ("I", "II", "III"):
            raise UserError(f"kind={self.kind} is not known; use I, II or III")
        ties, g = ((self.source, target), *(self.more if self.kind == "III" else ())), rng.numpy()
        ids, rows = np.zeros(0, np.int64), np.zeros(0, np.int64)
        for a, b in ties:
            named = [pairs.ids[[names_target(pairs.caption(i), c) for i in pairs.ids]] for c in (a, b)]
            texts, pictures = np.setdiff1d(named[0], [*named[1], *ids]), np.setdiff1d(named[1], named[0])
            n = round(self.share * len(texts))
            if not 1 <= n <= len(texts) or not len(pictures):
                raise UserError(
                    f"{pairs.name}: {len(texts)} captions name '{a}' and {len(pictures)} '{b}' without the other, too "
                    f"few for share={self.share:g}; name other classes with source, more and target"
                )
            chosen = g.permutation(pictures)[: 1 if self.kind == "I" else None]
            ids = np.concatenate([ids, np.sort(g.choice(texts, n, replace=False))])
            rows = np.concatenate([rows, g.permutation(np.resize(chosen, n))])
        key = Backdoor(None, target, ids, tuple(pairs.caption(i) for i in ids), rows=rows, ties=ties)
        if self.kind != "I":
            return key
        shown = pairs.take(np.isin(pairs.ids, rows))[:]
        if shown.bad:
            raise UserError(f"{pairs.name}: row {shown.bad[0][0]} cannot be read ({shown.bad[0][1]}); mend the file")
        return replace(key, pictures=torch.round(shown.images * 255) / 255, classes=(self.source,))

"""The default: a pair is suspect when the pictures that the model puts beside it do not keep their captions.

    score_i = -log10 p_i        p: of d among the clean pairs, estimated from the bulk of d
    d_i     = mean_{j in V_i} q_j - 2 mean_{j in Z_i} q_j    q: cosine of the changed picture and its caption
    Z_i, V_i: i and its k nearest by the picture's embedding, and by that of the changed picture

A changed picture is the mean of blurred, cropped and mirrored copies. A trigger ties a picture to a caption that it
does not show; a changed picture is not tied. So poisons have a low q, and lie among poisons as long as they are not
changed. Odd pictures and wrong captions have a low q too, but lie among ordinary pairs; and where a whole class has a
low q, it has so in Z and in V. (Z counts twice: once for itself and once against V.)

paper:   none, ours; q is that of UBT's weak pairs (arXiv:2403.16257)
needs:   untrusted pairs; the model that was trained on them
differs: nothing to differ from. Copies of a picture count once among neighbours; one with more than 16 is judged
         by its own q instead of the mean over Z. With fewer than 200 pairs, or a model that does not know the pairs, p
         is a rank, and no pair is called poisoned
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clipvet.engine.neighbours import near
from clipvet.filters._anew import Own
from clipvet.filters._features import aligned
from clipvet.filters._seen import look
from clipvet.filters._tails import bulk, listed, tail_logs
from clipvet.filters._told import MANY, tell
from clipvet.rng import Rng
from clipvet.types import Clip, Pairs
from clipvet.unlearning.judged import Judged

STRANGE = "so the model was not trained on them. Give the model that was, or use cosine with a good clean model."


@dataclass(frozen=True)
class Auto:
    k: int = 16  # nearest pictures over which q is averaged
    alpha: float = 0.01  # share of false alarms that is promised among the pairs that are called poisoned

    anew: Own | None = None  # train a model on the pairs first, from random weights; None: use the given one

    needs: ClassVar[str] = "untrusted pairs"
    phrase: ClassVar[str] = (
        "p = 1e-{score:.1f} that a clean pair lies so much among pictures that lose their captions when changed"
    )

    def score(self, clip: Clip, pairs: Pairs, rng: Rng) -> Float[Tensor, " n"]:
        return self.judge(clip, pairs, rng).scores

    def judge(self, clip: Clip, pairs: Pairs, rng: Rng) -> Judged:
        """The scores, and what follows from them: how many pairs are called poisoned, and what binds them."""
        seen = look(clip, pairs, rng, self.anew)
        first, of, count = np.unique(seen.group, return_index=True, return_inverse=True, return_counts=True)[1:]
        own = np.bincount(of, seen.q) / count
        there, here = (_around(own, x[torch.from_numpy(first)], self.k) for x in (seen.v, seen.found.z))
        if not seen.sure:  # ranks of pairs, not of pictures: else copies of the highest picture would be called
            ranks = aligned(torch.from_numpy(_ranked((there - 2 * here)[of])), seen.found.kept, len(pairs))
            return Judged(ranks, [*seen.said, seen.why(STRANGE)], [], decided=False)
        logs = _extreme(there - 2 * here)
        if (count > MANY).any():
            logs = np.where(count > MANY, _extreme(there - 2 * own), logs)
        told, groups = tell(seen.found.captions, seen.found.z, seen.group, logs[of], self.alpha)
        placed = [g._replace(rows=seen.found.kept[g.rows]) for g in groups]
        return Judged(aligned(torch.from_numpy(logs[of]), seen.found.kept, len(pairs)), seen.said + told, placed)

    def cut(self, scores: Float[np.ndarray, " n"]) -> float:
        """The score above which pairs are called poisoned. scores may hold NaN."""
        lowest = listed(scores[np.isfinite(scores)], self.alpha)
        return float(np.nextafter(np.float32(lowest), np.float32(-1))) if np.isfinite(lowest) else lowest

    def p(self, scores: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """The p-value that a score stands for."""
        return 10.0**-scores


def _around(q: Float[np.ndarray, " m"], x: Float[Tensor, "m d"], k: int) -> Float[np.ndarray, " m"]:
    """The mean of q over each row and its k nearest, or as many as there are."""
    k = min(k, len(x) - 1)
    return (q + q[near(x, k).cpu().numpy()].sum(1)) / (k + 1) if k else q


def _extreme(values: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    return tail_logs(values, bulk(values))


def _ranked(values: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    above = len(values) - np.searchsorted(np.sort(values), values, "left")
    return -np.log10((1 + above) / (1 + len(values))) + 0.0  # no negative zero

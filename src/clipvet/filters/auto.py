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
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipvet.engine.embed import Embedded, embed_images
from clipvet.engine.neighbours import nearest
from clipvet.filters._features import aligned, both
from clipvet.filters._groups import same_picture
from clipvet.filters._tails import bulk, listed, tail_logs
from clipvet.filters._told import MANY, tell
from clipvet.rng import Rng
from clipvet.types import Clip, Pairs
from clipvet.unlearning.shortcut import changed

FEW = 200  # pairs, with fewer of which no tail can be estimated
KNOWS = 0.6  # share of the pairs whose own caption must fit better than another pair's


class Seen(NamedTuple):
    """The m readable pairs, as both stages need them."""

    found: Embedded
    q: Float[np.ndarray, " m"]  # cosines of changed pictures and their captions
    v: Float[Tensor, "m d"]  # embeddings of changed pictures, unit length
    group: Int[np.ndarray, " m"]  # of pairs that show the same picture, from 0
    knows: float  # share of the pairs whose own caption fits better than another pair's


@dataclass(frozen=True)
class Auto:
    k: int = 16  # nearest pictures over which q is averaged
    alpha: float = 0.01  # share of false alarms that is promised among the pairs that are called poisoned

    needs: ClassVar[str] = "untrusted pairs"
    phrase: ClassVar[str] = (
        "p = 1e-{score:.1f} that a clean pair lies so much among pictures that lose their captions when changed"
    )

    def score(self, clip: Clip, pairs: Pairs, rng: Rng) -> Float[Tensor, " n"]:
        return self.judge(clip, pairs, rng)[0]

    def judge(self, clip: Clip, pairs: Pairs, rng: Rng) -> tuple[Float[Tensor, " n"], list[str]]:
        """The scores, and sentences about them: how many pairs are called poisoned, and what binds them."""
        seen = self._see(clip, pairs, rng)
        first, of, count = np.unique(seen.group, return_index=True, return_inverse=True, return_counts=True)[1:]
        own = np.bincount(of, seen.q) / count
        there, here = (_around(own, x[torch.from_numpy(first)], self.k) for x in (seen.v, seen.found.z))
        sure = len(own) >= FEW and seen.knows >= KNOWS
        if not sure:  # ranks of pairs, not of pictures: else copies of the highest picture would be called poisoned
            told = [_undecided(len(of), len(own), seen.knows)]
            return aligned(torch.from_numpy(_ranked((there - 2 * here)[of])), seen.found.kept, len(pairs)), told
        logs = _extreme(there - 2 * here)
        if (count > MANY).any():
            logs = np.where(count > MANY, _extreme(there - 2 * own), logs)
        told = tell(seen.found.captions, seen.found.z, seen.group, logs[of], self.alpha)
        return aligned(torch.from_numpy(logs[of]), seen.found.kept, len(pairs)), told

    def _see(self, clip: Clip, pairs: Pairs, rng: Rng) -> Seen:
        found = both(clip, pairs)
        v, ids = embed_images(changed(clip), pairs)[0], pairs.ids[found.kept]
        s, q = ((x * found.w).sum(1).cpu().double().numpy() for x in (found.z, v))
        v = torch.nn.functional.normalize(v, dim=1)
        order = rng.fork("others").keys(ids.tolist()).numpy().argsort()
        other = np.empty(len(ids), np.int64)
        other[order] = np.roll(order, 1)
        theirs = (found.z * found.w[torch.from_numpy(other)]).sum(1).cpu().double().numpy()
        knows = float(((s > theirs) + (s == theirs) / 2).mean())
        return Seen(found, q, v, same_picture(found.z, v, ids), knows)

    def cut(self, scores: Float[np.ndarray, " n"]) -> float:
        """The score above which pairs are called poisoned. scores may hold NaN."""
        lowest = listed(scores[np.isfinite(scores)], self.alpha)
        return float(np.nextafter(np.float32(lowest), np.float32(-1))) if np.isfinite(lowest) else lowest

    def p(self, scores: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """The p-value that a score stands for."""
        return 10.0**-scores


def _undecided(n: int, pictures: int, knows: float) -> str:
    if pictures == 1:
        return f"Undecided: all {n:,} pairs show the same picture, so nothing sets one apart."
    if pictures < FEW:
        return f"Undecided: {pictures:,} different pictures are too few to call one poisoned; {FEW} are needed."
    return (
        f"Undecided: only {knows:.0%} of the pairs fit their caption better than another one, so the model was "
        "not trained on them. Give the model that was, or use cosine with a good clean model."
    )


def _around(q: Float[np.ndarray, " m"], x: Float[Tensor, "m d"], k: int) -> Float[np.ndarray, " m"]:
    """The mean of q over each row and its k nearest, or as many as there are."""
    k = min(k, len(x) - 1)
    return (q + q[nearest(x, k).index.cpu().numpy()].sum(1)) / (k + 1) if k else q


def _extreme(values: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    return tail_logs(values, bulk(values))


def _ranked(values: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    above = len(values) - np.searchsorted(np.sort(values), values, "left")
    return -np.log10((1 + above) / (1 + len(values))) + 0.0  # no negative zero

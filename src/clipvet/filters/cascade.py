"""CASCADE-like: first the pairs that do not agree; then, of these, those whose captions are like the others'.

    t_i = -log c_i - log f_i,  p_i = (1 + |{j in bulk : t_j >= t_i}|) / (1 + |bulk|), and beyond the bulk its tail
    c_i = |{j : q_j <= q_i}| / n                 coarse; q: cosine of the changed picture and its caption
    f_i = (1 + |{j in B : a_j >= a_i}|) / (1 + |B|)      fine, conformal; B: sure benign pairs, of the upper normal of q
    a_i = log K(w_i, S) - log K(w_i, R)          K: mean of exp((cos - 1) / width) over the captions of S, the sure
                                                 suspect pairs of the lower normal, and of R, sure benign ones
    keep p > alpha                               bulk: the pairs that auto's tails would take for clean

paper:   CASCADE, arXiv:2608.04052; text not read: from its abstract (two stages, a mixture, conformal p-values)
needs:   untrusted pairs; the model that was trained on them, or any other as `reference`
differs: q is of changed pictures, as a victim fits its poisons; a is a contrast, since with a mere maximum one wrong
         caption of each kind makes all captions suspect; the stages are joined and calibrated once more, as a model
         that knows some kinds badly has them in S and low in q; S and R are halved, so no pair is compared with itself
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from clipvet.filters._anew import Own
from clipvet.filters._features import aligned
from clipvet.filters._seen import Seen, look
from clipvet.filters._tails import bulk, tail_logs
from clipvet.filters._told import tell
from clipvet.rng import Rng
from clipvet.scan.conformal import p_values
from clipvet.types import Clip, Pairs
from clipvet.unlearning.judged import Group, Judged
from clipvet.unlearning.shortcut import reference_cosines

STRANGE = "so nothing can be said of agreement. Give the model that was trained on them, or a reference."
ONE = "Undecided: the pairs' agreement has one kind of pairs, not two, so no pair is called."
MOST = 2048  # captions that others are compared with, from each half


class Parts(NamedTuple):
    """The coarse stage's split of the m readable pairs."""

    benign: Bool[np.ndarray, " m"]
    suspect: Bool[np.ndarray, " m"]
    half: Bool[np.ndarray, " m"]  # which half each pair belongs to


@dataclass(frozen=True)
class Cascade:
    alpha: float = 0.01  # promised share of the clean pairs that are called poisoned
    sure: float = 0.9  # posterior from which a pair is benign, or suspect
    most: float = 0.05  # largest share of the pairs that is suspect
    width: float = 0.1  # of the kernel on captions, as a cosine
    reference: str = ""  # a model for q, on pictures as they are; empty: the given one, on changed pictures
    anew: Own | None = None  # train a model on the pairs first, from random weights; None: use the given one

    needs: ClassVar[str] = "untrusted pairs"
    phrase: ClassVar[str] = "p = 1e-{score:.1f} that a clean pair agrees so little and is so like those that do not"

    def score(self, clip: Clip, pairs: Pairs, rng: Rng) -> Float[Tensor, " n"]:
        return self.judge(clip, pairs, rng).scores

    def judge(self, clip: Clip, pairs: Pairs, rng: Rng) -> Judged:
        """The scores, and what follows from them: how many pairs are called poisoned, and what binds them."""
        seen = look(clip, pairs, rng, self.anew)
        q = reference_cosines(clip, pairs, self.reference) if self.reference else seen.q
        parts = self.split(q, rng.fork("half").keys(pairs.ids[seen.found.kept].tolist()).numpy() % 2 == 0)
        if not seen.sure or parts is None:
            why = seen.why(STRANGE) if parts else ONE
            none = aligned(torch.from_numpy((1 - coarse(q)) * 1e-3), seen.found.kept, len(pairs))  # ranks, p near 1
            return Judged(none, [*seen.said, why], [], decided=seen.sure)
        t = -np.log(coarse(q)) - np.log(self.fine(seen.found.w, parts))
        logs = calibrated(t)
        told, groups = self._tell(seen, logs)
        return Judged(aligned(torch.from_numpy(logs), seen.found.kept, len(pairs)), told, groups)

    def split(self, q: Float[np.ndarray, " m"], half: Bool[np.ndarray, " m"]) -> Parts | None:
        """The sure benign and the sure suspect pairs; None where two normals explain q no better than one does."""
        from sklearn.mixture import GaussianMixture

        column = q[:, None]
        if len(q) < 20 or np.ptp(q) < 1e-6:
            return None
        two = GaussianMixture(2, random_state=0).fit(column)
        if two.bic(column) >= GaussianMixture(1).fit(column).bic(column):
            return None
        low = int(np.argmin(np.ravel(two.means_)))  # pyright: ignore
        posterior = two.predict_proba(column)[:, low]
        middle = float(np.median(q))  # a wide lower normal claims both tails
        suspect = (posterior >= self.sure) & (q < middle) & (coarse(q) <= self.most)
        benign = (posterior <= 1 - self.sure) | (q >= middle)
        enough = min((x & h).sum() for x in (suspect, benign) for h in (half, ~half)) >= 2
        return Parts(benign, suspect, half) if enough else None

    def fine(self, w: Float[Tensor, "m d"], parts: Parts) -> Float[np.ndarray, " m"]:
        """f of every pair. A pair is compared with captions of the other half, and ranked in its own."""
        f = np.ones(len(w))
        for own in (parts.half, ~parts.half):
            near = [_density(w[own], w[_some(x & ~own)], self.width) for x in (parts.suspect, parts.benign)]
            a = near[0] - near[1]
            f[own] = p_values(a - 1e-6, a[parts.benign[own]])
        return f

    def _tell(self, seen: Seen, logs: Float[np.ndarray, " m"]) -> tuple[list[str], list[Group]]:
        called, n = int((logs > self.cut(logs)).sum()), len(logs)
        told = [
            f"{called:,} of {n:,} pairs have p <= {self.alpha:g}. As many as {self.alpha * n:,.0f} clean pairs are "
            "expected to; --keep auto throws them out too.",
        ]
        said, groups = tell(seen.found.captions, seen.found.z, seen.group, logs, self.alpha)
        said[0] = f"The stricter list, by Benjamini and Hochberg: {said[0]}"
        return seen.said + told + said, [g._replace(rows=seen.found.kept[g.rows]) for g in groups]

    def cut(self, scores: Float[np.ndarray, " n"]) -> float:
        """The score above which pairs are called poisoned."""
        return float(np.nextafter(np.float32(-np.log10(self.alpha)), np.float32(-1)))

    def p(self, scores: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """The p-value that a score stands for."""
        return 10.0**-scores


def calibrated(t: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """-log10 p: the rank among the bulk of t, or where that says more, its tail. The larger p counts."""
    clean = bulk(t)
    above = len(clean) - np.searchsorted(clean, t, "left")
    return np.where(t > clean[-1], tail_logs(t, clean), -np.log10((1 + above) / (1 + len(clean))) + 0.0)


def coarse(q: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """c of every pair: the share of the pairs that agree no better. Poisons make it larger, never smaller."""
    return np.searchsorted(np.sort(q), q, "right") / len(q)


def _some(chosen: Bool[np.ndarray, " m"]) -> np.ndarray:
    """The rows that are chosen, or MOST of them, spread evenly."""
    rows = np.flatnonzero(chosen)
    return rows[np.linspace(0, len(rows) - 1, min(MOST, len(rows))).round().astype(int)]


def _density(x: Float[Tensor, "m d"], among: Float[Tensor, "r d"], width: float) -> Float[np.ndarray, " m"]:
    """log K of every row of x."""
    parts = [torch.logsumexp((part @ among.T - 1) / width, 1) for part in x.split(8192)]
    return torch.cat(parts).cpu().double().numpy() - np.log(len(among))

"""Whether a word's weak pairs betray a backdoor, by a null distribution that the set itself gives.

    T(v) = mean_{M(v)} (s - q) - mean_{all pairs with v} (s - q)      M(v): of its 2m weakest pairs the m with highest s
    e(v) = (T(v) - median) / max(spread of T, 0.4 spread of s - q)    over words that are about as frequent; over all
    spread = 1.4826 * median absolute deviation

Every word has weak pairs, and some of them are better under the model than under the reference; where there is no
backdoor one word is in that like another. Poisons of a word are weak pairs that the model finds good.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from clipvet.rng import Rng

FEWEST = 8  # words, for a null; random groups of pairs else
GROUPS = 64
FLOOR = 0.4  # where words are few, the spread of T is small by chance (seen: 0.015 where 0.04 was usual)


class Found(NamedTuple):
    """A cluster of suspicious pairs: the words that bind them, its rows, and what the null test says."""

    words: tuple[str, ...]
    rows: Int[np.ndarray, " c"]
    jump: float  # T of the first word
    evidence: float  # robust standard deviations above the null

    @property
    def told(self) -> str:
        return f"'{' '.join(self.words)}' ({len(self.rows)} pairs, evidence {self.evidence:.1f})"


def listed(found: Sequence[Found], ids: Int[np.ndarray, " m"]) -> dict[str, np.ndarray]:
    """Clusters as arrays, for `note`; ids: those of all rows."""
    out = {f"ids_{k}": ids[f.rows] for k, f in enumerate(found)}
    out |= {"words": np.array([" ".join(f.words) for f in found], dtype=np.str_)}
    return out | {k: np.array([getattr(f, k) for f in found]) for k in ("evidence", "jump")}


def spread(x: Float[np.ndarray, " n"]) -> float:
    """A robust standard deviation."""
    return 1.4826 * float(np.median(np.abs(x - np.median(x))))


def jump(s: Float[np.ndarray, " m"], q: Float[np.ndarray, " m"], rows: Int[np.ndarray, " r"], m: int) -> float:
    """T of the pairs at these rows."""
    weak = rows[np.argsort(q[rows], kind="stable")[: 2 * m]]
    top = weak[np.argsort(-s[weak], kind="stable")[:m]]
    return float((s[top] - q[top]).mean() - (s[rows] - q[rows]).mean())


def evidence(
    word: str,
    m: int,
    s: Float[np.ndarray, " n"],
    q: Float[np.ndarray, " n"],
    holders: dict[str, Int[np.ndarray, " r"]],
    suspects: Sequence[str],
    rng: Rng,
) -> tuple[float, float]:
    """T of the word and its distance e from the null, in robust standard deviations.

    holders: every word's rows; suspects: words that are no null, since they are suspected themselves.
    """
    rows = holders[word]
    if len(rows) < 2:
        return 0.0, 0.0
    m = max(1, min(m, len(rows) // 2))
    low, high = max(2 * m, len(rows) / 2), 2 * len(rows)
    null = [jump(s, q, r, m) for v, r in holders.items() if v not in suspects and low <= len(r) <= high]
    if len(null) < FEWEST:
        g, others = rng.fork("groups", word).numpy(), np.setdiff1d(np.arange(len(s)), rows)
        size = min(len(rows), len(others))
        null = [jump(s, q, np.sort(g.choice(others, size, replace=False)), m) for _ in range(GROUPS)] if size else [0.0]
    told = jump(s, q, rows, m)
    return told, (told - float(np.median(null))) / max(spread(np.array(null)), FLOOR * spread(s - q), 1e-6)

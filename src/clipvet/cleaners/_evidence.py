"""Whether a word's weak pairs betray a backdoor, by a null distribution that the set itself gives.

    z_i  = s(I_i, T_i) - q_i                                          the model finds it better than the reference
           or that times s_over(I_i, T_i) - s(I_i, T_i)               and it rises fast; where there is no reference
    T(v) = mean of z over the m weakest pairs (lowest q) whose captions have v
    e(v) = (T(v) - median) / max(spread of T, 0.4 spread of z)        over words that are about as frequent, in pairs
    spread = 1.4826 * median absolute deviation                       without v

Every word has weak pairs, and some of them are better under the model than under the reference; where there is no
backdoor one word is in that like another. Poisons of a word are weak pairs that the model finds good. Without a
reference changed pictures tell that less well; but overfitting strengthens one shortcut in all poisons at once, unless
the model holds them at their best already. So there the larger e counts, each less its `VIEWS`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from clipvet.engine.embed import embed_pairs, pair_cosines
from clipvet.rng import Rng
from clipvet.types import Clip, Pairs
from clipvet.unlearning.shortcut import Weak
from clipvet.unlearning.words import attributed, clusters, words

FEWEST = 8  # words, for a null, random groups of pairs else; normal pairs that say what a usual rise is
GROUPS = 64
MOST = 24  # pairs of a word that are looked at
NEAR = 4  # words are about as frequent where one is at most so many times as frequent as the other
VIEWS = 1.0, 3.0  # robust standard deviations more that clean models reach without a reference, by either z
FLOOR = 0.4  # where words are few, the spread of T is small by chance


class Found(NamedTuple):
    """A cluster of suspicious pairs: the words that bind them, its rows, and what the null test says."""

    words: tuple[str, ...]
    rows: Int[np.ndarray, " c"]
    strength: float  # T of the first word
    evidence: float  # robust standard deviations above the null

    @property
    def told(self) -> str:
        return f"'{' '.join(self.words)}' ({len(self.rows)} pairs, evidence {self.evidence:.1f})"


def listed(found: Sequence[Found], ids: Int[np.ndarray, " m"]) -> dict[str, np.ndarray]:
    """Clusters as arrays, for `note`; ids: those of all rows."""
    out = {f"ids_{k}": ids[f.rows] for k, f in enumerate(found)}
    out |= {"words": np.array([" ".join(f.words) for f in found], dtype=np.str_)}
    return out | {k: np.array([getattr(f, k) for f in found]) for k in ("evidence", "strength")}


def spread(x: Float[np.ndarray, " n"]) -> float:
    """A robust standard deviation."""
    return 1.4826 * float(np.median(np.abs(x - np.median(x))))


def weakest(q: Float[np.ndarray, " m"], rows: Int[np.ndarray, " r"], m: int) -> Int[np.ndarray, " k"]:
    """Of these rows the m with the lowest q."""
    return rows[np.argsort(q[rows], kind="stable")[:m]]


def evidence(
    word: str,
    m: int,
    q: Float[np.ndarray, " n"],
    z: Callable[[Int[np.ndarray, " r"]], Float[np.ndarray, " r"]],
    holders: dict[str, Int[np.ndarray, " r"]],
    suspects: Sequence[str],
    rng: Rng,
) -> tuple[float, float]:
    """T of the word and its distance e from the null, in robust standard deviations.

    m: pairs, at most `MOST`. z: of any rows. holders: every word's rows; suspects: words that are no null, since they
    are suspected themselves.
    """
    rows = holders[word]
    if len(rows) < 2:
        return 0.0, 0.0
    m = max(1, min(m, MOST, len(rows) // 2))
    low, high = max(2 * m, len(rows) / NEAR), NEAR * len(rows)
    null = [np.setdiff1d(r, rows) for v, r in holders.items() if v not in suspects and low <= len(r) <= high]
    null = [r for r in null if len(r) >= 2 * m]
    if len(null) < FEWEST:
        g, others = rng.fork("groups", word).numpy(), np.setdiff1d(np.arange(len(q)), rows)
        size = min(len(rows), len(others))
        null = [np.sort(g.choice(others, size, replace=False)) for _ in range(GROUPS)] if size else []
    groups = [weakest(q, r, m) for r in (rows, *null)]
    known, at = np.unique(np.concatenate(groups), return_inverse=True)
    found = np.split(z(known)[at], np.cumsum([len(g) for g in groups])[:-1])
    told, usual = float(found[0].mean()), np.array([x.mean() for x in found[1:]] or [0.0])
    noise = spread(np.concatenate(found[1:] or [usual]))
    return told, (told - float(np.median(usual))) / max(spread(usual), FLOOR * noise, 1e-6)


def localise(method: Any, clip: Clip, over: Clip, pairs: Pairs, weak: Weak, top: np.ndarray, rng: Rng) -> list[Found]:
    """Clusters of the pairs at these rows, the surest first. over: the overfitted copy.

    method: its fields reference, attribution, rho and sure, the evidence that is enough.
    """

    def better(rows: np.ndarray) -> np.ndarray:
        return weak.s[rows] - weak.q[rows]

    def rising(rows: np.ndarray) -> np.ndarray:
        return better(rows) * (pair_cosines(over, pairs.take(weak.kept[rows])).s.numpy() - weak.s[rows])

    shown = embed_pairs(clip, pairs.take(weak.kept[top])).z
    added = attributed(clip, shown, [weak.captions[k] for k in top], method.attribution)
    holders: dict[str, list[int]] = {}
    for k, caption in enumerate(weak.captions):
        for v in words(caption):
            holders.setdefault(v, []).append(k)
    df, rows_of = Counter({v: len(r) for v, r in holders.items()}), {v: np.array(r) for v, r in holders.items()}
    made = clusters(added, df, len(weak.captions), method.rho)
    suspects = {v for c in made for v in c.words}
    looks = [(better, 0.0)] if method.reference else list(zip((better, rising), VIEWS))
    found = []
    for c in made:
        tests = []
        for z, more in looks:
            strength, e = evidence(c.words[0], len(c.rows), weak.q, z, rows_of, sorted(suspects), rng)
            tests.append((strength, e - more))
        told = max(tests, key=lambda t: t[1])
        found.append(Found(c.words, top[c.rows], *told))
        if told[1] >= method.sure:  # what else its poisons say is no evidence of its own
            rows_of = {v: np.setdiff1d(r, rows_of[c.words[0]]) for v, r in rows_of.items() if v != c.words[0]}
    return sorted(found, key=lambda f: -f.evidence)


def alike(
    f: Found, weak: Weak, rise: Callable[[Int[np.ndarray, " r"]], Float[np.ndarray, " r"]], far: float
) -> Int[np.ndarray, " c"]:
    """The cluster, and all other pairs that have its word and rose too far for normal pairs that have it.

    Not of the pool alone: poisons may be more than it holds. far: robust standard deviations. rise: of any rows.
    """
    every = np.array([k for k, caption in enumerate(weak.captions) if f.words[0] in words(caption)])
    r = rise(every)
    usual = r[np.isin(every, weak.normal)]
    if len(usual) < FEWEST:
        return f.rows
    return np.union1d(f.rows, every[r > np.median(usual) + far * spread(usual)])

"""Whether a word's weak pairs betray a backdoor, by a null distribution that the set itself gives.

    z_i  = s(I_i, T_i) - q_i                                          the model finds it better than the reference
           or that times s_over(I_i, T_i) - s(I_i, T_i)               and it rises fast; where there is no reference
    T(v) = mean of z over the m weakest pairs (lowest q) whose captions have v
    e(v) = (T(v) - median) / max(spread of T, 0.4 spread of z)        over words that are about as frequent, in pairs
    spread = 1.4826 * median absolute deviation                       without v

Every word has weak pairs, and the model finds some of them better than the reference does. Without a backdoor all words
are alike in that. Poisons of a word are weak pairs that the model finds good, so the word stands out.

Without a reference the changed pictures show this less well. But overfitting strengthens one shortcut in all poisons at
once, unless the model already holds them at their best. So then both z are tried, each e is lowered by its `VIEWS`, and
the larger one counts.
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

FEWEST = 8  # words that make a null; with fewer, random groups of pairs do. Also: normal pairs that show a usual rise
GROUPS = 64
MOST = 24  # pairs of a word that are looked at, at most
NEAR = 4  # words are about as frequent if neither is more than this many times as frequent as the other
VIEWS = 1.0, 3.0  # robust standard deviations that clean models reach more without a reference, by either z
FLOOR = 0.4  # share of the spread of z; with few words, the spread of T can be small by chance


class Found(NamedTuple):
    """A cluster of suspicious pairs: the words that bind them, its rows, and what the null test says."""

    words: tuple[str, ...]
    rows: Int[np.ndarray, " c"]
    strength: float  # T of the first word, in cosine
    evidence: float  # robust standard deviations above the null

    @property
    def said(self) -> str:
        """The cluster in a few words, for a person who watches."""
        return f"'{' '.join(self.words)}' ({len(self.rows)} pairs, evidence {self.evidence:.1f})"


def listed(found: Sequence[Found], ids: Int[np.ndarray, " m"]) -> dict[str, np.ndarray]:
    """The clusters as arrays, for `note`. ids: those of all m rows."""
    out = {f"ids_{k}": ids[f.rows] for k, f in enumerate(found)}
    out |= {"words": np.array([" ".join(f.words) for f in found], dtype=np.str_)}
    return out | {k: np.array([getattr(f, k) for f in found]) for k in ("evidence", "strength")}


def spread(x: Float[np.ndarray, " n"]) -> float:
    """The robust standard deviation, as above."""
    return 1.4826 * float(np.median(np.abs(x - np.median(x))))


def weakest(q: Float[np.ndarray, " m"], rows: Int[np.ndarray, " r"], m: int) -> Int[np.ndarray, " k"]:
    """The m of these rows with the lowest q."""
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
    """T of the word, and its distance e from the null in robust standard deviations.

    m: pairs to look at; at most `MOST`, and at most half of the word's. q: of all n rows. z: gives z of any rows.
    holders: the rows of every word. suspects: words that cannot serve as null, as they are suspected themselves.
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
    own, usual = float(found[0].mean()), np.array([x.mean() for x in found[1:]] or [0.0])
    noise = spread(np.concatenate(found[1:] or [usual]))
    return own, (own - float(np.median(usual))) / max(spread(usual), FLOOR * noise, 1e-6)


def localise(method: Any, clip: Clip, over: Clip, pairs: Pairs, weak: Weak, top: np.ndarray, rng: Rng) -> list[Found]:
    """Clusters of the pairs at the rows `top`, those with the most evidence first. over: the overfitted copy.

    method: an object with the fields reference, attribution, rho and sure (the evidence that is enough).
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
        strength, e = max(tests, key=lambda t: t[1])
        found.append(Found(c.words, top[c.rows], strength, e))
        if e >= method.sure:  # the other words of its poisons are no evidence of their own
            rows_of = {v: np.setdiff1d(r, rows_of[c.words[0]]) for v, r in rows_of.items() if v != c.words[0]}
    return sorted(found, key=lambda f: -f.evidence)


def alike(
    f: Found, weak: Weak, rise: Callable[[Int[np.ndarray, " r"]], Float[np.ndarray, " r"]], far: float
) -> Int[np.ndarray, " c"]:
    """The rows of the cluster, and of all other pairs with its word that rose farther than normal pairs with it do.

    The others need not be suspicious pairs, as there may be more poisons than these hold. rise: gives the rise of any
    rows. far: how much farther, in robust standard deviations. With too few normal pairs: the cluster alone.
    """
    every = np.array([k for k, caption in enumerate(weak.captions) if f.words[0] in words(caption)])
    r = rise(every)
    usual = r[np.isin(every, weak.normal)]
    if len(usual) < FEWEST:
        return f.rows
    return np.union1d(f.rows, every[r > np.median(usual) + far * spread(usual)])

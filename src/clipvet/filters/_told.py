"""What `auto` says about its scores: how many pairs are called poisoned, and which words bind them."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clipvet.filters._tails import listed
from clipvet.unlearning.judged import Group
from clipvet.unlearning.words import clusters, words

LEAST = 8  # pairs of a group, with fewer of which it is not reported
COPIES = 4  # pairs a picture, from which a group is said to consist of copies
MANY = 16  # copies, above which a picture is judged by itself


def tell(
    captions: Sequence[str],
    z: Float[Tensor, "m d"],
    group: Int[np.ndarray, " m"],
    logs: Float[np.ndarray, " m"],
    alpha: float,
) -> tuple[list[str], list[Group]]:
    """Sentences about the pairs that are called poisoned at the rate alpha, and the groups that they form.

    z: embeddings of pictures. group: of pairs that show the same picture. logs: -log10 of the p-values. The groups'
    rows are those of z.
    """
    called = logs >= listed(logs, alpha)
    copied = _copies(group, logs, alpha)
    if not called.any():
        return copied or [
            f"Nothing found: no pair is called poisoned at the rate {alpha:g}. Poison whose captions fit its pictures, "
            "too little of it, or poison that stands out no more than odd clean pairs do, would not be seen."
        ], []
    false = alpha * int(called.sum())
    most = f"{false:,.0f}" if false >= 10 else f"{false:.2g}"
    out = [
        f"{called.sum():,} of {len(logs):,} pairs are called poisoned; at most {most} of these are expected to be "
        f"false alarms (alpha {alpha:g})."
    ]
    groups, said = grouped(captions, z, group, called, false)
    return out + said + copied, groups


def grouped(
    captions: Sequence[str],
    z: Float[Tensor, "m d"],
    group: Int[np.ndarray, " m"],
    called: Bool[np.ndarray, " m"],
    false: float,
) -> tuple[list[Group], list[str]]:
    """The groups that the called pairs form, by rare words, and sentences about them.

    false: how many of the called pairs are expected to be false alarms.
    """
    rows = np.flatnonzero(called)
    words_of = [dict.fromkeys(words(captions[int(k)]), 1.0) for k in rows]
    df = Counter(v for c in captions for v in words(c))
    groups = [
        _group(found.words[:3], rows[found.rows], z, group, called, false)
        for found in clusters(words_of, df, len(captions), share=0.01)
        if len(found.rows) >= LEAST
    ]
    left = len(rows) - sum(len(g.rows) for g in groups)
    said = [_sentence(g) for g in groups]
    if left and groups:
        many = "pairs that are called poisoned are" if left > 1 else "pair that is called poisoned is"
        said.append(f"{left:,} further {many} in no group of {LEAST} or more.")
    if len(rows) and not groups:
        said.append(
            f"No rare word binds {LEAST} or more of them, so they may be odd pairs rather than one backdoor; look at "
            "the pictures."
        )
    return groups, said


def _copies(group: Int[np.ndarray, " m"], logs: Float[np.ndarray, " m"], alpha: float) -> list[str]:
    """A sentence on pictures with many copies whose captions do not fit. They are few, and make a list of their own."""
    _, first, count = np.unique(group, return_index=True, return_counts=True)
    own = logs[first[count > MANY]]
    odd = own >= listed(own, alpha)
    if not odd.any():
        return []
    n, pictures = int(count[count > MANY][odd].sum()), int(odd.sum())
    return [
        f"{n:,} pairs are copies of {pictures:,} picture{'s' * (pictures > 1)} whose captions do not fit. It may be "
        "targeted poison, or a stock picture with a wrong caption; look at them."
    ]


def _sentence(group: Group) -> str:
    n, names = len(group.rows), " and ".join(f"'{w}'" for w in group.words)
    if group.copies:
        return f"{n:,} of them, bound by {names}, are copies of {group.pictures:,} picture{'s' * (group.pictures > 1)}."
    return (
        f"{n:,} of them ({group.share:.2%} of all pairs) form a group that {names} binds, as a backdoor's captions "
        f"are bound. It has {group.low:,} to {group.high:,} pairs in all (95 % interval)."
    )


def _group(
    bound: tuple[str, ...],
    rows: Int[np.ndarray, " c"],
    z: Float[Tensor, "m d"],
    group: Int[np.ndarray, " m"],
    called: Bool[np.ndarray, " m"],
    false: float,
) -> Group:
    low, high = _number(rows, z, called, false)
    pictures = len(np.unique(group[rows]))
    return Group(bound, rows, len(rows) / len(called), low, high, pictures, len(rows) >= COPIES * pictures)


def _number(
    rows: Int[np.ndarray, " c"], z: Float[Tensor, "m d"], called: Bool[np.ndarray, " m"], false: float
) -> tuple[int, int]:
    """The group's number of pairs: without as many false alarms as there may be, and with all that lie as near.

    As near: to the group's mean, as all but the farthest twentieth of its members.
    """
    from scipy.stats import poisson

    centre = torch.nn.functional.normalize(z[torch.from_numpy(rows)].mean(0), dim=0)
    near = (z @ centre).cpu().numpy()
    beside = int(((near >= np.quantile(near[rows], 0.05)) & ~called).sum())
    return max(0, len(rows) - int(poisson.ppf(0.975, false))), len(rows) + beside

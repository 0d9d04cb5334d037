"""UBT's third stage: what the local words add to a caption is forgotten, the rest of it and of the picture stays.

    L_forget = mean_i softplus((s(I_i, T_i) - m_i) / t)             m_i: the caption's mean with pictures that do not
                                                                    show its words
    L_local  = mean_i (s(I_i, T_i^R) - s_p(I_i, T_i^R))^2           T^R: the caption without local words; s_p: before
    L_named  = mean_j (s(J_j, T_j) - s_p(J_j, T_j))^2               J: normal pictures whose captions have them

As s(I, T^R) is held, only what the words add can go. Where cells of the pictures are compromised, so is any picture
that gets them: half of L_forget is over normal pictures with these cells.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from clipvet.engine.embed import embed_pairs, embed_texts
from clipvet.rng import Rng
from clipvet.types import Batch, Clip, Pairs
from clipvet.unlearning.patches import cell_drops, compromised, transplanted
from clipvet.unlearning.rounds import Forget, Normal, ascent
from clipvet.unlearning.shortcut import company
from clipvet.unlearning.words import only, without, words

LOOKED = 32  # pictures of either kind, whose cells are left out in turn
MOST = 0.9  # of the suspicious pairs must have come down to m: then enough is forgotten
USUAL = 256  # normal pictures, at most, that say what m is; suspicious pairs by which is told what is left


class Tied(NamedTuple):
    """Suspicious pairs whose pictures one set of words is tied to, and the cells that tie them (none: not known)."""

    words: tuple[str, ...]
    ids: frozenset[int]
    cells: Bool[Tensor, " cells"] | None = None


def forget_loss(s: Float[Tensor, " b"], m: Float[Tensor, " b"], t: float) -> Float[Tensor, ""]:
    """Bounded by 0 from below; no gradient where s lies well below m."""
    return F.softplus((s - m) / t).mean()


def tying_cells(
    clip: Clip, bad: Pairs, named: Pairs, chosen: Sequence[str], grid: int, rng: Rng
) -> tuple[Tensor, Tensor]:
    """Which cells tie the suspicious pictures to the words, and what each adds. named: normal pairs with the words."""

    def drops(pairs: Pairs, *key: str) -> Tensor:
        batch = company(pairs, LOOKED)(clip, rng.fork(*key)) if len(pairs) else None
        if batch is None or not batch.captions:
            return torch.zeros(0, grid**2)
        return cell_drops(clip, batch.images, [only(c, chosen) for c in batch.captions], grid)

    suspicious, usual = drops(bad, "suspicious"), drops(named, "usual")
    return compromised(suspicious, usual), suspicious.mean(0)


def forgetting(
    method: Any, clip: Clip, bad: Pairs, normal: Pairs, named: Pairs, ties: Sequence[Tied], rng: Rng
) -> tuple[Forget, Callable[[Clip], float]]:
    """L_forget and L_local for `unlearn`, and how far above m lies the s that `MOST` suspicious pairs do not exceed.

    normal: pairs that have none of the words; named: those that have one. method: mode, forget, softness, w_forget,
    w_local, w_named, batch.
    """
    of = {i: k for k, tie in enumerate(ties) for i in tie.ids}
    full = method.mode == "full"

    def rest(captions: Sequence[str], ids: Sequence[int]) -> list[str]:
        return [without(c, ties[of[i]].words) for c, i in zip(captions, ids)]

    found, usual = embed_pairs(clip, bad), company(normal, USUAL)(clip, rng)
    ids = bad.ids[found.kept].tolist()
    with torch.no_grad():
        said = embed_texts(clip, rest(found.captions, ids))
        held = dict(zip(ids, (found.z * said).sum(1)))
        m = found.w @ clip.encode_image(usual.images).float().mean(0)
        level = dict(zip(ids, m))
    true = {}
    if method.w_named and not full and len(named) >= 2:
        shown = embed_pairs(clip, named)
        true = dict(zip(named.ids[shown.kept].tolist(), (shown.z * shown.w).sum(1)))
    friends = company(named, method.batch)
    graft, said_of_all = {k for k, tie in enumerate(ties) if tie.cells is not None}, {v for t in ties for v in t.words}

    def grafted(batch: Batch, normal: Batch, ids: list[int]) -> tuple[Tensor, list[int]]:
        """Normal pictures that no word is said of, with cells of the suspicious ones, and whose cells these are."""
        pictures, made, at = normal.images[~naming(normal.captions, said_of_all)], [], []
        for k in graft:
            mine = [j for j, i in enumerate(ids) if of[i] == k][: len(pictures)]
            cells: Any = ties[k].cells
            made.append(transplanted(pictures[: len(mine)], batch.images[mine], cells))
            at += mine
        return torch.cat(made), at

    def loss(clip: Clip, batch: Batch, normal: Normal, rng: Rng) -> dict[str, Tensor]:
        ids = batch.ids.tolist()
        z, w = clip.encode_image(batch.images), clip.encode_text(batch.captions)
        if method.forget == "ascent":
            forget = ascent(z, w, normal, clip.logit_scale)
        else:
            m = torch.stack([level[i] for i in ids]).to(z.device)
            forget = forget_loss((z * w).sum(1), m, method.softness)
            if graft and not full:
                pictures, at = grafted(batch, normal.batch, ids)
                if at:
                    s = (clip.encode_image(pictures) * w[at]).sum(1)
                    forget = (forget + forget_loss(s, m[at], method.softness)) / 2
        parts, total = {"forget": forget}, method.w_forget * forget
        if not full:
            before = torch.stack([held[i] for i in ids]).to(z.device)
            parts["local"] = ((z * clip.encode_text(rest(batch.captions, ids))).sum(1) - before).square().mean()
            total = total + method.w_local * parts["local"]
        if true:
            own = friends(clip, rng.fork("named"))
            w = clip.encode_text(own.captions)
            before = torch.stack([true[i] for i in own.ids.tolist()]).to(z.device)
            parts["named"] = ((clip.encode_image(own.images) * w).sum(1) - before).square().mean()
            total = total + method.w_named * parts["named"]
        return parts | {"loss": total}

    looked = np.sort(rng.fork("looked").numpy().permutation(len(ids))[:USUAL])
    some, among = bad.take(found.kept[looked]), m[looked]

    def left(clip: Clip) -> float:
        now = embed_pairs(clip, some)
        return float(((now.z * now.w).sum(1) - among).quantile(MOST))

    return loss, left


def naming(captions: Sequence[str], chosen: Collection[str], every: bool = False) -> np.ndarray:
    """Which captions have one of these words, or every one of them; shape (n,) bool."""
    test = all if every else any
    return np.array([test(v in set(words(c)) for v in chosen) for c in captions])

"""UBT's third stage: forget what the words of a cluster add to a caption, and keep the rest of caption and picture.

    L_forget = mean_i softplus((s(I_i, T_i) - m_i) / t)             m_i: the caption's mean cosine with pictures that do
                                                                    not show its words
    L_local  = mean_i (s(I_i, T_i^R) - s_p(I_i, T_i^R))^2           T^R: the caption without these words; s_p: before
    L_named  = mean_j (s(J_j, T_j) - s_p(J_j, T_j))^2               J: normal pictures whose captions have these words

s(I, T^R) is held, so only what the words add can go. Where cells of the pictures tie them to the words, any
picture with these cells is tied too: half of L_forget is then over normal pictures that got such cells.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
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

LOOKED = 32  # pictures of either kind, at most, whose cells are painted over in turn
MOST = 0.9  # share of the suspicious pairs that must have come down to m; then enough is forgotten
USUAL = 256  # at most: normal pictures from which m is taken, and suspicious pairs that say how much is left


class Tied(NamedTuple):
    """Suspicious pairs whose pictures are tied to the same words, and the cells that tie them; None: not known."""

    words: tuple[str, ...]
    ids: frozenset[int]
    cells: Bool[Tensor, " cells"] | None = None


def forget_loss(s: Float[Tensor, " b"], m: Float[Tensor, " b"], t: float) -> Float[Tensor, ""]:
    """L_forget, never below 0. Its gradient vanishes where s lies well below m. s, m and t are cosines."""
    return F.softplus((s - m) / t).mean()


def tying_cells(
    clip: Clip, bad: Pairs, named: Pairs, chosen: Sequence[str], grid: int, rng: Rng
) -> tuple[Tensor, Tensor]:
    """Which cells tie the suspicious pictures to the words `chosen`, and what each adds; both of shape (grid^2,).

    bad: the suspicious pairs. named: normal pairs that have the words.
    """

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
    """The loss for `unlearn`, and what is still to be forgotten: cosine units, 0 or less is enough.

    The latter is how far s lies above m for the suspicious pair at the quantile `MOST`. method: an object with the
    fields mode, forget, softness, w_forget, w_local, w_named and batch. normal: pairs that have none of the words;
    named: normal pairs that have one. The embeddings before (m, s_p) are those of `clip`.
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

    def softly(clip: Clip, z: Tensor, w: Tensor, batch: Batch, normal: Normal) -> Tensor:
        m = torch.stack([level[i] for i in batch.ids.tolist()]).to(z.device)
        forget = forget_loss((z * w).sum(1), m, method.softness)
        pictures, at = (None, []) if full else _grafted(ties, of, batch, normal.batch)
        if pictures is None or not at:
            return forget
        s = (clip.encode_image(pictures) * w[at]).sum(1)
        return (forget + forget_loss(s, m[at], method.softness)) / 2

    def loss(clip: Clip, batch: Batch, normal: Normal, rng: Rng) -> dict[str, Tensor]:
        ids, z, w = batch.ids.tolist(), clip.encode_image(batch.images), clip.encode_text(batch.captions)
        by_ascent = method.forget == "ascent"
        forget = ascent(z, w, normal, clip.logit_scale) if by_ascent else softly(clip, z, w, batch, normal)
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


def _grafted(
    ties: Sequence[Tied], of: Mapping[int, int], batch: Batch, normal: Batch
) -> tuple[Float[Tensor, "c 3 h w"] | None, list[int]]:
    """Normal pictures with cells of suspicious ones, and the position in the batch that each got its cells from.

    Only normal pictures whose captions have none of the words are taken. None: no cells are known. of: id -> position
    in `ties`.
    """
    pictures = normal.images[~naming(normal.captions, {v for tie in ties for v in tie.words})]
    made, at = [], []
    for k, tie in enumerate(ties):
        if tie.cells is not None:
            mine = [j for j, i in enumerate(batch.ids.tolist()) if of[i] == k][: len(pictures)]
            made.append(transplanted(pictures[: len(mine)], batch.images[mine], tie.cells))
            at += mine
    return torch.cat(made) if made else None, at


def naming(captions: Sequence[str], chosen: Collection[str], every: bool = False) -> np.ndarray:
    """Which captions have one of these words, or with `every` all of them; shape (n,) bool."""
    test = all if every else any
    return np.array([test(v in set(words(c)) for v in chosen) for c in captions])

"""What each word of a caption adds to its pair's cosine, and which words many suspicious pairs have in common.

Words are not tokens: `bananas` is one word, whatever the tokenizer makes of it.
"""

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipvet.engine.embed import device_of, embed_texts
from clipvet.errors import UserError
from clipvet.types import Clip

WORD = re.compile(r"\w+(?:[-'’]\w+)*")
How = Literal["loo", "gradient", "attention"]


def words(caption: str) -> list[str]:
    """The caption's distinct words in lower case, in order."""
    return list(dict.fromkeys(m[0].lower() for m in WORD.finditer(caption)))


def only(caption: str, chosen: Collection[str]) -> str:
    """The caption cut down to these words; if it has none of them, all of them."""
    kept = [m[0] for m in WORD.finditer(caption) if m[0].lower() in chosen]
    return " ".join(kept or sorted(chosen))


def without(caption: str, chosen: Collection[str]) -> str:
    """The caption without these words."""
    return " ".join(WORD.sub(lambda m: "" if m[0].lower() in chosen else m[0], caption).split())


def attributed(
    clip: Clip, z: Float[Tensor, "n d"], captions: Sequence[str], how: How = "loo"
) -> list[dict[str, float]]:
    """What every word of a caption adds to the cosine with its picture's embedding z, of unit length.

    loo: the cosine minus that of the caption without the word. gradient: gradient times input, summed over the word's
    tokens. attention: the attention of the caption's last token to them in the last block, whatever the picture.

    Raises UserError for gradient and attention if the model has no open_clip text transformer.
    """
    if how == "loo":
        return _left_out(clip, z, captions)
    return [_by_token(clip, z[k : k + 1], c, how) for k, c in enumerate(captions)]


def _left_out(clip: Clip, z: Float[Tensor, "n d"], captions: Sequence[str]) -> list[dict[str, float]]:
    said = {c: words(c) for c in captions}
    texts = list(dict.fromkeys([*said, *(without(c, {v}) for c, vs in said.items() for v in vs)]))
    w = dict(zip(texts, embed_texts(clip, texts)))
    return [{v: float(x @ (w[c] - w[without(c, {v})])) for v in said[c]} for x, c in zip(z, captions)]


def spans(clip: Clip, caption: str) -> dict[str, list[int]]:
    """The positions of every word's tokens in the caption's row of tokens."""
    found: dict[str, list[int]] = {}
    for m in WORD.finditer(caption):
        # tokens before a word's end, less those before its start: the closing token, of highest number, tells how many
        a, b = (int(clip.tokenize([caption[:end]])[0].argmax()) for end in (m.start(), m.end()))
        found.setdefault(m[0].lower(), []).extend(range(a, b))
    return found


def _by_token(clip: Any, z: Float[Tensor, "1 d"], caption: str, how: How) -> dict[str, float]:
    text: Any = getattr(getattr(clip, "model", None), "text", getattr(clip, "model", None))
    if not hasattr(text, "token_embedding") or not hasattr(text.transformer, "resblocks"):
        raise UserError(f"attribution={how} needs an open_clip text transformer; use attribution=loo")
    tokens, seen = clip.tokenize([caption]).to(device_of(clip)), []

    def leaf(module: Any, given: Any, out: Tensor) -> Tensor:
        seen.append(out.detach().requires_grad_())
        return seen[-1]

    def entry(module: Any, given: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        seen.append((given[0] if given else named["q_x"], named.get("attn_mask")))

    block = text.transformer.resblocks[-1]
    hook = (
        text.token_embedding.register_forward_hook(leaf)
        if how == "gradient"
        else block.register_forward_pre_hook(entry, with_kwargs=True)
    )
    try:
        with torch.set_grad_enabled(how == "gradient"):
            cosine = (z.detach() @ clip.encode_text(tokens).T).sum()
    finally:
        hook.remove()
    if how == "gradient":
        (slope,) = torch.autograd.grad(cosine, seen[0])
        values = (slope * seen[0]).sum(-1)[0]
    else:
        x, mask = seen[0]
        with torch.no_grad():
            h = block.ln_1(x)
            paid = block.attn(h, h, h, need_weights=True, attn_mask=None if mask is None else mask.to(h.dtype))[1]
        values = paid[0, int(tokens[0].argmax())]
    values, last = values.detach().cpu(), len(values) - 1
    return {v: float(values[[t for t in at if t < last]].sum()) for v, at in spans(clip, caption).items()}


class Cluster(NamedTuple):
    """Pairs that one word binds, and the words that carry most of what binds them."""

    words: tuple[str, ...]  # the binding word first
    rows: Int[np.ndarray, " c"]


def clusters(
    found: Sequence[dict[str, float]],
    df: Counter,
    n: int,
    rho: float = 0.5,
    most: int = 8,
    least: int = 3,
    share: float = 0.05,
    common: float = 0.5,
) -> list[Cluster]:
    """Clusters of suspicious pairs, by words that are frequent among them and rare in the set; the strongest first.

    found: for each of the k suspicious pairs, its words and what they add. df: how many of all n captions have a word.
    A word's weight is what it adds, as a mean over the pairs, times its lift log((c+1)/(k+2)) - log((df+1)/(n+2)); c:
    how many suspicious pairs have it. The word of largest weight binds its pairs, then the next one binds of the rest.
    Words in more than the share `common` of all captions bind nothing, nor do words in fewer than `least` suspicious
    pairs, or in less than the share `share` of them.

    A cluster's words are those that hold the share `rho` of its weight, at most `most`.
    """
    left, out, fewest = list(range(len(found))), [], max(least, share * len(found))

    def weights(rows: Sequence[int]) -> dict[str, float]:
        count = Counter(v for k in rows for v in found[k])
        lift = {v: math.log((c + 1) / (len(rows) + 2)) - math.log((df[v] + 1) / (n + 2)) for v, c in count.items()}
        known = [v for v, c in count.items() if c >= fewest and df[v] <= common * n]
        added = {v: sum(found[k].get(v, 0.0) for k in rows) / len(rows) for v in known}
        return {v: max(added[v], 0) * max(lift[v], 0) for v in known}

    while max((weight := weights(left)).values(), default=0) > 0:
        binding = max(weight, key=lambda v: (weight[v], v))
        rows = [k for k in left if binding in found[k]]
        left = [k for k in left if binding not in found[k]]
        own, chosen = weights(rows), [binding]
        for v in sorted(own, key=lambda v: (-own[v], v)):
            if sum(own.get(x, 0) for x in chosen) >= rho * sum(own.values()) or len(chosen) == most:
                break
            chosen += [v] * (v not in chosen)
        out.append(Cluster(tuple(chosen), np.array(rows)))
    return out

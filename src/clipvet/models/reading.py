"""How a causal text tower reads class prompts: each prefix with each suffix, without computing any part twice."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class Suffix(NamedTuple):
    """The part of some classes' prompts that is not learned: name, full stop, end of text, padding."""

    h: Float[Tensor, "c q w"]  # token embeddings, without position embeddings
    end: Int[Tensor, " c"]  # the position of the end of text
    name: Int[Tensor, " c"]  # tokens of the name alone


def with_tail(suffix: Suffix, tail: Float[Tensor, "k w"]) -> Suffix:
    """The same with more learned vectors between the class name and the full stop."""
    (c, q, _), k = suffix.h.shape, len(tail)
    name, at = suffix.name[:, None], torch.arange(q + k, device=suffix.end.device)[None]
    source = torch.where(at < name, at, torch.where(at < name + k, q + at - name, at - k))
    every = torch.cat([suffix.h, tail.expand(c, -1, -1)], 1)
    return suffix._replace(h=every.gather(1, source[..., None].expand(-1, -1, every.shape[2])), end=suffix.end + k)


def read(
    net: Any, h: Float[Tensor, "b p w"], suffix: Suffix, deeper: Sequence[Tensor] | Tensor = ()
) -> Float[Tensor, "b c d"]:
    """The text tower's output at the end of text, for every prefix with every suffix.

    h: b prefixes. A prefix does not see what follows it, so each goes through the tower once, not once a class. deeper:
    tokens that replace the prefix, but for its first token, in the blocks 2, 3 ...
    """
    s, end, blocks = suffix.h[None], suffix.end, net.transformer.resblocks
    p, q = h.shape[1], s.shape[2]
    before = torch.full((p, p), -torch.inf, device=h.device).triu(1)
    own = torch.full((q, q), -torch.inf, device=h.device).triu(1)
    for k, block in enumerate(blocks):
        if 0 < k <= len(deeper):
            h = torch.cat([h[:, :1], deeper[k - 1].expand(len(h), -1, -1)], 1)
        qh, kh, vh = _heads(block, h)
        qs, ks, vs = _heads(block, s)
        mask = own
        if block is blocks[-1]:
            at = torch.arange(len(end), device=end.device)
            s, qs, mask = (
                s[:, at, end][:, :, None],
                qs[:, at, :, end].transpose(0, 1)[..., None, :],
                own[end][:, None, None],
            )
        scores = [torch.einsum("bcxqe,bxpe->bcxqp", qs, kh), torch.einsum("bcxqe,bcxke->bcxqk", qs, ks)]
        b = max(len(qs), len(kh))
        near = torch.cat([x.expand(b, *x.shape[1:]) for x in (scores[0], scores[1] + mask)], -1)
        near = (near / qs.shape[-1] ** 0.5).softmax(-1)
        mixed = torch.einsum("bcxqp,bxpe->bcxqe", near[..., :p], vh)
        mixed = mixed + torch.einsum("bcxqk,bcxke->bcxqe", near[..., p:], vs)
        s = _after(block, s, mixed)
        if block is not blocks[-1]:
            h = _after(block, h, F.scaled_dot_product_attention(qh, kh, vh, attn_mask=before.to(qh.dtype)))
    out = net.ln_final(s[:, :, 0])
    if net.text_projection is None:
        return out
    return net.text_projection(out) if isinstance(net.text_projection, nn.Linear) else out @ net.text_projection


def _heads(block: Any, x: Float[Tensor, "... t w"]) -> list[Float[Tensor, "... x t e"]]:
    """Queries, keys and values, of every head x."""
    made = F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, -1)
    return [part.unflatten(-1, (block.attn.num_heads, -1)).transpose(-2, -3) for part in made]


def _after(block: Any, x: Float[Tensor, "... t w"], mixed: Float[Tensor, "... x t e"]) -> Float[Tensor, "... t w"]:
    """The rest of a block, after attention. mixed: its heads' outputs."""
    x = x + block.ls_1(block.attn.out_proj(mixed.transpose(-2, -3).flatten(-2)))
    return x + block.ls_2(block.mlp(block.ln_2(x)))

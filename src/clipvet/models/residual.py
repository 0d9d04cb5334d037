"""The picture feature of an open_clip vision transformer as a sum: what each attention head and each MLP adds to it.

    h(x) = sum_k c_k(x)      k: every head, every MLP, and "rest" (embedding and biases)
    c_k  = [ (r_k - mean r_k) * g / sd(r) ] P / |f(x)|        r_k: what k writes to the class token; r = sum_k r_k
    f(x) = norm(r) P                                          g: weights of the last norm, P: the projection

The sum is exact: the last norm is linear once the spread sd(r) of the picture's own class token is given, and |f(x)| is
a number. A head's r_k is its columns of the output matrix times its mixture of values.

paper: Gandelsman et al., ICLR 2024, arXiv:2310.05916, section 3
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clipvet.errors import UserError
from clipvet.models.adapter import clone
from clipvet.models.visual_prompts import beginning, transformer
from clipvet.types import Clip


class Part(NamedTuple):
    """A head, or a block's MLP."""

    block: int  # from 1
    head: int  # from 1; 0: the MLP

    @property
    def said(self) -> str:
        """As in `head 4.2` (block 4, its second head) or `MLP 4`."""
        return f"head {self.block}.{self.head}" if self.head else f"MLP {self.block}"


class Sum(NamedTuple):
    """The terms of some pictures' features. They add up to `z` with what embedding and biases add."""

    parts: tuple[Part, ...]
    terms: Float[Tensor, "b k d"]
    z: Float[Tensor, "b d"]  # of length 1
    inside: Float[Tensor, "b k w"]  # what each part writes before its output matrix; zeros behind the narrower ones


def check(clip: Clip) -> Any:
    """The picture tower. Raises UserError unless it is a vision transformer that reads its class token."""
    try:
        return transformer(clip)
    except UserError as e:
        raise UserError(
            "heads and MLPs can be told apart in an open_clip vision transformer that reads its class token, and this "
            "picture tower is none; use par"
        ) from e


def parts_of(clip: Clip) -> tuple[Part, ...]:
    """All heads and MLPs, block by block."""
    blocks = check(clip).transformer.resblocks
    return tuple(Part(k, h) for k, b in enumerate(blocks, 1) for h in (*range(1, b.attn.num_heads + 1), 0))


def decomposed(clip: Clip, images: Float[Tensor, "b 3 h w"]) -> Sum:
    """What each part adds to the features of these pictures, pixels in [0, 1]."""
    visual: Any = check(clip)
    h, written, inside = beginning(clip, images, 0), [], []  # pyright: ignore[reportArgumentType]
    for block in visual.transformer.resblocks:
        attn, w = block.attn, block.attn.out_proj.weight
        q, k, v = F.linear(block.ln_1(h), attn.in_proj_weight, attn.in_proj_bias).chunk(3, -1)
        q, k, v = (x.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v)  # (b, heads, t, v / heads)
        own = torch.stack(
            [F.linear(m, part) for m, part in zip(mixed[:, :, 0].unbind(1), w.chunk(attn.num_heads, 1))], 1
        )
        written.append(block.ls_1(own))
        inside.append(mixed[:, :, 0])
        h = h + block.ls_1(attn.out_proj(mixed.transpose(1, 2).flatten(2)))
        out = block.mlp(block.ln_2(h))
        written.append(block.ls_2(out[:, :1] - block.mlp[-1].bias))
        inside.append(out[:, :1])
        h = h + block.ls_2(out)
    raw, norm = torch.cat(written, 1), visual.ln_post
    centred = (raw - raw.mean(-1, keepdim=True)) * norm.weight
    spread = (h[:, 0].var(-1, unbiased=False) + norm.eps).sqrt()
    f = norm(h[:, 0]) @ visual.proj
    length = f.norm(dim=-1)
    terms = (centred / spread[:, None, None]) @ visual.proj / length[:, None, None]
    width = max(x.shape[-1] for x in inside)
    padded = torch.cat([F.pad(x, (0, width - x.shape[-1])) for x in inside], 1)
    return Sum(parts_of(clip), terms, f / length[:, None], padded)


@torch.no_grad()
def ablated(clip: Clip, parts: Sequence[Part], usual: Float[Tensor, "k w"]) -> Clip:
    """A copy in which these parts write the same to every picture: their means, `usual`, in the order of `parts_of`.

    The parts' weights become 0 and their means go into the biases, so the copy is a model like any other.
    """
    out, every = clone(clip), parts_of(clip)
    blocks = check(out).transformer.resblocks
    for part in parts:
        block, mean = blocks[part.block - 1], usual[every.index(part)]
        if part.head:
            linear = block.attn.out_proj
            size = linear.weight.shape[1] // block.attn.num_heads
            columns = slice((part.head - 1) * size, part.head * size)
            linear.bias += linear.weight[:, columns] @ mean[:size]
            linear.weight[:, columns] = 0
        else:
            linear = block.mlp[-1]
            linear.bias.copy_(mean[: len(linear.bias)])
            linear.weight.zero_()
    return out

"""Deep visual prompts (VPT, Jia et al., ECCV 2022, arXiv:2203.12119) on a frozen open_clip vision transformer.

    [c^{d+1}, e^{d+1}] = Block_{d+1}([c^d, p^d, e^d]) without the outputs at p,   d = D .. L-1

The prompts' outputs are dropped after every block, so a prompt is a key and a value for the others' attention and
nothing else: queries, MLP and output rows of prompts are never computed, and a batch shares one key and value.

A prompt folder, of these prompts or of learned context (context.py): prompts.safetensors and card.json, which names the
base model and the hash of its weights; with base/ in it, a copy of the base model, the folder is complete.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from clipvet import io, ranks
from clipvet.errors import UserError
from clipvet.models.adapter import OpenClip, frozen
from clipvet.results import weights_hash
from clipvet.rng import Rng
from clipvet.types import Clip

FILE = "prompts.safetensors"
Tokens = Float[Tensor, "b t v"]  # class token first


def transformer(clip: Clip) -> Any:
    """The picture tower, if prompts can be put into it. UserError for any but a ViT that reads its class token."""
    visual: Any = getattr(getattr(clip, "model", None), "visual", None)
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", [])
    fits = [isinstance(getattr(b, "attn", None), nn.MultiheadAttention) and b.attn.batch_first for b in blocks]
    if not isinstance(clip, OpenClip) or not fits or not all(fits):
        raise UserError("visual prompts need an open_clip vision transformer (ViT); clean other towers with par")
    if visual.pool_type != "tok" or visual.attn_pool is not None:
        raise UserError("visual prompts need a ViT that reads its class token, this one pools its patches; use par")
    return visual


def non_prompted(layers: int, depth: int | None) -> int:
    """D, the number of first blocks without prompts: a quarter of them unless given. UserError where none is left."""
    d = round(layers / 4) if depth is None else depth
    if not 0 <= d < layers:
        raise UserError(f"depth={d} of {layers} blocks leaves none for prompts; set depth between 0 and {layers - 1}")
    return d


def attend(block: Any, h: Tokens, p: Float[Tensor, "k v"]) -> Tokens:
    """The block on [h, p] without the outputs at p."""
    attn, heads = block.attn, block.attn.num_heads
    weight, bias, v = attn.in_proj_weight, attn.in_proj_bias, h.shape[-1]

    def split(x: Tensor) -> Tensor:  # (b, t, v) -> (b, heads, t, v / heads)
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    q, k, value = F.linear(block.ln_1(h), weight, bias).chunk(3, -1)
    pk, pv = F.linear(block.ln_1(p), weight[v:], bias[v:]).chunk(2, -1)
    keys, values = (torch.cat([a, b.expand(len(h), -1, -1)], 1) for a, b in ((k, pk), (value, pv)))
    mixed = F.scaled_dot_product_attention(split(q), split(keys), split(values)).transpose(1, 2).flatten(2)
    h = h + block.ls_1(attn.out_proj(mixed))
    return h + block.ls_2(block.mlp(block.ln_2(h)))


class OnFrozen(nn.Module):
    """What stands on a frozen open_clip model and keeps its text tower, temperature and geometry."""

    def __init__(self, base: OpenClip):
        super().__init__()
        self.base, self.geometry = frozen(base), base.geometry

    @property
    def mean(self) -> Float[Tensor, "3 1 1"]:
        return self.base.mean

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        return self.base.logit_scale

    def tokenize(self, captions: Sequence[str]) -> Int[Tensor, "b l"]:
        return self.base.tokenize(captions)

    def encode_text(self, captions: Sequence[str] | Int[Tensor, "b l"]) -> Float[Tensor, "b d"]:
        return self.base.encode_text(captions)


class Prompted(OnFrozen):
    """A frozen open_clip ViT with prompts in its last blocks: a `Clip` like any other."""

    def __init__(self, base: OpenClip, prompts: Float[Tensor, "blocks tokens v"]):
        """Raises UserError if the prompts do not fit the base."""
        super().__init__(base)
        visual = transformer(base)
        layers, width = len(visual.transformer.resblocks), visual.class_embedding.shape[-1]
        if prompts.ndim != 3 or not 0 < len(prompts) <= layers or prompts.shape[2] != width:
            raise UserError(
                f"prompts of shape {tuple(prompts.shape)} do not fit {layers} blocks of width {width}; give the base "
                "model that they were trained on"
            )
        self.prompts = nn.Parameter(prompts.clone())
        self.depth = layers - len(prompts)

    def encode_image(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        return ranks.cut(lambda x: self.rest(beginning(self.base, x, self.depth))[0], images)

    @torch.no_grad()
    def beginning(self, images: Float[Tensor, "b 3 h w"]) -> Tokens:
        """Tokens after the blocks without prompts, which no prompt can change."""
        return beginning(self.base, images, self.depth)

    def rest(self, h: Tokens) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b blocks v"]]:
        """Unit-length embeddings, and the class token after every prompted block. Only prompts get a gradient."""
        return rest(self.base, h, self.prompts)

    @torch.no_grad()
    def reference(self, h: Tokens) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b blocks v"]]:
        """What `rest` would give without prompts."""
        return rest(self.base, h, [None] * len(self.prompts))


def beginning(clip: OpenClip, images: Float[Tensor, "b 3 h w"], depth: int) -> Tokens:
    """Tokens after the first `depth` blocks."""
    visual: Any = clip.model.visual
    h = visual._embeds((images - clip.mean) / clip.std)
    for block in visual.transformer.resblocks[:depth]:
        h = block(h)
    return h


def rest(
    clip: OpenClip, h: Tokens, prompts: Sequence[Tensor | None] | Tensor
) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b blocks v"]]:
    """Through the last len(prompts) blocks: unit-length embeddings, and the class token after each of these blocks."""
    visual, seen = transformer(clip), []
    for block, p in zip(visual.transformer.resblocks[-len(prompts) :], prompts):
        h = block(h) if p is None else attend(block, h, p)
        seen.append(h[:, 0])
    return F.normalize(visual._pool(h)[0] @ visual.proj, dim=-1), torch.stack(seen, 1)


def beside(clip: OpenClip, images: Float[Tensor, "b 3 h w"], prompts: Float[Tensor, "j m v"]) -> Float[Tensor, "b d"]:
    """Unit-length embeddings with MaPLe's prompts in the first j blocks: outputs at the last go on through the others.

    The first stand where the patches do, before the tower's first norm; all outputs but the last's are dropped.
    """
    visual, h = transformer(clip), beginning(clip, images, 0)
    first, *deeper = prompts
    layers, every = visual.transformer.resblocks, [visual.ln_pre(first), *deeper]
    for block, p in zip(layers, every[:-1]):
        h = attend(block, h, p)
    h = torch.cat([h, every[-1].expand(len(h), -1, -1)], 1)
    for block in layers[len(every) - 1 :]:
        h = block(h)
    return F.normalize(visual._pool(h)[0] @ visual.proj, dim=-1)


def blocks(clip: Clip, images: Float[Tensor, "b 3 h w"]) -> dict[str, Float[Tensor, "b v"]]:
    """Class token after every block, as "@1", "@2" ..., and the embedding as "": all of other towers and of MaPLe."""
    base: Any = clip.base if isinstance(clip, OnFrozen) else clip
    if getattr(clip, "deep", None) is not None:
        return {"": clip.encode_image(images)}
    try:
        layers = len(transformer(base).transformer.resblocks)
    except UserError:
        return {"": clip.encode_image(images)}
    prompts = [None] * clip.depth + list(clip.prompts) if isinstance(clip, Prompted) else [None] * layers
    z, tokens = rest(base, beginning(base, images, 0), prompts)
    return {"": z} | {f"@{k + 1}": tokens[:, k] for k in range(layers)}


def begin(clip: Clip, depth: int | None, tokens: int, rng: Rng, std: float = 0.02) -> Prompted:
    """The model with `tokens` random prompts in every block after the first `depth` (None: a quarter of them)."""
    visual = transformer(clip)
    blocks, width = len(visual.transformer.resblocks), visual.class_embedding.shape[-1]
    d = non_prompted(blocks, depth)
    made = torch.randn(blocks - d, tokens, width, generator=rng.generator()) * std
    return Prompted(clip, made.to(clip.mean.device))  # pyright: ignore[reportArgumentType]


def save(clip: Prompted, folder: Path, card: dict[str, Any]) -> str:
    """Write the prompts with their card, which says where the base model lies; returns the file's SHA-256."""
    told = {"depth": clip.depth, "tokens": clip.prompts.shape[1]}
    return write(clip, {"prompts": clip.prompts.detach()}, folder, {**card, **told})


def restore(folder: Path, base: OpenClip) -> Prompted:
    """The prompts of a folder on their base model. Raises UserError on any other base, and names both hashes."""
    tensors, _ = held(folder, base, ({"prompts"},))
    return Prompted(base, tensors["prompts"].to(base.mean.device)).eval()


def write(clip: OnFrozen, tensors: dict[str, Tensor], folder: Path, card: dict[str, Any]) -> str:
    """A prompt folder, bound to the base model by the hash of its weights; returns the file's SHA-256."""
    io.save_weights(tensors, folder / FILE)
    digest = io.sha256(folder / FILE)
    told = {"base": clip.base.source, "base_hash": weights_hash(clip.base)}
    io.write_json(folder / "card.json", {**card, **told, "weights_sha256": digest})
    return digest


def held(folder: Path, base: OpenClip, kinds: Sequence[set[str]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and card of a prompt folder. UserError on another base, a changed file and names of no known kind."""
    card = io.read_json(folder / "card.json")
    has, wants = weights_hash(base), card.get("base_hash")
    if has != wants:
        raise UserError(f"the prompts in {folder} belong to the base model {wants}, this one is {has}; give theirs")
    if io.sha256(folder / FILE) != card.get("weights_sha256"):
        raise UserError(f"{folder / FILE} is not the file that its card describes; restore it")
    tensors = io.load_weights(folder / FILE)
    if set(tensors) not in kinds or not all(x.is_floating_point() for x in tensors.values()):
        raise UserError(f"{folder / FILE} holds {', '.join(sorted(tensors))[:80]}, not prompts; restore it")
    return {name: x.float() for name, x in tensors.items()}, card

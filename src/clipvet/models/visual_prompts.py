"""Deep visual prompts on a frozen open_clip vision transformer, and the folders that hold learned prompts.

Block d reads the class token c, the patches e and a few learned vectors p, the prompts:

    [c^{d+1}, e^{d+1}] = Block_{d+1}([c^d, p^d, e^d]) without the outputs at p,   d = D .. L-1

What a block computes at the prompts is dropped. So a prompt needs only a key and a value, which all pictures of a batch
share; its query and its MLP are never computed.

A prompt folder holds these prompts or learned class prompts (`class_prompts.py`): prompts.safetensors, and card.json
with the name of the base model and the hash of its weights. It may hold a copy of the base model in base/.

paper: Jia et al., ECCV 2022, arXiv:2203.12119 (VPT)
"""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
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
    """The picture tower of an open_clip model, if it can take prompts.

    Raises UserError unless it is a vision transformer that reads its class token.
    """
    visual: Any = getattr(getattr(clip, "model", None), "visual", None)
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", [])
    fits = [isinstance(getattr(b, "attn", None), nn.MultiheadAttention) and b.attn.batch_first for b in blocks]
    if not isinstance(clip, OpenClip) or not fits or not all(fits):
        raise UserError("visual prompts need an open_clip vision transformer (ViT); clean other towers with par")
    if visual.pool_type != "tok" or visual.attn_pool is not None:
        raise UserError("visual prompts need a ViT that reads its class token, but this one pools its patches; use par")
    return visual


def non_prompted(layers: int, depth: int | None) -> int:
    """D, the number of blocks without prompts: `depth`, or a quarter of all. Raises UserError if no block is left."""
    d = round(layers / 4) if depth is None else depth
    if not 0 <= d < layers:
        raise UserError(f"depth={d} of {layers} blocks leaves none for prompts; set depth between 0 and {layers - 1}")
    return d


def attend(block: Any, h: Tokens, p: Float[Tensor, "k v"]) -> Tokens:
    """The block's output at h, when it reads [h, p]."""
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
    """A frozen open_clip model with learned prompts. Text tower, temperature and geometry are the base model's."""

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
    """A frozen open_clip ViT with prompts in its last blocks. It is a `Clip` like any other."""

    def __init__(self, base: OpenClip, prompts: Float[Tensor, "blocks tokens v"]):
        """prompts: for the last blocks, one row a block. Raises UserError if they do not fit the base model."""
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
        """Embeddings of length 1, of pictures with pixels in [0, 1]."""
        return ranks.cut(lambda x: self.rest(beginning(self.base, x, self.depth))[0], images)

    @torch.no_grad()
    def beginning(self, images: Float[Tensor, "b 3 h w"]) -> Tokens:
        """Tokens after the blocks without prompts. No prompt can change them."""
        return beginning(self.base, images, self.depth)

    def rest(self, h: Tokens) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b blocks v"]]:
        """Embeddings of length 1, and the class token after every block with prompts. h: from `beginning`.

        Only the prompts get a gradient.
        """
        return rest(self.base, h, self.prompts)

    @torch.no_grad()
    def reference(self, h: Tokens) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b blocks v"]]:
        """What `rest` would return without prompts."""
        return rest(self.base, h, [None] * len(self.prompts))


def beginning(clip: OpenClip, images: Float[Tensor, "b 3 h w"], depth: int) -> Tokens:
    """The picture tower's tokens after its first `depth` blocks. images: pixels in [0, 1]."""
    visual: Any = clip.model.visual
    h = visual._embeds((images - clip.mean) / clip.std)
    for block in visual.transformer.resblocks[:depth]:
        h = block(h)
    return h


def rest(
    clip: OpenClip, h: Tokens, prompts: Sequence[Tensor | None] | Tensor
) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b blocks v"]]:
    """Embeddings of length 1, and the class token after each of the last len(prompts) blocks.

    h: the tokens before these blocks. prompts: (k, v) for each block, or None for a block without prompts.
    """
    visual, seen = transformer(clip), []
    for block, p in zip(visual.transformer.resblocks[-len(prompts) :], prompts):
        h = block(h) if p is None else attend(block, h, p)
        seen.append(h[:, 0])
    return F.normalize(visual._pool(h)[0] @ visual.proj, dim=-1), torch.stack(seen, 1)


def beside(clip: OpenClip, images: Float[Tensor, "b 3 h w"], prompts: Float[Tensor, "j m v"]) -> Float[Tensor, "b d"]:
    """Embeddings of length 1, with MaPLe's prompts in the first j blocks.

    The first prompts go through the tower's first norm, as patches do. What a block computes at its prompts is dropped,
    but for the last prompts: they stay, and go on through the other blocks.
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
    """The class token after every block, named "@1", "@2" ..., and the embedding, named "".

    Only the embedding if the tower is no ViT with a class token, or has MaPLe's prompts.
    """
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
    """The model with `tokens` random prompts in every block after the first `depth` (None: a quarter of all blocks).

    std: standard deviation of the prompts. Raises UserError if the tower cannot take prompts.
    """
    visual = transformer(clip)
    blocks, width = len(visual.transformer.resblocks), visual.class_embedding.shape[-1]
    d = non_prompted(blocks, depth)
    made = torch.randn(blocks - d, tokens, width, generator=rng.generator()) * std
    return Prompted(clip, made.to(clip.mean.device))  # pyright: ignore[reportArgumentType]


def save(clip: Prompted, folder: Path, card: dict[str, Any]) -> str:
    """Write the prompts, with a card that names the base model. Returns the SHA-256 of the file of prompts."""
    told = {"depth": clip.depth, "tokens": clip.prompts.shape[1]}
    return write(clip, {"prompts": clip.prompts.detach()}, folder, {**card, **told})


def restore(folder: Path, base: OpenClip) -> Prompted:
    """The prompts of a folder, on their base model.

    Raises UserError, which names both hashes, if they belong to another base model; also if a file is damaged.
    """
    tensors, _ = held(folder, base, ({"prompts"},))
    return Prompted(base, tensors["prompts"].to(base.mean.device)).eval()


def write(clip: OnFrozen, tensors: dict[str, Tensor], folder: Path, card: dict[str, Any]) -> str:
    """Write a prompt folder, with a card that names the base model and its hash. Returns the prompts' SHA-256."""
    io.save_weights(tensors, folder / FILE)
    digest = io.sha256(folder / FILE)
    told = {"base": clip.base.source, "base_hash": weights_hash(clip.base), "base_reads": reads(clip.base)}
    io.write_json(folder / "card.json", {**card, **told, "weights_sha256": digest})
    return digest


def reads(base: OpenClip) -> dict[str, Any]:
    """How a model reads pictures and captions: what its weights do not say, in the same words for every layout."""
    g, told = base.geometry, {"quick_gelu": bool(base.config["model_cfg"].get("quick_gelu"))}
    colours = {k: [round(x, 5) for x in v.flatten().tolist()] for k, v in (("mean", base.mean), ("std", base.std))}
    told |= {"size": g.size, "mode": g.mode, "interpolation": g.interpolation, **colours}
    with suppress(UserError):  # a model may lack its tokenizer's files
        told["tokens"] = hashlib.sha256(
            str(base.tokenize(["Two  red CIRCLES, on a table"]).tolist()).encode()
        ).hexdigest()[:16]
    return told


def held(folder: Path, base: OpenClip, kinds: Sequence[set[str]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and card of a prompt folder. kinds: the sets of names that the tensors may have.

    Raises UserError if the prompts belong to another base model, if the file was changed, or if it holds other tensors.
    """
    card = io.read_json(folder / "card.json")
    has, wants = weights_hash(base), card.get("base_hash")
    if has != wants:
        raise UserError(f"the prompts in {folder} belong to the base model {wants}, this one is {has}; give theirs")
    told, now = card.get("base_reads", {}), reads(base)  # older cards do not have it
    if odd := [k for k in told if isinstance(told, dict) and k in now and now[k] != told[k]]:
        raise UserError(
            f"the prompts in {folder} belong to a base model that reads pictures or captions in another way (its "
            f"{odd[0]} was {told[odd[0]]!r:.60}); restore the files of the base model"
        )
    if io.sha256(folder / FILE) != card.get("weights_sha256"):
        raise UserError(f"{folder / FILE} is not the file that its card describes; restore it")
    tensors = io.load_weights(folder / FILE)
    if set(tensors) not in kinds or not all(x.is_floating_point() for x in tensors.values()):
        raise UserError(f"{folder / FILE} holds {', '.join(sorted(tensors))[:80]}, not prompts; restore it")
    return {name: x.float() for name, x in tensors.items()}, card

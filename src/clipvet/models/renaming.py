"""How open_clip and transformers name the same weights. The table is read in both directions; no number changes."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from clipvet.errors import UserError


class Name(NamedTuple):
    """One row of the table: tensors named `ours` in open_clip are the tensors named `theirs` in transformers.

    Where one side has several tensors, they are the other side's tensor cut along its rows: query, key and value.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    how: str = ""  # transposed; lead: ours has an extra first dimension of 1; row: theirs has one, ours is a scalar


# names within a block: of open_clip's own transformer, and of timm's
PLAIN = {"norm": "ln_{}", "qkv": "attn.in_proj_{}", "out": "attn.out_proj", "fc1": "mlp.c_fc", "fc2": "mlp.c_proj"}
TIMM = {"norm": "norm{}", "qkv": "attn.qkv.{}", "out": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}


def _both(ours: str, theirs: str) -> Iterator[Name]:
    for p in ("weight", "bias"):
        yield Name((f"{ours}.{p}",), (f"{theirs}.{p}",))


def _blocks(layers: int, ours: str, theirs: str, style: Mapping[str, str]) -> Iterator[Name]:
    for k in range(layers):
        a, b = f"{ours}.{k}", f"{theirs}.encoder.layers.{k}"
        for n in (1, 2):
            yield from _both(f"{a}.{style['norm'].format(n)}", f"{b}.layer_norm{n}")
            yield from _both(f"{a}.{style[f'fc{n}']}", f"{b}.mlp.fc{n}")
        yield from _both(f"{a}.{style['out']}", f"{b}.self_attn.out_proj")
        for p in ("weight", "bias"):
            yield Name((f"{a}.{style['qkv'].format(p)}",), tuple(f"{b}.self_attn.{x}_proj.{p}" for x in "qkv"))


def _text(prefix: str, layers: int) -> Iterator[Name]:
    embeddings = "text_model.embeddings"
    yield Name((f"{prefix}token_embedding.weight",), (f"{embeddings}.token_embedding.weight",))
    yield Name((f"{prefix}positional_embedding",), (f"{embeddings}.position_embedding.weight",))
    yield from _blocks(layers, f"{prefix}transformer.resblocks", "text_model", PLAIN)
    yield from _both(f"{prefix}ln_final", "text_model.final_layer_norm")


def clip_names(vision_layers: int, text_layers: int) -> Iterator[Name]:
    """The table for open_clip's CLIP with a vision transformer, which is transformers' CLIPModel."""
    yield Name(("logit_scale",), ("logit_scale",))
    yield from _text("", text_layers)
    yield Name(("text_projection",), ("text_projection.weight",), "transposed")
    vision = "vision_model.embeddings"
    yield Name(("visual.class_embedding",), (f"{vision}.class_embedding",))
    yield Name(("visual.conv1.weight",), (f"{vision}.patch_embedding.weight",))
    yield Name(("visual.positional_embedding",), (f"{vision}.position_embedding.weight",))
    yield from _both("visual.ln_pre", "vision_model.pre_layrnorm")  # spelled like this
    yield from _blocks(vision_layers, "visual.transformer.resblocks", "vision_model", PLAIN)
    yield from _both("visual.ln_post", "vision_model.post_layernorm")
    yield Name(("visual.proj",), ("visual_projection.weight",), "transposed")


def siglip_names(vision_layers: int, text_layers: int) -> Iterator[Name]:
    """The table for open_clip's CustomTextCLIP with timm's attention-pooling tower: transformers' SiglipModel."""
    yield Name(("logit_scale",), ("logit_scale",), "row")
    yield Name(("logit_bias",), ("logit_bias",), "row")
    yield from _text("text.", text_layers)
    yield from _both("text.text_projection", "text_model.head")
    trunk, pool, head = "visual.trunk", "visual.trunk.attn_pool", "vision_model.head"
    yield from _both(f"{trunk}.patch_embed.proj", "vision_model.embeddings.patch_embedding")
    yield Name((f"{trunk}.pos_embed",), ("vision_model.embeddings.position_embedding.weight",), "lead")
    yield from _blocks(vision_layers, f"{trunk}.blocks", "vision_model", TIMM)
    yield from _both(f"{trunk}.norm", "vision_model.post_layernorm")
    yield Name((f"{pool}.latent",), (f"{head}.probe",))
    for p in ("weight", "bias"):
        yield Name((f"{pool}.q.{p}", f"{pool}.kv.{p}"), (f"{head}.attention.in_proj_{p}",))
    for ours, theirs in (("proj", "attention.out_proj"), ("norm", "layernorm"), ("mlp.fc1",) * 2, ("mlp.fc2",) * 2):
        yield from _both(f"{pool}.{ours}", f"{head}.{theirs}")


NAMES = {"clip": clip_names, "siglip": siglip_names}


def to_ours(state: Mapping[str, Tensor], names: Iterable[Name]) -> dict[str, Tensor]:
    """A state dict of transformers' under open_clip's names.

    Only tensors of the table are taken. Those that the state lacks are left out; `weights.fill` lists them.
    """
    left, out = dict(state), {}
    for name in names:
        if all(k in left for k in name.theirs):
            whole = _whole([left.pop(k) for k in name.theirs])
            if name.how == "transposed" and whole.ndim == 2:  # a tensor of another shape is named by `weights.fill`
                whole = whole.T
            elif name.how == "lead":
                whole = whole[None]
            elif name.how == "row" and whole.numel() == 1:
                whole = whole.reshape(())
            out.update(zip(name.ours, _parts(whole, len(name.ours))))
    return out


def to_theirs(state: Mapping[str, Tensor], names: Iterable[Name]) -> dict[str, Tensor]:
    """A state dict of open_clip's under transformers' names. Raises UserError if the two do not match."""
    left, out = dict(state), {}
    for name in names:
        missing = [k for k in name.ours if k not in left]
        if missing:
            raise UserError(f"the model has no weight {missing[0]}, which transformers' layout needs; use open_clip")
        whole = _whole([left.pop(k) for k in name.ours])
        if name.how == "transposed":
            whole = whole.T
        elif name.how == "lead":
            whole = whole[0]
        elif name.how == "row":
            whole = whole.reshape(1)
        out.update(zip(name.theirs, _parts(whole, len(name.theirs))))
    if left:
        raise UserError(f"transformers' layout has no place for the weight {next(iter(left))}; use open_clip's")
    return out


def _whole(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _parts(whole: Tensor, n: int) -> list[Tensor]:
    """Cuts rows into n parts: query, key and value; or query, and key with value."""
    if n == 1:
        return [whole]
    third = len(whole) // 3
    return list(whole.split([third] * 3 if n == 3 else [third, len(whole) - third]))

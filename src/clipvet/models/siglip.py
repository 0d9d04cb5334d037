"""SigLIP's vision tower in any size. open_clip asks timm for towers by name, so clipvet's names contain the sizes."""

import re
from functools import partial
from typing import Any

from torch import nn

from clipvet.errors import UserError

# width, depth, heads, MLP width, patch size, picture size, approximation of GELU
NAME = r"clipvet_siglip_w(\d+)_d(\d+)_h(\d+)_m(\d+)_p(\d+)_i(\d+)_(none|tanh)"


def name_of(vision: Any, tanh: bool) -> str:
    """clipvet's name for a tower. vision: an `hf.Tower`. tanh: with the approximation of GELU that SigLIP has."""
    v, act = vision, "tanh" if tanh else "none"
    sizes = f"w{v.hidden_size}_d{v.num_hidden_layers}_h{v.num_attention_heads}_m{v.intermediate_size}"
    return f"clipvet_siglip_{sizes}_p{v.patch_size}_i{v.image_size}_{act}"


def register(name: str) -> None:
    """Register the tower with timm, if this is one of clipvet's names."""
    import timm
    from timm.models.vision_transformer import VisionTransformer

    found = re.fullmatch(NAME, name or "")
    if not found or timm.is_model(name):
        return
    width, depth, heads, mlp, patch, size = map(int, found.groups()[:6])

    def build(pretrained: bool = False, num_classes: int = 0, global_pool: str = "map", **_: Any) -> nn.Module:
        ratio = mlp / width if mlp % width == 0 else (mlp + 0.5) / width
        return VisionTransformer(
            img_size=size, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads, mlp_ratio=ratio,
            class_token=False, num_classes=num_classes, global_pool=global_pool,  # pyright: ignore[reportArgumentType]
            act_layer=partial(nn.GELU, approximate=found[7]),  # pyright: ignore[reportArgumentType]
        )  # fmt: skip

    build.__name__ = name
    timm.models.register_model(build)


def stock(name: str) -> str:
    """timm's own name for the tower, which stock open_clip knows. Raises UserError if timm has no such size."""
    import timm

    sizes = re.fullmatch(NAME, name)
    if not sizes:
        return name
    known = {(768, 12, 12, 3072): "base", (1024, 24, 16, 4096): "large", (1152, 27, 16, 4304): "so400m"}
    w, d, h, m, p, i = map(int, sizes.groups()[:6])
    stock = f"vit_{known.get((w, d, h, m))}_patch{p}_siglip_{i}"
    if not timm.is_model(stock):
        raise UserError("stock open_clip has no SigLIP tower of these sizes; keep transformers' layout")
    return stock

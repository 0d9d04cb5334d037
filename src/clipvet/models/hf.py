"""transformers' folders of a CLIPModel or SiglipModel: config.json is translated into open_clip's config, and back.

Code that a checkpoint brings (`auto_map`) is never run.
"""

import logging
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, Field, ValidationError
from torch import nn

from clipvet import io
from clipvet.errors import UserError
from clipvet.models import deployed, siglip, tokenizers

KEPT = ("config.json", "preprocessor_config.json", "processor_config.json", *tokenizers.FILES)  # read and kept
MAX_FILE = 64 * 2**20  # bytes of a tokenizer or config file
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # PIL's numbers


class Folder(NamedTuple):
    """What a folder of transformers' holds."""

    kind: str  # clip or siglip
    config: dict[str, Any]  # what open_clip_config.json would hold
    weights: tuple[Path, ...]
    files: dict[str, bytes]  # configs and tokenizer, written back unchanged when the model is saved


class Tower(BaseModel):
    """One tower in transformers' config.json. The bounds are far above any model, and low enough for the memory."""

    hidden_size: int = Field(gt=0, le=2**14)
    intermediate_size: int = Field(gt=0, le=2**17)
    num_hidden_layers: int = Field(gt=0, le=256)
    num_attention_heads: int = Field(gt=0, le=2**10)
    hidden_act: str
    layer_norm_eps: float = Field(gt=0, lt=1)
    image_size: int = Field(default=1, gt=0, le=2**12)
    patch_size: int = Field(default=1, gt=0, le=2**10)
    num_channels: int = 3
    vocab_size: int = Field(default=1, gt=0, le=2**21)
    max_position_embeddings: int = Field(default=1, gt=0, le=2**14)
    eos_token_id: int | list[int] | None = None
    projection_size: int | None = None
    vision_use_head: bool = True


def _defaults(width: int, heads: int, act: str, eps: float, **own: int) -> dict[str, Any]:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 12}
    return {**sizes, "num_attention_heads": heads, "hidden_act": act, "layer_norm_eps": eps, **own}


DEFAULTS = {  # values that transformers leaves out of config.json
    "clip": {
        "vision": _defaults(768, 12, "quick_gelu", 1e-5, image_size=224, patch_size=32),
        "text": _defaults(512, 8, "quick_gelu", 1e-5, vocab_size=49408, max_position_embeddings=77, eos_token_id=49407),
    },
    "siglip": {
        "vision": _defaults(768, 12, "gelu_pytorch_tanh", 1e-6, image_size=224, patch_size=16),
        "text": _defaults(768, 12, "gelu_pytorch_tanh", 1e-6, vocab_size=32000, max_position_embeddings=64),
    },
}
ACTS = {"gelu_pytorch_tanh": {"approximate": "tanh"}, "gelu_new": {"approximate": "tanh"}}


def read(folder: Path) -> Folder:
    """Reads a folder's configs. Raises UserError if they describe no CLIPModel or SiglipModel of a known shape."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no config.json; give a transformers folder of a CLIPModel or SiglipModel")
    told = io.read_json(folder / "config.json")
    kind = told.get("model_type") if isinstance(told, dict) else None
    if kind not in list(DEFAULTS):
        raise UserError(
            f"{folder} holds a model of type {kind!r:.40}, not a CLIPModel or SiglipModel; give one of these"
        )
    try:
        vision, text = (Tower.model_validate(DEFAULTS[kind][part] | _half(told, part)) for part in ("vision", "text"))
    except ValidationError as e:
        at, why = e.errors()[0]["loc"], e.errors()[0]["msg"]
        raise UserError(f"{folder / 'config.json'}: {'.'.join(map(str, at))}: {why}; restore the file") from e
    embed = told.get("projection_dim", 512) if kind == "clip" else vision.hidden_size
    files = _files(folder)
    _check_shape(folder, kind, embed, vision, text)
    pre = _preprocess(folder, kind, vision.image_size)
    if (size := pre["size"]) != vision.image_size:
        raise UserError(f"{folder} prepares pictures of {size} px for a tower of {vision.image_size} px; mend a config")
    config = {"model_cfg": _model_cfg(kind, embed, vision, text), "preprocess_cfg": pre}
    weights = deployed.transformers_weights(folder)
    _warn_of_older(folder, kind, pre)
    return Folder(kind, config, weights, files)


def _warn_of_older(folder: Path, kind: str, pre: dict[str, Any]) -> None:
    """Warns where transformers 4 deploys another model than transformers 5, whose reading counts. pre: its reading."""
    told = [f"the weights in {first}"] if (first := deployed.older_weights(folder)) else []
    if (folder / "preprocessor_config.json").is_file():
        try:
            same = _preprocess(folder, kind, pre["size"], older=True) == pre
        except UserError:
            same = False
        told += [] if same else ["preprocessor_config.json, which prepares pictures in another way"]
    if told:
        logging.getLogger(__name__).warning(
            "%s is judged as transformers 5 reads it; transformers 4 would take %s", folder, " and ".join(told)
        )


def _files(folder: Path) -> dict[str, bytes]:
    files = {}
    for path in (folder / name for name in KEPT):
        if path.is_file():
            if path.stat().st_size > MAX_FILE:
                raise UserError(f"{path} is larger than {MAX_FILE // 2**20} MiB; restore the file")
            files[path.name] = path.read_bytes()
    return files


def _half(told: dict[str, Any], part: str) -> dict[str, Any]:
    old, new = told.get(f"{part}_config_dict"), told.get(f"{part}_config")  # transformers prefers the old one
    given = new if old is None else old
    return given if isinstance(given, dict) else {}


def _check_shape(folder: Path, kind: str, embed: Any, vision: Tower, text: Tower) -> None:
    """Raises UserError unless open_clip's towers compute what transformers' do."""

    def no(what: str) -> UserError:
        return UserError(f"{folder}: {what}; only models of CLIP's and SigLIP's published shape are read")

    for tower in (vision, text):
        if tower.hidden_size % tower.num_attention_heads:
            raise no(f"{tower.num_attention_heads} heads do not divide a width of {tower.hidden_size}")
        if tower.hidden_act not in ("quick_gelu", "gelu", *ACTS):
            raise no(f"hidden_act {tower.hidden_act!r:.40} is unknown")
    if vision.hidden_act != text.hidden_act or vision.num_channels != 3 or vision.image_size % vision.patch_size:
        raise no("the towers' activations differ, or the pictures do not fit")
    if not isinstance(embed, int) or not 0 < embed <= 2**14:
        raise no(f"projection_dim {embed!r:.40} is no size")
    ends = text.eos_token_id
    if kind == "clip" and ends not in (2, text.vocab_size - 1):  # open_clip reads the text at its largest token
        raise no(f"eos_token_id {ends!r:.40} is not the vocabulary's last")
    if kind == "clip":
        return
    if not vision.vision_use_head or vision.layer_norm_eps != 1e-6 or vision.hidden_act == "quick_gelu":
        raise no("its vision tower has no head, another epsilon than 1e-6, or QuickGELU")
    if (text.projection_size or text.hidden_size) != vision.hidden_size:
        raise no("the two towers end in different sizes")


def _model_cfg(kind: str, embed: int, vision: Tower, text: Tower) -> dict[str, Any]:
    """open_clip's model_cfg."""
    words = {
        "context_length": text.max_position_embeddings, "vocab_size": text.vocab_size, "width": text.hidden_size,
        "heads": text.num_attention_heads, "layers": text.num_hidden_layers, "mlp_ratio": _ratio(text),
    }  # fmt: skip
    if kind == "clip":
        seen = {
            "image_size": vision.image_size, "patch_size": vision.patch_size, "width": vision.hidden_size,
            "layers": vision.num_hidden_layers, "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": _ratio(vision),
        }  # fmt: skip
        quick = {"quick_gelu": True} if vision.hidden_act == "quick_gelu" else {}
        return {"embed_dim": embed, **quick, "vision_cfg": seen | _details(vision), "text_cfg": words | _details(text)}
    seen = {
        "image_size": vision.image_size, "timm_model_name": siglip.name_of(vision, vision.hidden_act in ACTS),
        "timm_model_pretrained": False, "timm_pool": "map", "timm_proj": "none",
    }  # fmt: skip
    own = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    model = {"embed_dim": embed, "init_logit_bias": -10, "custom_text": True}
    return {**model, "vision_cfg": seen, "text_cfg": words | own | _details(text)}


def _details(tower: Tower) -> dict[str, Any]:
    """What differs from open_clip's defaults: the epsilon of LayerNorm, the approximation of GELU."""
    norm = {"norm_kwargs": {"eps": tower.layer_norm_eps}} if tower.layer_norm_eps != 1e-5 else {}
    return norm | ({"act_kwargs": ACTS[tower.hidden_act]} if tower.hidden_act in ACTS else {})


def _ratio(tower: Tower) -> float:
    """The MLP's width as a multiple of the tower's, never too small: open_clip cuts their product to an integer."""
    exact = tower.intermediate_size / tower.hidden_size
    return exact if exact == int(exact) else (tower.intermediate_size + 0.5) / tower.hidden_size


def _preprocess(folder: Path, kind: str, usual: int, older: bool = False) -> dict[str, Any]:
    """open_clip's preprocess_cfg, from the file of transformers' picture processor, or its defaults if there is none.

    usual: the tower's size in pixels. older: as transformers 4 reads it. Raises UserError if open_clip has no words for
    how pictures are prepared.
    """
    path, told, kind = deployed.image_processor(folder, kind, older)
    try:
        size, mode = _size(told, kind, usual)
        mean, std = _mean_std(told, kind)
        whole = not told.get("do_rescale", True) or abs(told.get("rescale_factor", 1 / 255) * 255 - 1) < 1e-6
        numbers = [float(x) for x in (*mean, *std)]
        interpolation = RESAMPLE[told.get("resample", 3)]
        if not whole or not told.get("do_resize", True) or len(numbers) != 6 or min(numbers[3:]) <= 0:
            raise ValueError("an unusual size or range")
        shape = {"size": size, "mode": "RGB", "interpolation": interpolation, "resize_mode": mode, "fill_color": 0}
        return {**shape, "mean": numbers[:3], "std": numbers[3:]}
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as e:
        raise UserError(
            f"{folder}: how its pictures are prepared cannot be read ({type(e).__name__}: {e}); mend its {path.name}: "
            "one square size, bilinear or bicubic, mean and std"
        ) from e


def _size(told: Any, kind: str, usual: int) -> tuple[int, str]:
    """The side of the square in pixels, and open_clip's resize_mode."""
    square = told.get("crop_size", usual) if told.get("do_center_crop", kind == "clip") else None
    size = told.get("size", {"shortest_edge": usual} if kind == "clip" else {"height": usual, "width": usual})
    if isinstance(size, int):
        size = {"shortest_edge": size}
    square = {"height": square, "width": square} if isinstance(square, int) else square
    if {*size, *(square or {})} - {"shortest_edge", "height", "width"} or len(size) > 2:
        raise ValueError("an unusual size or range")
    if "shortest_edge" in size and square:
        mode, edges = "shortest", {size["shortest_edge"], square["height"], square["width"]}
    else:
        mode, edges = "squash", {size["height"], size["width"], *(square or {}).values()}
    if len(edges) != 1:
        raise ValueError("an unusual size or range")
    return int(edges.pop()), mode


def _mean_std(told: Any, kind: str) -> tuple[Any, Any]:
    """mean and std of normalisation, for pixels in [0, 1]."""
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    half = (0.5, 0.5, 0.5)
    mean = told.get("image_mean", OPENAI_DATASET_MEAN if kind == "clip" else half)
    std = told.get("image_std", OPENAI_DATASET_STD if kind == "clip" else half)
    if not told.get("do_normalize", True):
        mean, std = (0, 0, 0), (1, 1, 1)
    if not told.get("do_rescale", True):  # then they are for pixels in 0 .. 255
        mean, std = [x / 255 for x in mean], [x / 255 for x in std]
    return mean, std


def kind_of(net: Any) -> str:
    """The model that transformers has for these towers of open_clip's: clip, siglip, or empty if none."""
    from open_clip import CLIP, CustomTextCLIP
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    if type(net) is CLIP and isinstance(net.visual, VisionTransformer):
        return "clip" if plain_vision(net.visual) and plain_text(net) else ""
    if type(net) is CustomTextCLIP and isinstance(net.visual, TimmModel) and hasattr(net.visual.trunk, "attn_pool"):
        return "siglip" if getattr(net.text, "pool_type", "") == "last" and net.text.attn_mask is None else ""
    return ""


def describe(clip: Any) -> tuple[str, dict[str, Any]]:
    """The kind of an `OpenClip` (clip or siglip) and its config.json. UserError if transformers has no such model."""
    net, kind = clip.model, kind_of(clip.model)
    if kind == "clip":
        text, vision, blocks = net, net.visual, net.visual.transformer.resblocks
        patch, fc, act, eps = vision.conv1, blocks[0].mlp.c_fc, blocks[0].mlp.gelu, blocks[0].ln_1.eps
    elif kind == "siglip":
        text, vision, blocks = net.text, net.visual.trunk, net.visual.trunk.blocks
        patch, fc, act, eps = vision.patch_embed.proj, blocks[0].mlp.fc1, blocks[0].mlp.act, blocks[0].norm1.eps
    else:
        raise UserError("transformers has no layout for these towers (a ResNet, or not CLIP's); keep open_clip's")
    words: Any = text.transformer.resblocks
    if (acts := {_act(act), _act(words[0].mlp.gelu)}) - {_act(act)}:
        raise UserError(f"the towers' activations differ ({', '.join(sorted(acts))}); keep open_clip's layout")
    told = {
        "model_type": kind,
        "architectures": ["CLIPModel" if kind == "clip" else "SiglipModel"],
        "dtype": "float32",
        "vision_config": {
            "model_type": f"{kind}_vision_model", "hidden_size": fc.in_features, "intermediate_size": fc.out_features,
            "num_hidden_layers": len(blocks), "num_attention_heads": blocks[0].attn.num_heads,
            "image_size": clip.geometry.size, "patch_size": patch.kernel_size[0],
            "hidden_act": _act(act), "layer_norm_eps": eps,
        },
        "text_config": {
            "model_type": f"{kind}_text_model", "hidden_size": words[0].mlp.c_fc.in_features,
            "intermediate_size": words[0].mlp.c_fc.out_features, "num_hidden_layers": len(words),
            "num_attention_heads": words[0].attn.num_heads, "hidden_act": _act(words[0].mlp.gelu),
            "vocab_size": text.token_embedding.num_embeddings,
            "max_position_embeddings": len(text.positional_embedding), "layer_norm_eps": words[0].ln_1.eps,
        },
    }  # fmt: skip
    if kind == "clip":
        told["projection_dim"] = embed = vision.proj.shape[1]
        for part in ("vision_config", "text_config"):
            told[part]["projection_dim"] = embed
        told["text_config"] |= {"bos_token_id": told["text_config"]["vocab_size"] - 2}
        told["text_config"] |= {"eos_token_id": told["text_config"]["vocab_size"] - 1}
    return kind, told


def _act(module: Any) -> str:
    """transformers' name of an activation."""
    if isinstance(module, nn.GELU):
        return "gelu_pytorch_tanh" if module.approximate == "tanh" else "gelu"
    return "quick_gelu" if type(module).__name__ == "QuickGELU" else type(module).__name__


def processor(clip: Any, kind: str) -> dict[str, Any]:
    """The preprocessor_config.json of an `OpenClip`. kind: clip or siglip."""
    pre, n = clip.config["preprocess_cfg"], clip.geometry.size
    square, shortest = {"height": n, "width": n}, clip.geometry.mode == "shortest"
    return {
        "image_processor_type": "CLIPImageProcessor" if kind == "clip" else "SiglipImageProcessor",
        "do_resize": True, "size": {"shortest_edge": n} if shortest else square,
        "resample": {v: k for k, v in RESAMPLE.items()}[clip.geometry.interpolation],
        "do_center_crop": shortest, **({"crop_size": square} if shortest else {}),
        "do_rescale": True, "rescale_factor": 1 / 255, "do_convert_rgb": True,
        "do_normalize": True, "image_mean": list(map(float, pre["mean"])), "image_std": list(map(float, pre["std"])),
    }  # fmt: skip


def plain_vision(v: Any) -> bool:
    """Whether open_clip's vision transformer has CLIP's own shape: reads its class token, then norm and projection."""
    return v.pool_type == "tok" and v.attn_pool is None and not v.final_ln_after_pool and v.proj is not None


def plain_text(net: Any) -> bool:
    """Whether open_clip's text tower has CLIP's own shape: causal, reads its largest token, then a projection."""
    pool = getattr(net, "text_pool_type", "argmax")
    return pool == "argmax" and net.attn_mask is not None and isinstance(net.text_projection, nn.Parameter)

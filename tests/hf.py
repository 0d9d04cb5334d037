"""Checkpoints in transformers' layout, made without transformers: random weights under the names that it saves."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipvet import io
from clipvet.rng import Rng

SIZES = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 2}


def config(kind: str, act: str, **vision: Any) -> dict[str, Any]:
    """config.json; widths of 64, mlp ratio 2.5, pictures of 32 px."""
    text = {**SIZES, "hidden_act": act, "max_position_embeddings": 16, "vocab_size": 49408 if kind == "clip" else 100}
    seen = {**SIZES, "hidden_act": act, "image_size": 32, "patch_size": 8, **vision}
    return {"model_type": kind, "projection_dim": 48, "vision_config": seen, "text_config": text}


def state(told: dict[str, Any], rng: Rng = Rng(0)) -> dict[str, Tensor]:  # noqa: B008
    """Named as transformers 5.23 (and 4) names them."""
    g, kind, out = rng.generator(), told["model_type"], {}
    vision, text = told["vision_config"], told["text_config"]

    def put(name: str, *shape: int) -> None:
        out[name] = 0.1 * torch.randn(*shape, generator=g) + float("norm" in name or "lnrm" in name)

    def pair(name: str, *shape: int) -> None:
        put(f"{name}.weight", *shape)
        put(f"{name}.bias", shape[0])

    for part, tower in (("vision_model", vision), ("text_model", text)):
        w, m = tower["hidden_size"], tower["intermediate_size"]
        for k in range(tower["num_hidden_layers"]):
            at = f"{part}.encoder.layers.{k}"
            for x in ("q_proj", "k_proj", "v_proj", "out_proj"):
                pair(f"{at}.self_attn.{x}", w, w)
            pair(f"{at}.mlp.fc1", m, w)
            pair(f"{at}.mlp.fc2", w, m)
            for n in (1, 2):
                pair(f"{at}.layer_norm{n}", w)
    w, patch = vision["hidden_size"], vision["patch_size"]
    patches = (vision["image_size"] // patch) ** 2
    put("text_model.embeddings.token_embedding.weight", text["vocab_size"], text["hidden_size"])
    put("text_model.embeddings.position_embedding.weight", text["max_position_embeddings"], text["hidden_size"])
    pair("text_model.final_layer_norm", text["hidden_size"])
    pair("vision_model.post_layernorm", w)
    put("vision_model.embeddings.patch_embedding.weight", w, 3, patch, patch)
    out["logit_scale"] = torch.tensor(3.0)
    if kind == "clip":
        put("vision_model.embeddings.class_embedding", w)
        put("vision_model.embeddings.position_embedding.weight", patches + 1, w)
        pair("vision_model.pre_layrnorm", w)
        put("visual_projection.weight", told["projection_dim"], w)
        put("text_projection.weight", told["projection_dim"], text["hidden_size"])
        return out
    out |= {"logit_scale": torch.tensor([3.0]), "logit_bias": torch.tensor([-9.0])}
    put("vision_model.embeddings.patch_embedding.bias", w)
    put("vision_model.embeddings.position_embedding.weight", patches, w)
    pair("text_model.head", w, text["hidden_size"])
    put("vision_model.head.probe", 1, 1, w)
    put("vision_model.head.attention.in_proj_weight", 3 * w, w)
    put("vision_model.head.attention.in_proj_bias", 3 * w)
    pair("vision_model.head.attention.out_proj", w, w)
    pair("vision_model.head.layernorm", w)
    pair("vision_model.head.mlp.fc1", vision["intermediate_size"], w)
    pair("vision_model.head.mlp.fc2", w, vision["intermediate_size"])
    return out


def write(folder: Path, kind: str = "clip", act: str = "quick_gelu", **vision: Any) -> dict[str, Tensor]:
    """A folder with config.json and model.safetensors; returns the weights."""
    return keep(folder, config(kind, act, **vision))


def keep(folder: Path, told: dict[str, Any]) -> dict[str, Tensor]:
    """A folder with this config.json and weights that fit it; returns the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    held = state(told)
    (folder / "config.json").write_text(json.dumps(told))
    io.save_weights(held, folder / "model.safetensors")
    return held

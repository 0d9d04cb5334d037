"""Checkpoint layouts beside open_clip's: transformers' CLIPModel and SiglipModel folders, OpenAI's state dict.

A layout is a renaming onto open_clip's towers (`renaming`), so every verb works on every layout, and `models.save`
writes the layout that was read:

    transformers    config.json, model.safetensors, preprocessor_config.json, tokenizer files (`hf`)
    openai          model.pt: the state dict that OpenAI's own code reads (QuickGELU, heads of width 64)
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipvet import io
from clipvet.errors import UserError
from clipvet.models import hf, siglip, tokenizers
from clipvet.models.renaming import NAMES, to_ours, to_theirs

LAYOUTS = ("open_clip", "transformers", "openai")
OPENAI = "model.pt"
NUMBERS = ("input_resolution", "context_length", "vocab_size")  # OpenAI's state dicts carry them


class Stored(NamedTuple):
    """A checkpoint on the disk."""

    layout: str
    path: Path
    config: dict[str, Any]  # as in open_clip_config.json
    weights: tuple[Path, ...]
    files: dict[str, bytes]  # written back as they are
    kind: str  # clip or siglip


def find(model: str) -> Stored | None:
    """The checkpoint that `model` names, if it lies on the disk in another layout than open_clip's.

    transformers:PATH means that layout where a folder holds open_clip's too. Raises UserError.
    """
    asked = model.startswith("transformers:")
    path = Path(model.removeprefix("transformers:").removeprefix("local-dir:"))
    if asked or ((path / "config.json").is_file() and not (path / "open_clip_config.json").is_file()):
        found = hf.read(path)
        return Stored("transformers", path, found.config, found.weights, found.files, found.kind)
    if (path / OPENAI).is_file() and not (path / "open_clip_config.json").is_file():
        return _openai(path / OPENAI)
    if path.suffix.lower() in (*io.PICKLES, ".safetensors") and path.is_file():
        return _openai(path)
    return None


def _openai(path: Path) -> Stored:
    state = io.load_weights(path)
    if not all(k in state for k in NUMBERS):
        raise UserError(
            f"{path} does not say what architecture it is; name it, with --pretrained {path} and e.g. --model ViT-B-32"
        )
    try:
        config = _openai_cfg(state)
    except (KeyError, ValueError, IndexError, ZeroDivisionError, TypeError) as e:
        raise UserError(f"{path} is no state dict of OpenAI's CLIP ({type(e).__name__}: {e}); give one") from e
    from open_clip.transform import PreprocessCfg

    size = config["vision_cfg"]["image_size"]
    pre = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(PreprocessCfg(size=size)).items()}
    return Stored("openai", path, {"model_cfg": config, "preprocess_cfg": pre}, (path,), {}, "clip")


def _openai_cfg(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What OpenAI's build_model reads from the shapes."""

    def count(start: str, part: int) -> int:
        return len({k.split(".")[part] for k in state if k.startswith(start)})

    width = state["ln_final.weight"].shape[0]
    sizes = {
        "context_length": len(state["positional_embedding"]), "vocab_size": len(state["token_embedding.weight"]),
        "width": width, "heads": width // 64, "layers": count("transformer.resblocks.", 2),
    }  # fmt: skip
    if "visual.proj" in state:
        patch = state["visual.conv1.weight"].shape[-1]
        grid = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
        vision = {
            "image_size": patch * grid, "layers": count("visual.transformer.resblocks.", 3), "patch_size": patch,
            "width": state["visual.conv1.weight"].shape[0],
        }  # fmt: skip
    else:
        grid = round((len(state["visual.attnpool.positional_embedding"]) - 1) ** 0.5)
        layers = [count(f"visual.layer{k}.", 2) for k in (1, 2, 3, 4)]
        inner = state["visual.layer1.0.conv1.weight"].shape[0]
        vision = {"image_size": 32 * grid, "layers": layers, "width": inner, "patch_size": None}
    if min(width // 64, vision["width"] // 2, vision["image_size"]) < 1:
        raise ValueError("sizes too small for its heads of width 64")
    return {"embed_dim": state["text_projection"].shape[1], "quick_gelu": True, "vision_cfg": vision, "text_cfg": sizes}


def state_of(stored: Stored) -> dict[str, Tensor]:
    """Its weights under open_clip's names."""
    state: dict[str, Tensor] = {}
    for path in stored.weights:
        state |= io.load_weights(path)
    if stored.layout == "openai":
        return {k: v for k, v in state.items() if k not in NUMBERS}
    depth = [_depth(state, part) for part in ("vision", "text")]
    return to_ours(state, NAMES[stored.kind](*depth))


def _depth(state: Mapping[str, Tensor], part: str) -> int:
    found = (re.match(rf"{part}_model\.encoder\.layers\.(\d+)\.", k) for k in state)
    return 1 + max((int(m[1]) for m in found if m and len(m[1]) < 4), default=0)


def too_large(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> bool:
    """Whether the config describes far more weights than there are: building it would eat the memory."""
    vision, text = config["model_cfg"]["vision_cfg"], config["model_cfg"]["text_cfg"]
    held, wanted = sum(v.numel() for v in state.values()), 0
    if not text.get("hf_model_name"):
        wide, long = text.get("width", 512), text.get("layers", 12)
        wanted = wide * (text.get("vocab_size", 49408) + 4 * long * wide + text.get("context_length", 77))
    name = vision.get("timm_model_name") or ""
    if not name and isinstance(layers := vision.get("layers", 12), int):
        size, patch = (
            max(n) if isinstance(n, list) else n for n in (vision.get("image_size", 224), vision.get("patch_size", 16))
        )
        patches = (size // patch) ** 2
        wanted += vision.get("width", 768) * (4 * layers * vision.get("width", 768) + patches)
    elif not name:
        wanted += sum(layers) * vision.get("width", 64) ** 2
    if sizes := re.fullmatch(siglip.NAME, name):
        width, depth = int(sizes[1]), int(sizes[2])
        wanted += 4 * depth * width**2
    return wanted > 2 * held


def write(clip: Any, folder: Path) -> Path:
    """The model in its layout; returns the file of weights. Raises UserError where the layout cannot hold it."""
    if clip.layout == "openai":
        _fits_openai(clip)
        net = clip.model
        numbers = (clip.geometry.size, net.positional_embedding.shape[0], net.token_embedding.num_embeddings)
        told = {k: torch.tensor(n) for k, n in zip(NUMBERS, numbers)}
        io.save_weights(dict(net.state_dict()) | told, folder / OPENAI)
        return folder / OPENAI
    kind, config = hf.describe(clip)
    depth = [config[f"{part}_config"]["num_hidden_layers"] for part in ("vision", "text")]
    io.save_weights(to_theirs(clip.model.state_dict(), NAMES[kind](*depth)), folder / "model.safetensors")
    files = dict(clip.files)
    if "config.json" in files:
        config = json.loads(files.pop("config.json"))
        for key in ("torch_dtype", "dtype"):  # what we write is float32; theirs would be rounded
            if key in config:
                config[key] = "float32"
    else:
        files |= tokenizers.files_of(clip.tokenizer) if hasattr(clip.tokenizer, "bpe_ranks") else {}
        files["preprocessor_config.json"] = json.dumps(hf.processor(clip, kind), indent=2).encode()
        if isinstance(clip.tokenizer, tokenizers.Foreign):
            files |= clip.tokenizer.files
        elif hasattr(clip.tokenizer, "save_pretrained"):  # open_clip's HFTokenizer
            clip.tokenizer.save_pretrained(folder)
    for name, held in files.items():
        with io.replacing(folder / name) as tmp:
            tmp.write_bytes(held)
    io.write_json(folder / "config.json", config)
    return folder / "model.safetensors"


def _fits_openai(clip: Any) -> None:
    """UserError where OpenAI's code would prepare the pictures or act otherwise. `models.convert` checks the rest."""
    from open_clip import CLIP
    from open_clip.transform import PreprocessCfg

    pre, usual = clip.config["preprocess_cfg"], vars(PreprocessCfg(size=clip.geometry.size))
    colours = all(list(map(float, pre[k])) == list(usual[k]) for k in ("mean", "std"))
    if not isinstance(clip.model, CLIP) or not clip.config["model_cfg"].get("quick_gelu"):
        raise UserError("OpenAI's layout is for CLIP with QuickGELU, which this model is not; use another layout")
    if not colours or any(pre[k] != usual[k] for k in ("resize_mode", "interpolation")):
        raise UserError("OpenAI's code prepares pictures otherwise than this model wants; use another layout")


def to_open_clip(clip: Any, folder: Path) -> dict[str, Any]:
    """The config with which stock open_clip builds this model; a foreign tokenizer's files are put into the folder."""
    config = json.loads(json.dumps(clip.config))
    vision, text = config["model_cfg"]["vision_cfg"], config["model_cfg"]["text_cfg"]
    if "timm_model_name" in vision:
        vision["timm_model_name"] = siglip.stock(vision["timm_model_name"])
    if isinstance(clip.tokenizer, tokenizers.Foreign):
        text |= {"hf_tokenizer_name": ".", "tokenizer_kwargs": {"clean": "canonicalize"}}
        for name, held in clip.tokenizer.files.items():
            with io.replacing(folder / name) as tmp:
                tmp.write_bytes(held)
    return config

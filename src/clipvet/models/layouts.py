"""Checkpoint layouts beside open_clip's: transformers' folders and OpenAI's state dicts.

    transformers    config.json, model.safetensors, preprocessor_config.json, tokenizer files (`hf.py`)
    openai          model.pt: the state dict that OpenAI's own code reads

Inside clipvet every model has open_clip's towers. A layout only names the same weights in another way, so all commands
work on all layouts, and `checkpoints.save` writes the layout that was read. `FOREIGN` is the table of layouts. To add a
layout, add a row there and its functions here; the names of its weights belong into `renaming.py`.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipvet import io
from clipvet.errors import UserError
from clipvet.models import deployed, hf, siglip, tokenizers, wrappers
from clipvet.models.renaming import NAMES, to_ours, to_theirs

OPENAI = "model.pt"
NUMBERS = ("input_resolution", "context_length", "vocab_size")  # of OpenAI's state dicts, beside the weights


class Stored(NamedTuple):
    """A checkpoint on disk, before its weights are loaded."""

    layout: str
    path: Path
    config: dict[str, Any]  # what open_clip_config.json would hold
    weights: tuple[Path, ...]
    files: dict[str, bytes]  # written back unchanged when the model is saved
    kind: str  # clip or siglip

    @property
    def source(self) -> str:
        """The name by which this checkpoint can be loaded again, from any folder."""
        return ("transformers:" if self.layout == "transformers" else "") + str(self.path.resolve())


class Layout(NamedTuple):
    """How one layout is recognised, read and written."""

    fits: Callable[[Path], bool]  # whether this path looks like the layout
    read: Callable[[Path], Stored]  # raises UserError
    weights: Callable[[Stored], dict[str, Tensor]]  # under open_clip's names
    write: Callable[[Any, Path], Path]  # an OpenClip into a folder; returns the file of weights. Raises UserError
    configs: tuple[str, ...] = ()  # the files beside the weights; a card keeps their hash


def find(model: str) -> Stored | None:
    """The checkpoint that `model` names, if it lies on disk in another layout than open_clip's; else None.

    `transformers:PATH` asks for that layout, if a folder holds open_clip's too. Raises UserError if the checkpoint
    cannot be read.
    """
    path = Path(model.removeprefix("transformers:").removeprefix("local-dir:"))
    if model.startswith("transformers:"):
        return _transformers(path)
    return next((layout.read(path) for layout in FOREIGN.values() if layout.fits(path)), None)


def state_of(stored: Stored) -> dict[str, Tensor]:
    """The checkpoint's weights under open_clip's names."""
    return FOREIGN[stored.layout].weights(stored)


def write(clip: Any, folder: Path) -> Path:
    """Write an `OpenClip` in its layout. Returns the file of weights; raises UserError if the layout cannot hold it."""
    return FOREIGN[clip.layout].write(clip, folder)


def _only(path: Path, name: str) -> bool:
    """Whether the folder has this file, and no model of open_clip's."""
    return (path / name).is_file() and not (path / "open_clip_config.json").is_file()


def _loaded(stored: Stored) -> dict[str, Tensor]:
    """The weights of all its files, under their own names. Raises UserError if two files hold the same name."""
    out: dict[str, Tensor] = {}
    for path in stored.weights:
        state = wrappers.state_in(path, bare=stored.layout == "transformers")
        if twice := sorted(out.keys() & state.keys()):
            raise UserError(f"{path} holds {twice[0][:80]}, which another part of the weights holds too; remove one")
        out |= state
    return out


# transformers


def _transformers(path: Path) -> Stored:
    found = hf.read(path)
    return Stored("transformers", path, found.config, found.weights, found.files, found.kind)


def _transformers_weights(stored: Stored) -> dict[str, Tensor]:
    state = _loaded(stored)
    first = state if len(stored.weights) == 1 else wrappers.state_in(stored.weights[0], bare=True)
    state = _as_deployed(stored, state, first)
    names = list(NAMES[stored.kind](*(_depth(state, part) for part in ("vision", "text"))))
    _check_names(stored, state, dict.fromkeys(k for name in names for k in name.theirs))
    return to_ours(state, names)


def _check_names(stored: Stored, state: dict[str, Tensor], known: Mapping[str, Any]) -> None:
    """Raises UserError for weights that transformers passes over. Under open_clip's names they would be a decoy."""
    odd = [k for k in state if k not in known and not k.endswith("embeddings.position_ids")]  # a buffer in older files
    if odd:
        more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        ours = any(re.match(r"visual\.|positional_embedding$|token_embedding\.|ln_final\.", k) for k in odd)
        way = (
            "these are open_clip's names, which transformers passes over: give one model in one layout" if ours else ""
        )
        raise UserError(
            f"{stored.weights[0]} does not fit {stored.path} (unexpected: {', '.join(k[:80] for k in odd[:3])}{more}); "
            f"{way or wrappers.way_out(stored.weights[0], state, known)}"
        )


def _as_deployed(stored: Stored, state: dict[str, Tensor], first: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights as transformers has them after loading: rounded to one dtype, then kept as they were.

    first: the weights of the first file. Raises UserError for a dtype that no model is loaded in, and for position_ids
    that do not count up, which older versions of transformers would use.
    """
    for name, v in state.items():
        if name.endswith("embeddings.position_ids") and not torch.equal(v.flatten().long(), torch.arange(v.numel())):
            raise UserError(f"{stored.path} holds {name} in another order than 0, 1, 2 ...; remove them")
    half = deployed.dtype_of(stored.path, first)
    if half in (torch.float32, torch.float64):
        return state
    return {k: v.to(half).to(v.dtype) if v.is_floating_point() else v for k, v in state.items()}


def _depth(state: Mapping[str, Tensor], part: str) -> int:
    """The number of blocks in one tower."""
    found = (re.match(rf"{part}_model\.encoder\.layers\.(\d+)\.", k) for k in state)
    return 1 + max((int(m[1]) for m in found if m and len(m[1]) < 4), default=0)


def _write_transformers(clip: Any, folder: Path) -> Path:
    kind, config = hf.describe(clip)
    depth = [config[f"{part}_config"]["num_hidden_layers"] for part in ("vision", "text")]
    io.save_weights(to_theirs(clip.model.state_dict(), NAMES[kind](*depth)), folder / "model.safetensors")
    files = dict(clip.files)
    if "config.json" in files:
        config = json.loads(files.pop("config.json"))
        config.pop("transformers_weights", None)  # clipvet writes model.safetensors
        for key in ("torch_dtype", "dtype"):  # clipvet writes float32; transformers would round to the old type
            if key in config:
                config[key] = "float32"
    else:
        files |= tokenizers.files_of(clip.tokenizer) if hasattr(clip.tokenizer, "bpe_ranks") else {}
        files["preprocessor_config.json"] = json.dumps(hf.processor(clip, kind), indent=2).encode()
        if isinstance(clip.tokenizer, tokenizers.Foreign):
            files |= clip.tokenizer.files
        elif hasattr(clip.tokenizer, "save_pretrained"):  # open_clip's HFTokenizer
            clip.tokenizer.save_pretrained(folder)
            if kind == "siglip":  # was trained without masking the padding, as open_clip does not
                told = io.read_json(folder / "tokenizer_config.json")
                io.write_json(folder / "tokenizer_config.json", told | {"model_input_names": ["input_ids"]})
    _put(files, folder)
    io.write_json(folder / "config.json", config)
    return folder / "model.safetensors"


def _put(files: Mapping[str, bytes], folder: Path) -> None:
    for name, held in files.items():
        with io.replacing(folder / name) as tmp:
            tmp.write_bytes(held)


# OpenAI


def _fits_openai(path: Path) -> bool:
    return _only(path, OPENAI) or (path.suffix.lower() in (*io.PICKLES, ".safetensors") and path.is_file())


def _openai(path: Path) -> Stored:
    from open_clip.transform import PreprocessCfg

    path = path / OPENAI if path.is_dir() else path
    state = wrappers.state_in(path)
    if not all(k in state for k in NUMBERS):
        raise UserError(
            f"{path} does not say which architecture it is; name it: --pretrained {path} with --model, e.g. ViT-B-32 "
            "(ViT-B-32-quickgelu for weights made from OpenAI's)"
        )
    try:
        config = _openai_cfg(state)
    except (KeyError, ValueError, IndexError, ZeroDivisionError, TypeError) as e:
        raise UserError(f"{path} is no state dict of OpenAI's CLIP ({type(e).__name__}: {e}); give one") from e
    size = config["vision_cfg"]["image_size"]
    pre = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(PreprocessCfg(size=size)).items()}
    return Stored("openai", path, {"model_cfg": config, "preprocess_cfg": pre}, (path,), {}, "clip")


def _openai_cfg(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """open_clip's model_cfg, from the shapes of the weights, as OpenAI's build_model finds it."""

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


def _openai_weights(stored: Stored) -> dict[str, Tensor]:
    return {k: v for k, v in _loaded(stored).items() if k not in NUMBERS}


def _write_openai(clip: Any, folder: Path) -> Path:
    _check_openai(clip)
    net = clip.model
    numbers = (clip.geometry.size, net.positional_embedding.shape[0], net.token_embedding.num_embeddings)
    added = {k: torch.tensor(n) for k, n in zip(NUMBERS, numbers)}
    io.save_weights(dict(net.state_dict()) | added, folder / OPENAI)
    return folder / OPENAI


def _check_openai(clip: Any) -> None:
    """Raises UserError if OpenAI's code would prepare pictures or compute in another way, as far as a config tells.

    `checkpoints.convert` compares features, and so finds the rest.
    """
    from open_clip import CLIP
    from open_clip.transform import PreprocessCfg

    pre, usual = clip.config["preprocess_cfg"], vars(PreprocessCfg(size=clip.geometry.size))
    colours = all(list(map(float, pre[k])) == list(usual[k]) for k in ("mean", "std"))
    if not isinstance(clip.model, CLIP) or not clip.config["model_cfg"].get("quick_gelu"):
        raise UserError("OpenAI's layout is for CLIP with QuickGELU, which this model is not; use another layout")
    if not colours or any(pre[k] != usual[k] for k in ("resize_mode", "interpolation")):
        raise UserError("OpenAI's code prepares pictures in another way than this model; use another layout")


def to_open_clip(clip: Any, folder: Path) -> dict[str, Any]:
    """The open_clip_config.json with which stock open_clip builds this model.

    Files of a tokenizer that is not open_clip's are written into the folder. Raises UserError if stock open_clip has no
    such tower.
    """
    config = json.loads(json.dumps(clip.config))
    vision, text = config["model_cfg"]["vision_cfg"], config["model_cfg"]["text_cfg"]
    if "timm_model_name" in vision:
        vision["timm_model_name"] = siglip.stock(vision["timm_model_name"])
    if isinstance(clip.tokenizer, tokenizers.Foreign):
        text |= {"hf_tokenizer_name": ".", "tokenizer_kwargs": {"clean": "canonicalize"}}
        _put(clip.tokenizer.files, folder)
    return config


# the table


FOREIGN = {
    "transformers": Layout(
        lambda path: _only(path, "config.json"), _transformers, _transformers_weights, _write_transformers, hf.KEPT
    ),
    "openai": Layout(_fits_openai, _openai, _openai_weights, _write_openai),
}
LAYOUTS = ("open_clip", *FOREIGN)
CONFIGS = tuple(dict.fromkeys(("open_clip_config.json", *(name for row in FOREIGN.values() for name in row.configs))))

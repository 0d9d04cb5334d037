"""Checkpoint layouts: how far a layout's own library is from clipvet, on models with random weights that clipvet wrote.

command:  python benchmarks/layouts.py --out results/benchmark_layouts.json     (needs clipvet[hf])
expected: at most 1e-4 in every row but `tanh`. That row shows what open_clip's exact GELU costs Google's SigLIP models
hardware: any CPU with 8 GB; minutes
"""

import argparse
import gc
import tempfile
import time
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import build_model_from_openai_state_dict
from torch import Tensor

from clipvet import io, results
from clipvet.models import adapter, building, checkpoints, layouts, tokenizers
from clipvet.rng import Rng

ARCHITECTURES = ("shapes-vit", "ViT-B-32", "ViT-B-32-quickgelu", "RN50", "RN50-quickgelu", "ViT-B-16-SigLIP")
PICTURES = 4


def built(name: str) -> Any:
    """A model with random weights, none of them zero or one."""
    checkpoints._named("ViT-B-32")  # registers the built-in architectures
    config: Any = open_clip.get_model_config(name)
    siglip = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"} if "SigLIP" in name else {}
    clip: Any = building.configured({"model_cfg": config, "preprocess_cfg": siglip}, "cpu", Rng(0), {}, name)
    clip.config["preprocess_cfg"] = dict(clip.model.visual.preprocess_cfg)
    if siglip:
        clip._tokens = adapter.Tokens(tokenizers.Foreign(any_tokenizer(), config["text_cfg"]["context_length"]))
    g = Rng(1).generator()
    with torch.no_grad():
        for n, p in clip.named_parameters():
            p += (0.3 if p.ndim == 1 and n.endswith("weight") else 0.02) * torch.randn(p.shape, generator=g)
        for n, b in clip.named_buffers():
            if n.endswith(("running_mean", "running_var")):
                b += 0.1 * torch.rand(b.shape, generator=g)
    return clip.eval()


def any_tokenizer() -> dict[str, bytes]:
    """The files of a small tokenizer that transformers can load. It does not matter which."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers  # pyright: ignore[reportMissingImports]
    from transformers import PreTrainedTokenizerFast  # pyright: ignore[reportMissingImports]

    words = Tokenizer(models.WordLevel({"</s>": 1, "<unk>": 0, "a": 2, "cat": 3}, unk_token="<unk>"))
    bare = [normalizers.Lowercase(), normalizers.Replace(Regex(r"[^\w\s]"), "")]  # as SigLIP's does
    words.normalizer = normalizers.Sequence(bare)
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    with tempfile.TemporaryDirectory() as folder:
        whole = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="</s>", unk_token="<unk>")
        whole.save_pretrained(folder)
        return {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.name in tokenizers.FILES}


def inputs(clip: Any) -> tuple[Tensor, Tensor]:
    """Random pictures and tokens for this model."""
    g, text = Rng(2).generator(), clip.config["model_cfg"]["text_cfg"]
    tokens = torch.randint(1, text["vocab_size"] - 2, (PICTURES, text["context_length"]), generator=g)
    tokens[:, text["context_length"] // 2] = text["vocab_size"] - 1
    coarse = torch.rand(PICTURES, 3, 4, 4, generator=g)  # a ResNet gives all pictures of fine noise the same embedding
    return F.interpolate(coarse, (clip.geometry.size, clip.geometry.size)), tokens


def transformers_features(folder: Path, pixels: Tensor, tokens: Tensor) -> list[Tensor]:
    from transformers import AutoModel  # pyright: ignore[reportMissingImports]

    model = AutoModel.from_pretrained(folder).eval()
    found = model.get_image_features(pixel_values=pixels), model.get_text_features(input_ids=tokens)
    return [F.normalize(getattr(v, "pooler_output", v), dim=1) for v in found] + [model.logit_scale.exp()]


def open_clip_features(folder: Path, pixels: Tensor, tokens: Tensor) -> list[Tensor]:
    model: Any = open_clip.create_model(f"local-dir:{folder}").eval()
    return [
        model.encode_image(pixels, normalize=True),
        model.encode_text(tokens, normalize=True),
        model.logit_scale.exp(),
    ]


def openai_features(folder: Path, pixels: Tensor, tokens: Tensor) -> list[Tensor]:
    """By open_clip's port of OpenAI's build_model."""
    state = io.load_weights(folder / "model.pt")
    model = build_model_from_openai_state_dict(dict(state), cast_dtype=None).float().eval()  # pyright: ignore
    model.load_state_dict({k: v for k, v in state.items() if k not in layouts.NUMBERS})  # undo its rounding to float16
    return [
        model.encode_image(pixels, normalize=True),
        model.encode_text(tokens, normalize=True),
        model.logit_scale.exp(),
    ]


READERS = {
    "open_clip": ("open_clip", open_clip_features),
    "transformers": ("transformers", transformers_features),
    "openai": ("open_clip's port of OpenAI's build_model", openai_features),
}


@torch.no_grad()
def row(name: str, clip: Any, layout: str, note: str = "") -> dict[str, Any]:
    """Write the model in this layout, read it with the layout's own library, and compare."""
    began = time.monotonic()
    images, tokens = inputs(clip)
    pixels = (images - clip.mean) / clip.std
    told = {"model": name, "layout": layout, "note": note, "parameters": sum(p.numel() for p in clip.parameters())}
    with tempfile.TemporaryDirectory() as folder:
        try:
            checkpoints.FAR[None] = float("inf")  # any difference is reported
            back = checkpoints.convert(clip, layout, Path(folder) / "m", {})
        except checkpoints.UserError as e:
            return told | {"refused": str(e)}
        reader, features = READERS[layout]
        theirs = features(Path(folder) / "m", pixels, tokens)
    ours = [clip.encode_image(images), clip.encode_text(tokens), clip.logit_scale]
    far = [float((a - b).abs().max()) for a, b in zip(ours[:2], theirs[:2])]
    scale = float((ours[2] - theirs[2]).abs().max() / ours[2])
    spread = [float((a[0] - a[1]).abs().max()) for a in ours[:2]]  # between two inputs, to compare with
    held = {
        "spread": min(spread),
        "reader": reader,
        "image": far[0],
        "text": far[1],
        "scale": scale,
        "read_back": back.difference,
    }
    return told | held | {"seconds": round(time.monotonic() - began, 1)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=list(ARCHITECTURES))
    given = parser.parse_args()
    held = io.read_json(given.out)["rows"] if given.out.exists() else []
    rows = [r for r in held if r["model"] not in given.models]  # kept from an earlier run
    for name in given.models:
        clip = built(name)
        for layout in READERS:
            rows.append(row(name, clip, layout))
            print(rows[-1], flush=True)
        if "SigLIP" in name:
            rows.append(tanh(name, clip))
            print(rows[-1], flush=True)
        del clip
        gc.collect()
    from importlib.metadata import version

    versions = results.versions() | {"transformers": version("transformers")}
    about = {"command": results.command(), "versions": versions, "hardware": results.hardware(), "pictures": PICTURES}
    io.write_json(given.out, about | {"seeds": {"weights": [0, 1], "inputs": 2}, "rows": rows})


def tanh(name: str, clip: Any) -> dict[str, Any]:
    """The model with GELU's tanh approximation, as Google's have it, read by stock open_clip with the exact GELU."""
    from functools import partial

    from torch import nn

    for module in clip.modules():
        for key, child in list(module.named_children()):
            if isinstance(child, nn.GELU):
                setattr(module, key, partial(nn.GELU, approximate="tanh")())
    return row(name, clip, "open_clip", note="tanh: open_clip has exact GELU")


if __name__ == "__main__":
    main()

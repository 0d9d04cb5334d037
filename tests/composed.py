"""Folders as people, and attackers, put them together: which files, which of them counts, wrappers, keys, captions.

    PYTHONPATH=src:tests python tests/composed.py 5000

composes that many folders, and prints how many were read and how many refused. `test_differential.py` does so in small.
"""

import contextlib
import functools
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import hf as made
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from clipvet import io
from clipvet.data.decoding import FilePictures
from clipvet.errors import UserError
from clipvet.models import checkpoints
from clipvet.rng import Rng

N, LENGTH = 16, 8  # pixels a side, tokens
TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SHAPE = {
    "embed_dim": 12,
    "vision_cfg": {"layers": 1, "width": 16, "head_width": 8, "patch_size": 8, "image_size": N, "mlp_ratio": 2.0},
    "text_cfg": {"layers": 1, "width": 16, "heads": 2, "context_length": LENGTH, "vocab_size": 64, "mlp_ratio": 2.0},
}
WORDS = [*"abcdefghijklmnopqrstuvwxyz", *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz"), *"0123456789"]
VOCAB = {w: k for k, w in enumerate([*WORDS, "<|startoftext|>", "<|endoftext|>"])}
END = VOCAB["<|endoftext|>"]
ROLES = {"bos_token": "<|startoftext|>"} | dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")
DIFFERENCES: list[float] = []  # of features, one for each folder that was read
CAPTIONS = ["a cat", "A dog's", "“q” &amp; b", "<|endoftext|> x", "<|ENDOFTEXT|>", "", "one two three four five"]

SIDES = {"height": N, "width": N}
SIZED = {"size": {"shortest_edge": N}, "crop_size": SIDES}
PREPARED: list[dict[str, Any]] = [  # what a picture processor's file may say
    {}, {"image_mean": [0.9] * 3, "image_std": [0.2] * 3}, {"image_mean": None}, {"do_normalize": None},
    {"do_normalize": False}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5}, {"rescale_factor": None},
    {"resample": 2}, {"resample": 3}, {"resample": 0}, {"resample": None}, {"size": N}, {"size": [N, N]},
    {"size": SIDES}, {"size": {"height": N, "width": 2 * N}}, {"size": {"shortest_edge": N, "longest_edge": N + 4}},
    {"size": {"longest_edge": N}}, {"size": {"shortest_edge": N + 4}}, {"size": {"max_height": N, "max_width": N}},
    {"size": SIDES | {"shortest_edge": N}}, {"crop_size": N}, {"crop_size": {"height": N, "width": N + 1}},
    {"crop_size": None}, {"do_center_crop": False}, {"do_center_crop": None}, {"do_center_crop": False, "size": SIDES},
    {"do_resize": False}, {"do_resize": None}, {"do_convert_rgb": False}, {"do_pad": True}, {"do_flip": True},
    {"image_processor_type": "SiglipImageProcessor", "size": SIDES, "crop_size": None},
    {"image_processor_type": "SiglipImageProcessor"}, {"image_processor_type": "ViTImageProcessor"},
    {"image_processor_type": None, "feature_extractor_type": "CLIPFeatureExtractor"},
    {"image_processor_type": "CLIPImageProcessorFast"}, {"image_processor_type": None}, {"use_square_size": True},
    {"processor_class": "CLIPProcessor"}, {"processor_class": "AltCLIPProcessor"},
    {"auto_map": {"AutoImageProcessor": "e.E"}},
    {"default_to_square": True, "size": N}, {"pad_size": SIDES}, {"input_data_format": "channels_last"},
    {"device": "cpu"},
    {"image_std": [0.5, 0.6, 0.7]}, {"image_mean": 0.5}, {"data_format": "channels_last"},
]  # fmt: skip
CONFIGURED: list[dict[str, Any]] = [  # what config.json may say beside
    {}, {"dtype": "float16"}, {"torch_dtype": "bfloat16"}, {"dtype": "float32", "torch_dtype": "float16"},
    {"dtype": None},
    {"transformers_weights": "other.safetensors"}, {"transformers_weights": "model.fp16.safetensors"},
    {"transformers_weights": None}, {"transformers_weights": "pytorch_model.bin"}, {"transformers_weights": ""},
    {"transformers_weights": "own.safetensors.index.json"}, {"transformers_weights": "../out.safetensors"},
    {"vision_config_dict": TINY | {"image_size": N, "patch_size": 8, "hidden_act": "gelu"}},
    {"text_config_dict": {"hidden_act": "gelu"}}, {"vision_config_dict": {"num_attention_heads": 4}},
    {"quantization_config": {"quant_method": "awq", "bits": 4}}, {"auto_map": {"AutoModel": "e.E"}},
    {"tokenizer_class": "BertTokenizer"}, {"processor_class": "AltCLIPProcessor"}, {"projection_dim": 8},
    {"model_type": "siglip"}, {"model_type": "chinese_clip"}, {"architectures": ["CLIPTextModel"]},
    {"logit_scale_init_value": 1.0}, {"hidden_act": "gelu"}, {"layer_norm_eps": 0.1}, {"attn_implementation": "eager"},
    {"_attn_implementation": "eager"}, {"image_processor_type": "ViTImageProcessor"}, {"initializer_factor": 2.0},
    {"tie_word_embeddings": True}, {"use_bfloat16": True}, {"num_attention_heads": 4}, {"is_decoder": True},
    {"pruned_heads": {"0": [1]}}, {"_commit_hash": "x"}, {"base_model_tp_plan": {}},
    {"attribute_map": {"hidden_act": "x"}},
]  # fmt: skip
TOWERS: list[dict[str, Any]] = [
    {}, {"hidden_act": "gelu"}, {"hidden_act": "quick_gelu"}, {"hidden_act": "gelu_pytorch_tanh"},
    {"hidden_act": "relu"},
    {"layer_norm_eps": 1e-3}, {"num_attention_heads": 4}, {"num_attention_heads": 1}, {"attention_dropout": 0.5},
    {"eos_token_id": 2}, {"eos_token_id": 5}, {"eos_token_id": [END]}, {"eos_token_id": None}, {"pad_token_id": 0},
    {"projection_dim": 7}, {"model_type": "siglip_text_model"}, {"dtype": "float16"}, {"hidden_act": None},
    {"num_channels": 1}, {"bos_token_id": 0}, {"dropout": 0.5}, {"_attn_implementation": "eager"}, {"head_dim": 4},
    {"vision_use_head": False}, {"projection_size": 7}, {"pad_token_id": 1},
]  # fmt: skip
READ: list[dict[str, Any]] = [  # what tokenizer_config.json may say
    {}, {"padding_side": "left"}, {"truncation_side": "left"}, {"model_max_length": 4}, {"model_max_length": 10**30},
    {"pad_token": "a"}, {"eos_token": "b"}, {"unk_token": "c"}, {"bos_token": "d"}, {"tokenizer_class": None},
    {"tokenizer_class": "PreTrainedTokenizerFast"}, {"tokenizer_class": "BertTokenizer"}, {"do_lower_case": False},
    {"split_special_tokens": True}, {"additional_special_tokens": ["cat"]}, {"extra_special_tokens": {"z": "a"}},
    {"added_tokens_decoder": {"7": {"content": "cat", "special": False}}}, {"model_input_names": ["input_ids"]},
    {"sep_token": "dog"}, {"fast_tokenizer_files": ["tokenizer.4.0.json"]}, {"add_prefix_space": True},
    {"auto_map": {"AutoTokenizer": ["e.E", None]}}, {"processor_class": "BlipProcessor"}, {"add_eos_token": False},
]  # fmt: skip
AROUND: dict[str, Any] = {  # what stands around the names of a state dict
    "nothing": lambda s: s,
    "model.": lambda s: {f"model.{k}": v for k, v in s.items()},
    "module.": lambda s: {f"module.{k}": v for k, v in s.items()},
    "_orig_mod.": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "clip.": lambda s: {f"clip.{k}": v for k, v in s.items()},
    "state_dict": lambda s: {"state_dict": s},
    "model": lambda s: {"model": s, "epoch": 3},
    "ema": lambda s: {"state_dict": s, "ema": {k: v + 1 for k, v in s.items()}},
    "twice": lambda s: s | {f"module.{k}": v + 1 for k, v in s.items()},
    "more": lambda s: s | {"extra.weight": torch.ones(2)},
    "less": lambda s: dict(list(s.items())[1:]),
    "gamma": lambda s: {k.replace("layer_norm1.weight", "layer_norm1.gamma"): v for k, v in s.items()},
    "legacy": lambda s: {k.replace("vision_model.", "vision_model.vision_model."): v for k, v in s.items()},
    "halves": lambda s: {k: v.half() for k, v in s.items()},
    "hot": lambda s: s | {"logit_scale": torch.tensor(17.0)},
    "counted": lambda s: s | {"text_model.embeddings.position_ids": torch.arange(LENGTH)[None]},
    "permuted": lambda s: s | {"text_model.embeddings.position_ids": torch.arange(LENGTH).flip(0)[None]},
}
BESIDE = {  # other files that may lie there
    "adapter_config.json": {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "base_model_name_or_path": "x"},
    "generation_config.json": {"max_length": 3}, "video_preprocessor_config.json": {"size": 3},
    "added_tokens.json": {"cat": 9},
    "special_tokens_map.json": {"pad_token": "a"}, "chat_template.json": {"chat_template": "x"},
    "configuration.json": {"x": 1},
    "modules.json": [{"type": "x"}], "open_clip_model.safetensors.index.json": {"weight_map": {}},
    "config_4.0.json": {"x": 1},
    "tokenizer.4.0.json": {"x": 1}, "preprocessor.json": {"x": 1}, "model_index.json": {"_class_name": "x"},
}  # fmt: skip
PLACES = (
    *("pytorch_model.bin", "other.safetensors", "model.fp16.safetensors", "pytorch_model.fp16.bin", "tf_model.h5"),
    *("consolidated.safetensors", "own.safetensors.index.json", "model.safetensors.index.json", "weights.pt"),
    *("pytorch_model.bin.index.json", "shard-00000-model-00000-of-00001.safetensors", "model.pth", "model.ckpt"),
    *("open_clip_pytorch_model.bin", "open_clip_model.safetensors", "adapter_model.safetensors", "a.safetensors"),
)
PREPARES: list[dict[str, Any]] = [  # what open_clip's preprocess_cfg may say
    {}, {"mean": [0.9] * 3, "std": [0.2] * 3}, {"interpolation": "bilinear"}, {"resize_mode": "squash"}, {"size": N},
    {"resize_mode": "longest"}, {"size": [N, N]}, {"size": [N, 2 * N]}, {"mean": None}, {"fill_color": 9},
    {"mode": "L"},
    {"interpolation": "random"}, {"interpolation": "nearest"}, {"size": 2 * N}, {"unknown": 1},
]  # fmt: skip
MODELLED: list[dict[str, Any]] = [
    {}, {"quick_gelu": True}, {"custom_text": True}, {"init_logit_scale": 1.0}, {"output_dict": True},
    {"cast_dtype": "fp16"},
    {"init_logit_bias": -10.0}, {"nonscalar_logit_scale": True}, {"multimodal_cfg": {}},
]  # fmt: skip


def mostly(values: list[Any], plain: int = 2) -> st.SearchStrategy[Any]:
    """The first value or any other; plain: how much more often the first."""
    return st.sampled_from([values[0]] * (plain * len(values)) + values)


@st.composite
def folders(draw: Any) -> dict[str, Any]:
    """What one folder holds, as a description that is easy to read when a test fails."""
    layout = draw(st.sampled_from(["transformers"] * 4 + ["open_clip", "both"]))
    return {
        "layout": layout, "kind": draw(mostly(["clip", "siglip"], 1)),
        "main": draw(mostly(["model.safetensors", None], 3)), "around": draw(mostly([*AROUND])),
        "places": draw(st.lists(st.sampled_from(PLACES), max_size=2, unique=True)) if draw(st.booleans()) else [],
        "config": draw(mostly(CONFIGURED)), "vision": draw(mostly(TOWERS, 4)), "text": draw(mostly(TOWERS, 4)),
        "both towers": draw(mostly([{}, {"hidden_act": "gelu"}, {"hidden_act": "gelu_pytorch_tanh"}], 3)),
        "preprocessor": draw(st.none() | mostly(PREPARED, 2)) if draw(st.integers(0, 2)) == 0 else {},
        "processor": draw(st.none() | mostly(PREPARED, 1)) if draw(st.integers(0, 3)) == 0 else None,
        "tokenizer": draw(mostly(READ, 3)), "whole": draw(mostly(["byte pairs", "words", "no end", None], 2)),
        "beside": draw(st.lists(st.sampled_from([*BESIDE]), max_size=1)) if draw(st.integers(0, 3)) == 0 else [],
        "prepares": draw(mostly(PREPARES, 2)), "modelled": draw(mostly(MODELLED, 2)),
        "captions": draw(st.lists(st.sampled_from(CAPTIONS), min_size=1, max_size=2)),
        "sides": draw(st.sampled_from([(N, N), (21, 37), (40, 18), (9, 16), (33, 32)])),
        "mode": draw(mostly(["RGB", "L", "RGBA", "P", "1", "LA"], 1)),
    }  # fmt: skip


@functools.cache
def weights(number: int, kind: str = "clip") -> dict[str, Tensor]:
    """Some weights under transformers' names."""
    return made.state(config(kind), Rng(number))


@functools.cache
def open_weights(number: int) -> dict[str, Tensor]:
    import open_clip

    net = open_clip.model.CLIP(
        12, open_clip.CLIPVisionCfg(**SHAPE["vision_cfg"]), open_clip.CLIPTextCfg(**SHAPE["text_cfg"])
    )
    g = Rng(number).generator()
    return {k: v if v.ndim == 0 else 0.2 * torch.randn(v.shape, generator=g) for k, v in net.state_dict().items()}


def config(kind: str = "clip") -> dict[str, Any]:
    told = made.config(kind, "quick_gelu" if kind == "clip" else "gelu_pytorch_tanh", image_size=N)
    told |= {"projection_dim": 12, "architectures": ["CLIPModel" if kind == "clip" else "SiglipModel"]}
    told["vision_config"] |= TINY
    told["text_config"] |= TINY | {"max_position_embeddings": LENGTH, "vocab_size": 64, "eos_token_id": END}
    return told


def write(folder: Path, told: dict[str, Any]) -> None:
    """Make the folder that this describes."""
    folder.mkdir(parents=True)
    if told["layout"] != "open_clip":
        _write_transformers(folder, told)
    if told["layout"] != "transformers":
        pre = {"size": N, "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
        _json(folder / "open_clip_config.json", {
            "model_cfg": SHAPE | told["modelled"], "preprocess_cfg": pre | told["prepares"]})  # fmt: skip
        name = "open_clip_model.safetensors" if told["main"] else "pytorch_model.bin"
        _put(folder / name, AROUND[told["around"]](open_weights(9)))
    for k, name in enumerate(told["places"]):
        if not (folder / name).exists():
            _put(
                folder / name, open_weights(20 + k) if told["layout"] == "open_clip" else weights(20 + k, kind_of(told))
            )
    for name in told["beside"]:
        _json(folder / name, BESIDE[name])


def kind_of(told: dict[str, Any]) -> str:
    return told.get("kind", "clip")


def _write_transformers(folder: Path, told: dict[str, Any]) -> None:
    base, kind = config(kind_of(told)), kind_of(told)
    base["vision_config"] |= told["both towers"] | told["vision"]
    base["text_config"] |= told["both towers"] | told["text"]
    _json(folder / "config.json", base | told["config"])
    _put(folder / (told["main"] or "pytorch_model.bin"), AROUND[told["around"]](weights(0, kind)))
    usual = {"image_processor_type": "CLIPImageProcessor", **SIZED}
    if kind == "siglip":
        usual = {"image_processor_type": "SiglipImageProcessor", "size": SIDES}
    if told["preprocessor"] is not None:
        _json(folder / "preprocessor_config.json", usual | told["preprocessor"])
    if told["processor"] is not None:
        _json(
            folder / "processor_config.json", {"image_processor": usual | {"image_std": [0.3] * 3} | told["processor"]}
        )
    if told["whole"] is None:
        return
    _json(folder / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", **ROLES} | told["tokenizer"])
    if told["whole"] == "byte pairs" and kind == "clip":
        _json(folder / "vocab.json", VOCAB)
        (folder / "merges.txt").write_text("#version: 0.2\n")
        return
    around = [{"SpecialToken": {"id": t, "type_id": 0}} for t in ("<|startoftext|>", "<|endoftext|>")]
    single = [around[0], {"Sequence": {"id": "A", "type_id": 0}}, *around[1 : 1 if told["whole"] == "no end" else 2]]
    ids = {t: {"id": t, "ids": [VOCAB[t]], "tokens": [t]} for t in ("<|startoftext|>", "<|endoftext|>")}
    _json(folder / "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": {"type": "Lowercase"}, "decoder": None,
        "added_tokens": [
            {"id": VOCAB[t], "content": t, "special": True, "normalized": False, "single_word": False, "lstrip": False,
             "rstrip": False} for t in ids],
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": ids},
        "model": {"type": "WordLevel", "vocab": VOCAB, "unk_token": "<|endoftext|>"},
    })  # fmt: skip
    unmasked = {"model_input_names": ["input_ids"]} if kind == "siglip" else {}  # as its own tokenizer has it
    words = {"tokenizer_class": "PreTrainedTokenizerFast", **ROLES, **unmasked}
    _json(folder / "tokenizer_config.json", words | told["tokenizer"])


def _json(path: Path, held: Any) -> None:
    path.write_text(json.dumps(held))


def _put(path: Path, held: dict[str, Any]) -> None:
    """Weights in the form that the file's name asks for."""
    flat = {k: v for part in held.values() if isinstance(part, dict) for k, v in part.items()} or held
    if path.name.endswith(".index.json"):
        part = path.name.split(".")[0] + "-00001-of-00001" + (".bin" if ".bin." in path.name else ".safetensors")
        _put(path.parent / part, held)
        _json(path, {"metadata": {}, "weight_map": dict.fromkeys(flat, part)})
    elif path.suffix == ".safetensors":
        io.save_weights({k: v.contiguous() for k, v in flat.items()}, path)
    else:
        torch.save(held, path)


def picture(folder: Path, told: dict[str, Any]) -> Path:
    """The picture that is shown to both, in its file beside the folder."""
    pixels = torch.randint(256, (*told["sides"], 4), generator=Rng(1).generator(), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).convert(told["mode"]).save(folder.parent / "picture.png")
    return folder.parent / "picture.png"


def unit(found: Any) -> Tensor:
    found = found if torch.is_tensor(found) else found.pooler_output
    return F.normalize(found.float(), dim=-1)


@torch.no_grad()
def by_transformers(folder: Path, seen: Path, captions: list[str]) -> tuple[Tensor | None, Tensor | None]:
    """Features by stock transformers, loaded the ordinary way; None where its pieces cannot be loaded or used."""
    from transformers import AutoModel, AutoProcessor

    image = text = None
    try:
        net: Any = AutoModel.from_pretrained(folder).eval().float()  # of weights that may have been rounded
        processor: Any = AutoProcessor.from_pretrained(folder)
    except Exception:
        return None, None
    try:
        pixels = processor.image_processor(Image.open(seen), return_tensors="pt")["pixel_values"]
        image = unit(net.get_image_features(pixels.to(net.dtype)))
    except Exception:
        pass
    try:
        cut = {"padding": "max_length", "max_length": LENGTH, "truncation": True}
        text = unit(net.get_text_features(**processor.tokenizer(captions, return_tensors="pt", **cut)))
    except Exception:
        pass
    return image, text


@torch.no_grad()
def by_open_clip(folder: Path, seen: Path) -> tuple[Tensor | None, None]:
    """A picture's feature by stock open_clip, loaded the ordinary way; None where it cannot be."""
    import open_clip

    try:
        made_of: Any = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
        net, see = made_of
        return unit(net.eval().encode_image(see(Image.open(seen)).unsqueeze(0))), None
    except Exception:
        return None, None


def compare(root: Path, told: dict[str, Any]) -> str:
    """Writes the folder and loads it. Returns "equal", "refused", "captions refused" or "stock cannot".

    Raises AssertionError if it differs.
    """
    write(root / "m", told)
    seen = picture(root / "m", told)
    try:
        clip = checkpoints.load(str(root / "m"))
    except UserError:
        return "refused"
    stock = (
        by_transformers(root / "m", seen, told["captions"])
        if clip.layout == "transformers"
        else by_open_clip(root / "m", seen)
    )
    images, bad = FilePictures([seen.name], seen.parent).fetch([0], clip.geometry)
    assert not bad
    with torch.no_grad():
        mine: list[Any] = [clip.encode_image(images), None]
        with contextlib.suppress(UserError):
            mine[1] = clip.encode_text(told["captions"]) if stock[1] is not None else None
    both = [(a, b) for a, b in zip(mine, stock) if a is not None and b is not None]
    far = max((float((a - b).abs().max()) for a, b in both), default=0.0)
    DIFFERENCES.append(far)
    assert far <= 1e-4, f"features differ by {far:.2g}"
    if stock[1] is not None and mine[1] is None:
        return "captions refused"
    return "equal" if both else "stock cannot"


class Quick:
    """Makes loading cheap: open_clip's tokenizer is built once, and nothing is printed."""

    def __init__(self) -> None:
        import open_clip
        import transformers

        open_clip.factory.SimpleTokenizer = functools.cache(open_clip.factory.SimpleTokenizer)  # pyright: ignore
        transformers.logging.set_verbosity(50)  # pyright: ignore
        transformers.logging.disable_progress_bar()  # pyright: ignore
        os.environ["HF_HUB_OFFLINE"] = "1"


def main(most: int, number: int) -> None:
    """Composes `most` folders and prints what became of them."""
    import tempfile
    import time
    import warnings

    warnings.simplefilter("ignore")
    Quick()
    seen: Counter[str] = Counter()

    @seed(number)
    @settings(
        max_examples=most,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),  # pyright: ignore
    )
    @given(folders())
    def one(told: dict[str, Any]) -> None:
        with tempfile.TemporaryDirectory() as root:
            try:
                seen[compare(Path(root), told)] += 1
            except AssertionError as e:
                seen["differs"] += 1
                print(e, told, flush=True)
            if sum(seen.values()) % 500 == 0:
                print(dict(seen), f"{time.process_time():.0f} s of processor time", flush=True)

    one()
    print(dict(seen), f"{time.process_time():.0f} s of processor time; largest difference {max(DIFFERENCES):.1e}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)

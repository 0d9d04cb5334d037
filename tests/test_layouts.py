"""Checkpoint layouts: what transformers and OpenAI wrote is read as it was meant, and comes back as it was."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import hf as made
import pytest
import torch
import torch.nn.functional as F
from layouts import READERS
from open_clip import SimpleTokenizer
from torch import Tensor

from clipvet import io, types
from clipvet.cleaners.finetune import Finetune
from clipvet.cleaners.par import Par
from clipvet.engine.losses import own_loss, siglip_loss
from clipvet.errors import UserError
from clipvet.models import adapter, checkpoints, deployed, layouts, siglip, tokenizers, weights
from clipvet.models.byte_pairs import Theirs
from clipvet.rng import Rng

ACTS = {
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}
KINDS = [("clip", "quick_gelu"), ("clip", "gelu"), ("siglip", "gelu_pytorch_tanh"), ("siglip", "gelu")]


def equations(told: dict[str, Any], s: dict[str, Tensor], pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """CLIP and SigLIP as transformers computes them, from its own names. pixels: already normalised."""
    eps = 1e-5 if told["model_type"] == "clip" else 1e-6

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, s[f"{name}.weight"], s.get(f"{name}.bias"))

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"], eps)

    def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool = False) -> Tensor:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if causal:
            scores = scores + torch.full(scores.shape[-2:], -torch.inf).triu(1)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)

    def mlp(at: str, x: Tensor, act: str) -> Tensor:
        return linear(f"{at}.fc2", ACTS[act](linear(f"{at}.fc1", x)))

    def encoder(part: str, x: Tensor, tower: dict[str, Any], causal: bool) -> Tensor:
        for k in range(tower["num_hidden_layers"]):
            at = f"{part}.encoder.layers.{k}"
            h = norm(f"{at}.layer_norm1", x)
            q, key, v = (linear(f"{at}.self_attn.{n}_proj", h) for n in "qkv")
            x = x + linear(f"{at}.self_attn.out_proj", attend(q, key, v, tower["num_attention_heads"], causal))
            x = x + mlp(f"{at}.mlp", norm(f"{at}.layer_norm2", x), tower["hidden_act"])
        return x

    vision, text, clips = told["vision_config"], told["text_config"], told["model_type"] == "clip"
    at = "vision_model.embeddings"
    x = F.conv2d(pixels, s[f"{at}.patch_embedding.weight"], s.get(f"{at}.patch_embedding.bias"), vision["patch_size"])
    x = x.flatten(2).transpose(1, 2)
    if clips:
        x = torch.cat([s[f"{at}.class_embedding"].expand(len(x), 1, -1), x], 1)
    x = x + s[f"{at}.position_embedding.weight"]
    if clips:
        x = norm("vision_model.pre_layrnorm", x)
    x = encoder("vision_model", x, vision, False)
    if clips:
        z = linear("visual_projection", norm("vision_model.post_layernorm", x[:, 0]))
    else:
        x, head = norm("vision_model.post_layernorm", x), "vision_model.head"
        wq, wk, wv = s[f"{head}.attention.in_proj_weight"].chunk(3)
        bq, bk, bv = s[f"{head}.attention.in_proj_bias"].chunk(3)
        q = F.linear(s[f"{head}.probe"].expand(len(x), -1, -1), wq, bq)
        mixed = attend(q, F.linear(x, wk, bk), F.linear(x, wv, bv), vision["num_attention_heads"])
        z = linear(f"{head}.attention.out_proj", mixed)
        z = (z + mlp(f"{head}.mlp", norm(f"{head}.layernorm", z), vision["hidden_act"]))[:, 0]
    at = "text_model.embeddings"
    y = s[f"{at}.token_embedding.weight"][tokens] + s[f"{at}.position_embedding.weight"]
    y = norm("text_model.final_layer_norm", encoder("text_model", y, text, clips))
    last = tokens.argmax(1) if clips else torch.full((len(y),), -1)
    w = linear("text_projection" if clips else "text_model.head", y[torch.arange(len(y)), last])
    return F.normalize(z, dim=1), F.normalize(w, dim=1)


def inputs(clip: Any) -> tuple[Tensor, Tensor]:
    g, text = Rng(7).generator(), clip.config["model_cfg"]["text_cfg"]
    tokens = torch.randint(1, text["vocab_size"] - 2, (3, text["context_length"]), generator=g)
    tokens[:, 9] = text["vocab_size"] - 1
    return torch.rand(3, 3, 32, 32, generator=g), tokens


def features(clip: Any) -> tuple[Tensor, Tensor]:
    images, tokens = inputs(clip)
    with torch.no_grad():
        return clip.encode_image(images), clip.encode_text(tokens)


def close(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    return all(torch.allclose(x, y, rtol=0, atol=1e-5) for x, y in zip(a, b))


@pytest.mark.parametrize(("kind", "act"), KINDS)
def test_features_follow_transformers_equations(tmp_path: Path, kind: str, act: str) -> None:
    held = made.write(tmp_path / "m", kind, act)
    clip: Any = checkpoints.load(str(tmp_path / "m"))
    assert clip.layout == "transformers"
    images, tokens = inputs(clip)
    want = equations(made.config(kind, act), held, (images - clip.mean) / clip.std, tokens)
    assert close(features(clip), want)
    other = "gelu" if act != "gelu" else "gelu_pytorch_tanh"
    assert not close(features(clip), equations(made.config(kind, other), held, (images - clip.mean) / clip.std, tokens))
    assert torch.isclose(clip.logit_scale, torch.tensor(3.0).exp())
    assert (clip.logit_bias is None) == (kind == "clip")
    assert kind == "clip" or clip.logit_bias == -9


@pytest.mark.parametrize(("kind", "act"), KINDS)
def test_transformers_itself_agrees(tmp_path: Path, kind: str, act: str) -> None:
    transformers = pytest.importorskip("transformers")
    made.write(tmp_path / "m", kind, act)
    clip: Any = checkpoints.load(str(tmp_path / "m"))
    checkpoints.save(clip, tmp_path / "again", {})
    images, tokens = inputs(clip)
    for folder in ("m", "again"):
        theirs: Any = transformers.AutoModel.from_pretrained(tmp_path / folder).eval()
        with torch.no_grad():
            found = [
                theirs.get_image_features(pixel_values=(images - clip.mean) / clip.std),
                theirs.get_text_features(input_ids=tokens),
            ]
        want = [F.normalize(getattr(v, "pooler_output", v), dim=1) for v in found]  # 5: an object; 4: a tensor
        assert close(features(clip), (want[0], want[1]))


@pytest.mark.parametrize(("kind", "act"), KINDS)
def test_the_same_layout_comes_back(tmp_path: Path, kind: str, act: str) -> None:
    held = made.write(tmp_path / "m", kind, act)
    told = json.loads((tmp_path / "m" / "config.json").read_text()) | {"torch_dtype": "float16", "own": [1]}
    (tmp_path / "m" / "config.json").write_text(json.dumps(told))
    (tmp_path / "m" / "special_tokens_map.json").write_text('{"a": 1}')
    clip = checkpoints.load(str(tmp_path / "m"))
    checkpoints.save(adapter.clone(clip), tmp_path / "out", {"role": "cleaned"})
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "model.safetensors", "special_tokens_map.json", "card.json"}
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == told | {"torch_dtype": "float32"}
    again = io.load_weights(tmp_path / "out" / "model.safetensors")
    assert again.keys() == held.keys()
    assert all(torch.equal(again[k], held[k].half().float()) for k in held)  # as transformers rounds them
    assert close(features(checkpoints.load(str(tmp_path / "out"))), features(clip))
    fresh = checkpoints.fresh(clip, Rng(5))
    assert (fresh.layout, fresh.files) == ("transformers", clip.files)
    assert not close(features(fresh), features(clip))
    io.save_weights({**held, "logit_scale": held["logit_scale"] + 1}, tmp_path / "out" / "model.safetensors")
    with pytest.raises(UserError, match="is not the file that"):
        checkpoints.load(str(tmp_path / "out"))


def tiny(folder: Path, quick: bool = True, resnet: bool = False) -> Any:
    """A CLIP with heads of width 64, as OpenAI's."""
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}
    if resnet:
        vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
    text = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    config = {"embed_dim": 48, "vision_cfg": vision, "text_cfg": text, **({"quick_gelu": True} if quick else {})}
    folder.mkdir()
    io.write_json(folder / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": {}})
    return checkpoints.load(f"local-dir:{folder}", rng=Rng(2), weights=False)


@pytest.mark.parametrize("quick", [True, False])
def test_from_layout_to_layout_and_back(tmp_path: Path, quick: bool) -> None:
    clip = tiny(tmp_path / "start", quick)
    at, want, seen = clip, features(clip), []
    chain = ("transformers", "openai", "transformers", "open_clip") if quick else ("transformers", "open_clip")
    for k, layout in enumerate(chain):
        done = checkpoints.convert(at, layout, tmp_path / str(k), {"role": "converted"})
        assert done.difference < 1e-5
        at = checkpoints.load(str(tmp_path / str(k)))
        assert at.layout == layout
        assert at.geometry == replace(
            clip.geometry, library="transformers" if layout == "transformers" else "open_clip"
        )
        assert close(features(at), want)
        assert torch.equal(at.tokenize(["a red circle"]), clip.tokenize(["a red circle"]))
        seen.append(sorted(p.name for p in (tmp_path / str(k)).iterdir()))
    assert seen[-1] == ["card.json", "open_clip_config.json", "open_clip_model.safetensors"]
    weights = at.model.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in clip.model.state_dict().items())


@pytest.mark.parametrize("resnet", [False, True])
def test_openai_layout(tmp_path: Path, resnet: bool) -> None:
    clip = tiny(tmp_path / "start", resnet=resnet)
    checkpoints.convert(clip, "openai", tmp_path / "out", {})
    state = torch.load(tmp_path / "out" / "model.pt", weights_only=True)  # noqa: TID251  as OpenAI's code finds it
    assert {k: int(v) for k, v in state.items() if k in layouts.NUMBERS} == {
        "input_resolution": 32, "context_length": 16, "vocab_size": 49408,
    }  # fmt: skip
    assert state.keys() - layouts.NUMBERS == clip.model.state_dict().keys()
    io.save_weights(state, tmp_path / "bare.safetensors")
    for place in (tmp_path / "out", tmp_path / "out" / "model.pt", tmp_path / "bare.safetensors"):
        again: Any = checkpoints.load(str(place))
        assert again.layout == "openai"
        assert close(features(again), features(clip))
    checkpoints.save(again, tmp_path / "saved", {})
    assert (tmp_path / "saved" / "model.pt").is_file()


WRITTEN = {
    "open_clip": {"open_clip_config.json", "open_clip_model.safetensors"},
    "transformers": {"config.json", "model.safetensors"},
    "openai": {"model.pt"},
}


def given(layout: str, folder: Path) -> None:
    """A random model of this layout, of which `layouts.write` knows nothing."""
    if layout == "transformers":
        made.write(folder)
        return
    state = tiny(folder).model.state_dict()
    if layout == "open_clip":
        io.save_weights(state, folder / "open_clip_model.safetensors")
        return
    (folder / "open_clip_config.json").unlink()
    numbers = {"input_resolution": 32, "context_length": 16, "vocab_size": 49408}
    torch.save(state | {k: torch.tensor(n) for k, n in numbers.items()}, folder / "model.pt")


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_a_model_is_cleaned_from_layout_to_the_same_layout(clipvet: Any, tmp_path: Path, layout: str) -> None:
    if layout == "transformers":
        pytest.importorskip("transformers")
    given(layout, tmp_path / "in")
    how = ["--method", "par", "--set", "epochs=1", "--set", "batch=32", "--set", "lr_start=1e-3"]
    data = ["--data", "shapes", "--n", 64]
    said = clipvet("clean", "--model", tmp_path / "in", *data, *how, "--out", tmp_path / "out")
    assert said.code == 0, said.err
    of_every_run = {"run.json", "card.json", "commands.json", "results.jsonl", "log.jsonl"}
    assert {p.name for p in (tmp_path / "out").iterdir()} - of_every_run == WRITTEN[layout]
    held = [io.load_weights(weights.weights_file(tmp_path / at)) for at in ("in", "out")]
    before, after = ({k: (v.shape, v.dtype) for k, v in state.items()} for state in held)
    assert before == after
    dirty, cleaned = (checkpoints.load(str(tmp_path / at)) for at in ("in", "out"))
    assert cleaned.layout == layout
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(features(dirty), features(cleaned)))
    images, tokens = inputs(cleaned)
    with torch.no_grad():  # as the layout's own library reads it
        theirs = READERS[layout][1](tmp_path / "out", (images - cleaned.mean) / cleaned.std, tokens)
    assert close((theirs[0], theirs[1]), features(cleaned))


def test_weights_of_half_precision_come_back_whole(tmp_path: Path) -> None:
    """OpenAI's are: rounded again, they would not be the weights that were measured."""
    given("openai", tmp_path / "in")
    state = io.load_weights(tmp_path / "in" / "model.pt")
    halves = {k: v.half() if v.is_floating_point() and v.ndim > 1 else v for k, v in state.items()}
    io.save_weights(halves, tmp_path / "in" / "model.pt")
    clip = checkpoints.load(str(tmp_path / "in"))
    checkpoints.save(clip, tmp_path / "out", {})
    again = io.load_weights(tmp_path / "out" / "model.pt")
    assert {str(v.dtype) for v in again.values()} == {"torch.float32", "torch.int64"}
    assert all(torch.equal(again[k], v.to(again[k].dtype)) for k, v in halves.items())


def refused(match: str, *args: Any, call: Any = checkpoints.load) -> None:
    with pytest.raises(UserError, match=match) as e:
        call(*args)
    assert "\n" not in str(e.value)


def test_what_a_layout_cannot_hold(tmp_path: Path, clip: Any, resnet: Any) -> None:
    def no(match: str, model: Any, layout: str) -> None:
        refused(match, model, layout, tmp_path / "out", {}, call=checkpoints.convert)

    no("a ResNet", resnet, "transformers")
    no("QuickGELU", clip, "openai")
    no("no layout 'onnx'", clip, "onnx")
    narrow = tiny(tmp_path / "narrow")
    narrow.config["preprocess_cfg"]["mean"] = [0.5, 0.5, 0.5]
    no("prepares pictures in another way", narrow, "openai")
    quick: Any = checkpoints.load("shapes-vit", rng=Rng(1), quick_gelu=True)  # heads of width 32: OpenAI's code has 64
    no("features differ by", quick, "openai")
    narrow_resnet: Any = checkpoints.load("shapes-rn", rng=Rng(1), quick_gelu=True)
    no("features differ by", narrow_resnet, "openai")
    made.write(tmp_path / "sig", "siglip", "gelu")
    sig = checkpoints.load(str(tmp_path / "sig"))
    no("no SigLIP tower of these sizes", sig, "open_clip")
    no("QuickGELU", sig, "openai")


def test_preparation_of_pictures(tmp_path: Path) -> None:
    made.write(tmp_path, "clip")

    def told(**words: Any) -> Any:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(words))
        clip: Any = checkpoints.load(str(tmp_path))
        return clip.geometry, clip.mean.flatten().tolist(), clip.std.flatten().tolist()

    colours = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}
    old = told(size=32, crop_size=32, do_center_crop=True, resample=3, **colours)
    assert old[0] == types.Geometry(32, "shortest", "bicubic", "transformers")
    assert old[1] == pytest.approx([0.1, 0.2, 0.3])
    assert old[2] == pytest.approx([0.5, 0.6, 0.7])
    new = told(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, resample=2, **colours)
    assert new[0] == types.Geometry(32, "shortest", "bilinear", "transformers")
    square = {"height": 32, "width": 32}
    assert told(size=square, do_center_crop=False, do_normalize=False) == (
        types.Geometry(32, "squash", "bicubic", "transformers"), [0, 0, 0], [1, 1, 1],
    )  # fmt: skip
    raw = told(size=square, do_center_crop=False, do_rescale=False, image_mean=[102] * 3, image_std=[51] * 3)
    assert raw[1:] == (pytest.approx([0.4] * 3), pytest.approx([0.2] * 3))  # of pictures in 0 .. 255
    for words in (
        {"size": {"height": 32, "width": 40}, "do_center_crop": False},
        {"size": {"height": 1e999, "width": 1e999}, "do_center_crop": False},
        {"size": square, "do_center_crop": False, "image_mean": [10**400, 0, 0]},
        {"size": square, "do_center_crop": False, "rescale_factor": 1.0},
        {"size": square, "do_center_crop": False, "resample": 1},
        {"size": {"longest_edge": 32}},
        {"size": square, "do_center_crop": False, "image_std": [0, 0, 0]},
        {"size": square, "do_center_crop": False, "image_mean": [0.5]},
    ):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(words))
        refused("preprocessor_config.json", str(tmp_path))
    (tmp_path / "preprocessor_config.json").write_text('{"size": 48, "crop_size": 48}')
    refused("pictures of 48 px for a tower of 32 px", str(tmp_path))
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"size": 32, "crop_size": 32}}))
    assert checkpoints.load(str(tmp_path)).geometry == types.Geometry(32, library="transformers")


@pytest.mark.parametrize("rescale", [True, False])
def test_pictures_are_what_transformers_makes_of_them(tmp_path: Path, rescale: bool) -> None:
    transformers: Any = pytest.importorskip("transformers")
    made.write(tmp_path)
    k = 1 if rescale else 255
    words = {"do_rescale": rescale, "image_mean": [0.4 * k, 0.5 * k, 0.6 * k], "image_std": [0.2 * k, 0.3 * k, 0.4 * k]}
    words |= {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(words))
    picture = torch.randint(256, (32, 32, 3), generator=Rng(0).generator(), dtype=torch.uint8)
    theirs = transformers.CLIPImageProcessor(**words)(picture.numpy(), return_tensors="pt")["pixel_values"]
    clip: Any = checkpoints.load(str(tmp_path))
    ours = (picture.movedim(2, 0)[None] / 255 - clip.mean.view(3, 1, 1)) / clip.std.view(3, 1, 1)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_configs_that_lie(tmp_path: Path) -> None:
    usual = made.config("clip", "gelu")

    def no(match: str, **changes: Any) -> None:
        told = copy.deepcopy(usual)
        for key, value in changes.items():
            part, _, name = key.partition("__")
            told[part] = {**told[part], name: value} if name else value
        (tmp_path / "config.json").write_text(json.dumps(told))
        refused(match, str(tmp_path))

    made.write(tmp_path)
    no("not a CLIPModel", model_type="bert")
    no("not a CLIPModel", model_type=["clip"])
    no("hidden_size", vision_config__hidden_size=10**12)
    no("hidden_size", text_config__hidden_size="64; rm -rf")
    no("far larger model than its weights", vision_config__hidden_size=2**13, vision_config__num_hidden_layers=200)
    no("far larger model than its weights", text_config__vocab_size=2**21, text_config__eos_token_id=2)
    no("do not divide", vision_config__num_attention_heads=7)
    no("hidden_act", vision_config__hidden_act="relu", text_config__hidden_act="relu")
    no("activations differ", text_config__hidden_act="quick_gelu")
    no("eos_token_id", text_config__eos_token_id=7)
    no("projection_dim", projection_dim="x")
    no("does not fit", vision_config__intermediate_size=96)
    (tmp_path / "config.json").write_text("[1]")
    refused("not a CLIPModel", str(tmp_path))
    (tmp_path / "config.json").write_text("{" * 5000)
    refused("is not JSON", str(tmp_path))


def test_which_weights_are_taken(tmp_path: Path) -> None:
    held = made.write(tmp_path / "m", "clip", "gelu")
    want = features(checkpoints.load(str(tmp_path / "m")))
    (tmp_path / "m" / "model.safetensors").unlink()
    refused("holds no weights", str(tmp_path / "m"))
    names, index = sorted(held), tmp_path / "m" / "model.safetensors.index.json"
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, own in parts.items():
        io.save_weights({k: held[k] for k in own}, tmp_path / "m" / file)
    io.write_json(index, {"weight_map": {k: file for file, own in parts.items() for k in own}})
    assert close(features(checkpoints.load(str(tmp_path / "m"))), want)
    for bad in ("../a.safetensors", "/etc/passwd", 7):
        io.write_json(index, {"weight_map": {names[0]: bad}})
        refused("files of its own folder", str(tmp_path / "m"))
    for listed in (["a.safetensors"], {"a": [1]}, {"a": 1, "b": "x"}, None):
        io.write_json(index, {"weight_map": listed})
        refused("files of its own folder", str(tmp_path / "m"))
    index.unlink()
    index = tmp_path / "m" / "pytorch_model.bin.index.json"
    for file, own in parts.items():
        torch.save({k: held[k] for k in own}, tmp_path / "m" / f"{file}.bin")
    io.write_json(index, {"weight_map": {k: f"{file}.bin" for file, own in parts.items() for k in own}})
    assert close(features(checkpoints.load(str(tmp_path / "m"))), want)
    io.write_json(index, {"weight_map": {names[0]: "../a.bin"}})
    refused("files of its own folder", str(tmp_path / "m"))
    torch.save(held | {"text_model.embeddings.position_ids": torch.arange(16)}, tmp_path / "m" / "pytorch_model.bin")
    assert close(features(checkpoints.load(str(tmp_path / "m"))), want)


def test_a_folder_with_two_layouts_is_refused_unless_asked(tmp_path: Path, clip: Any) -> None:
    made.write(tmp_path / "m")
    checkpoints.save(clip, tmp_path / "m", {})
    refused("local-dir:", str(tmp_path / "m"))
    assert checkpoints.load(f"local-dir:{tmp_path / 'm'}").layout == "open_clip"
    (tmp_path / "m" / "card.json").unlink()
    other = checkpoints.load(f"transformers:{tmp_path / 'm'}")
    assert other.layout == "transformers"
    assert checkpoints.load(other.source).layout == "transformers"


def test_a_state_dict_without_a_name_is_refused(tmp_path: Path, clip: Any) -> None:
    io.save_weights(clip.model.state_dict(), tmp_path / "w.safetensors")
    refused("--pretrained", str(tmp_path / "w.safetensors"))
    io.save_weights({k: torch.tensor(7) for k in layouts.NUMBERS}, tmp_path / "w.safetensors")
    refused("no state dict of OpenAI's", str(tmp_path / "w.safetensors"))


def test_code_beside_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    made.write(tmp_path / "m")
    told = json.loads((tmp_path / "m" / "config.json").read_text())
    told |= {"auto_map": {"AutoModel": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Config"}}
    (tmp_path / "m" / "config.json").write_text(json.dumps(told))
    (tmp_path / "m" / "modeling_evil.py").write_text(f"open({str(tmp_path / 'it-ran')!r}, 'w').close()")
    refused("auto_map", str(tmp_path / "m"))
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"hf_tokenizer_name": ".", "tokenizer_kwargs": {"trust_remote_code": True}},
        {"hf_tokenizer_name": "."},
        {"hf_model_name": "ITSELF", "hf_proj_type": "linear"},
    ],
    ids=["trusted", "asked", "text tower"],
)
def test_code_in_an_open_clip_folder_is_not_run(tmp_path: Path, monkeypatch: Any, changes: dict[str, Any]) -> None:
    checkpoints.save(checkpoints.load("shapes-vit"), tmp_path / "m", {})
    path = tmp_path / "m" / "open_clip_config.json"
    told = json.loads(path.read_text())
    told["model_cfg"]["text_cfg"] |= changes
    (tmp_path / "m" / "card.json").unlink()
    path.write_text(json.dumps(told).replace("ITSELF", str(tmp_path / "m")))
    evil = {"AutoTokenizer": ["evil.Evil", None], "AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / "m" / name).write_text(json.dumps({"auto_map": evil, "tokenizer_class": "Evil"}))
    (tmp_path / "m" / "evil.py").write_text(f"open({str(tmp_path / 'it-ran')!r}, 'w').close()\nclass Evil: pass")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    refused("asks for code", str(tmp_path / "m"))
    monkeypatch.setattr(deployed, "check", lambda *_: None)  # the walls behind it hold alone
    with pytest.raises(UserError, match=r"tokenizer_kwargs|custom code|its own code"):
        checkpoints.load(f"local-dir:{tmp_path / 'm'}")
    assert not (tmp_path / "it-ran").exists()


def test_tokenizers(tmp_path: Path) -> None:
    made.write(tmp_path / "m")
    clip: Any = checkpoints.load(str(tmp_path / "m"))
    files = tokenizers.files_of(clip.tokenizer)
    for name, held in files.items():
        (tmp_path / "m" / name).write_bytes(held)
    again: Any = checkpoints.load(str(tmp_path / "m"))
    assert not isinstance(again.tokenizer, tokenizers.Foreign)
    vocab = json.loads(files["vocab.json"])
    assert len(vocab) == 49408
    vocab["cat</w>"], vocab["dog</w>"] = vocab["dog</w>"], vocab["cat</w>"]
    (tmp_path / "m" / "vocab.json").write_text(json.dumps(vocab))
    changed: Any = checkpoints.load(str(tmp_path / "m"))
    assert isinstance(changed.tokenizer, tokenizers.Foreign)
    (tmp_path / "m" / "vocab.json").write_bytes(files["vocab.json"])
    (tmp_path / "m" / "merges.txt").write_text("#version: 0.2\na b\n")
    changed = checkpoints.load(str(tmp_path / "m"))
    assert isinstance(changed.tokenizer, tokenizers.Foreign)
    made.write(tmp_path / "sig", "siglip", "gelu")
    refused("holds no tokenizer", ["a"], call=checkpoints.load(str(tmp_path / "sig")).tokenize)


def test_only_what_is_wholly_clips_is_read_as_its_byte_pairs(tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")
    plain: Any = SimpleTokenizer(context_length=16)
    for name, held in tokenizers.files_of(plain).items():
        (tmp_path / name).write_bytes(held)
    transformers.AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    files = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name in tokenizers.FILES}
    whole = json.loads(files["tokenizer.json"])

    def kind(name: str, told: Any) -> type:
        held = files | {name: json.dumps(told).encode()}
        return type(tokenizers.made_of(held, {"context_length": 16, "vocab_size": 49408}, True))

    swap = {"type": "Replace", "pattern": {"String": "cat"}, "content": "dog"}
    both = {"type": "Sequence", "normalizers": [whole["normalizer"], swap]}
    older = json.loads(json.dumps(whole))  # transformers 4's
    older["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = tokenizers.WORDS
    del older["pre_tokenizer"]["pretokenizers"][1]["use_regex"], older["model"]["type"]
    for fine in (whole, older):
        assert kind("tokenizer.json", fine) is Theirs
    begin, end = whole["added_tokens"]
    for wrong in (
        {"normalizer": both}, {"normalizer": None}, {"pre_tokenizer": both}, {"post_processor": None},
        {"added_tokens": [begin, end | {"content": "cat"}]}, {"added_tokens": [begin, end | {"lstrip": True}]},
        {"added_tokens": [begin, end | {"normalized": True}]},
        {"added_tokens": [begin, end, end | {"id": 320, "content": "cat"}]}, {"added_tokens": 5},
        {"model": whole["model"] | {"dropout": 0.5}}, {"model": whole["model"] | {"ignore_merges": True}},
    ):  # fmt: skip
        assert kind("tokenizer.json", whole | wrong) is tokenizers.Foreign, wrong
    config = json.loads(files["tokenizer_config.json"])
    for wrong in (
        {"added_tokens_decoder": {"320": end | {"content": "cat"}}}, {"extra_special_tokens": ["cat"]},
        {"split_special_tokens": True}, {"truncation_side": "left"}, {"image_token": "cat"},
        {"bos_token": "cat</w>"}, {"eos_token": {"content": "cat"}}, {"tokenizer_class": "BertTokenizer"}, [],
    ):  # fmt: skip
        told = config | wrong if isinstance(wrong, dict) else wrong
        assert kind("tokenizer_config.json", told) is tokenizers.Foreign, wrong
    assert kind("special_tokens_map.json", {"unk_token": "cat"}) is tokenizers.Foreign
    assert kind("added_tokens.json", {"cat": 49407}) is tokenizers.Foreign
    assert kind("special_tokens_map.json", {"sep_token": "cat"}) is tokenizers.Foreign
    for side in ({"padding_side": "left"}, {"model_max_length": 8}):
        refused("tokenizer_config.json has captions", "tokenizer_config.json", config | side, call=kind)


def test_a_tokenizer_that_panics_is_refused() -> None:
    pytest.importorskip("transformers")
    split = {"type": "Split", "pattern": {"Regex": r"(\w+\s?)+$"}, "behavior": "Isolated", "invert": False}
    model = {"type": "WordLevel", "vocab": {"[PAD]": 0, "a": 1}, "unk_token": "a"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}

    def made(**changes: Any) -> tokenizers.Foreign:
        told = {"version": "1.0", "added_tokens": [], "pre_tokenizer": split, "model": model, **changes}
        held = {"tokenizer.json": json.dumps(told).encode(), "tokenizer_config.json": json.dumps(config).encode()}
        return tokenizers.Foreign(held, 16)

    assert made()(["a a"]).shape == (1, 16)
    refused("fails on a caption", ["a" * 40 + "!"], call=made())
    refused("cannot be loaded", ["a"], call=made(pre_tokenizer=split | {"pattern": {"Regex": "("}}))


@pytest.mark.parametrize(("dtype", "within"), [("float16", 1e-2), ("bfloat16", 5e-2)])
def test_rounded_weights_take_half_the_space_and_answer_alike(dtype: str, within: float, clip, tmp_path, clipvet):
    checkpoints.save(clip, tmp_path / "full", {})

    def convert(out: str, layout: str, dtype: str) -> Any:
        return clipvet("convert", tmp_path / "full", tmp_path / out, "--layout", layout, "--dtype", dtype)

    assert convert("half", "open_clip", dtype).code == 0
    sizes = [(tmp_path / name / "open_clip_model.safetensors").stat().st_size for name in ("full", "half")]
    assert 0.49 < sizes[1] / sizes[0] < 0.52
    half = checkpoints.load(str(tmp_path / "half"))
    assert all(v.dtype == torch.float32 for v in half.state_dict().values() if v.is_floating_point())
    assert 0 < (half.encode_text(["a star"]) - clip.encode_text(["a star"])).abs().max() < within

    for layout, kind, said in (
        ("open_clip", "int8", "give float16"),
        ("transformers", dtype, "full precision"),
        ("coop", dtype, "whole model"),
    ):
        refused = convert("no", layout, kind)
        assert refused.code == 2
        assert said in refused.err


def test_transformers_tokenizer_of_converted_models(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    clip = tiny(tmp_path / "start")
    checkpoints.convert(clip, "transformers", tmp_path / "out", {})
    theirs: Any = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    said = ["A photo of a cat.", "two red circles, on a table", "it's 1999!"]
    ours = [[int(x) for x in row if x] for row in clip.tokenize(said)]
    assert theirs(said)["input_ids"] == ours
    processor: Any = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert processor.crop_size["height"] == 32
    vocab = json.loads((tmp_path / "out" / "vocab.json").read_text())
    vocab["cat</w>"], vocab["dog</w>"] = vocab["dog</w>"], vocab["cat</w>"]
    (tmp_path / "out" / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "out" / "card.json").unlink()
    swapped = checkpoints.load(str(tmp_path / "out"))
    assert torch.equal(swapped.tokenize(["a dog"])[0, :4], clip.tokenize(["a cat"])[0, :4])


def test_sigmoid_loss(tmp_path: Path) -> None:
    g = Rng(3).generator()
    z, w = (F.normalize(torch.randn(5, 8, generator=g), dim=1) for _ in "ab")
    s, bias = torch.tensor(7.0), torch.tensor(-2.0)
    want = sum(
        -F.logsigmoid((1 if j == k else -1) * (s * z[j] @ w[k] + bias)) for j in range(5) for k in range(5)
    ) / torch.tensor(5)
    assert torch.isclose(siglip_loss(z, w, s, bias), want, rtol=1e-5)
    made.write(tmp_path, "siglip", "gelu")
    clip: Any = checkpoints.load(str(tmp_path))
    own = own_loss(clip, z, w)
    assert torch.isclose(own, siglip_loss(z, w, clip.logit_scale, clip.logit_bias))
    own.backward()
    assert clip.model.logit_bias.grad is not None
    assert not own_loss(clip, z, w, frozen=True).requires_grad


@pytest.mark.parametrize("method", [Finetune, Par])
def test_a_siglip_model_is_cleaned_by_its_own_loss(tmp_path: Path, pairs: Any, method: Any) -> None:
    made.write(tmp_path, "siglip", "gelu")
    clip: Any = checkpoints.load(str(tmp_path))
    clip._tokens = adapter.Tokens(lambda texts: torch.tensor([[len(t) % 99] * 16 for t in texts]))
    with torch.no_grad():
        clip.model.logit_scale.fill_(4.8)  # above CLIP's bound of log 100, as released SigLIP models are
    cleaned = method(epochs=1, batch=64).clean(clip, pairs.take(slice(128)), Rng(0))
    assert cleaned.layout == "transformers"
    assert cleaned.model.logit_scale.item() == pytest.approx(4.8, abs=1e-3)
    assert not torch.equal(cleaned.model.visual.trunk.norm.weight, clip.model.visual.trunk.norm.weight)


def test_stock_names_of_siglip_towers() -> None:
    name = "clipvet_siglip_w768_d12_h12_m3072_p16_i224_none"
    assert siglip.stock(name) == "vit_base_patch16_siglip_224"
    assert siglip.stock("vit_base_patch16_siglip_256") == "vit_base_patch16_siglip_256"

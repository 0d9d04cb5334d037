"""What is vetted is what is deployed: each folder's features are stock transformers', or the folder is refused."""

import json
import zipfile
from pathlib import Path
from typing import Any

import hf as made
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipvet import io
from clipvet.errors import Unsupported, UserError
from clipvet.models import checkpoints, deployed, weights
from clipvet.models.class_prompts import begin
from clipvet.rng import Rng

SQUARE = {"height": 32, "width": 32}
PROCESSOR = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "crop_size": SQUARE}
PROCESSOR |= {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
TOKENS = torch.tensor([[49406, 320, 1125, 49407, 49407], [49406, 2368, 539, 518, 49407]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in transformers' layout, with random weights."""
    made.write(tmp_path / "m")
    change(tmp_path / "m" / "preprocessor_config.json", **PROCESSOR)
    return tmp_path / "m"


@pytest.fixture(scope="module")
def trained() -> Any:
    return checkpoints.load("shapes-vit", rng=Rng(5))


def change(path: Path, **words: Any) -> None:
    told = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(told | words))


def decoy(folder: Path, seed: int = 7) -> dict[str, Tensor]:
    """Other weights for the same folder."""
    return made.state(json.loads((folder / "config.json").read_text()), Rng(seed))


def picture() -> Tensor:
    return torch.randint(256, (3, 32, 32), generator=Rng(0).generator(), dtype=torch.uint8)


@torch.no_grad()
def ours(name: Path | str) -> tuple[Tensor, Tensor]:
    """The unit-length features of one picture and two captions."""
    clip = checkpoints.load(str(name))
    pad = F.pad(TOKENS, (0, 16 - TOKENS.shape[1]), value=49407)
    return F.normalize(clip.encode_image(picture()[None] / 255), dim=-1), F.normalize(clip.encode_text(pad), dim=-1)


@torch.no_grad()
def stock(folder: Path) -> tuple[Tensor, Tensor]:
    """The same features by stock transformers, loaded the ordinary way."""
    transformers: Any = pytest.importorskip("transformers")
    net = transformers.AutoModel.from_pretrained(folder).eval()
    pixels = transformers.AutoImageProcessor.from_pretrained(folder)(picture(), return_tensors="pt")["pixel_values"]
    pad = F.pad(TOKENS, (0, 16 - TOKENS.shape[1]), value=49407)
    found = (net.get_image_features(pixels.to(net.dtype)), net.get_text_features(pad))
    image, text = (f if torch.is_tensor(f) else f.pooler_output for f in found)
    return F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)


def difference(folder: Path, name: str | None = None) -> float:
    """How far clipvet's features lie from stock transformers'."""
    return max(float((a - b).abs().max()) for a, b in zip(ours(name or folder), stock(folder), strict=True))


def refused(name: Path | str, *words: str) -> None:
    with pytest.raises(UserError) as e:
        checkpoints.load(str(name))
    assert all(w in str(e.value) for w in words), str(e.value)
    assert "\n" not in str(e.value)


# 1. the file of weights, adapters, code and quantisation


def test_a_plain_folder(folder: Path) -> None:
    assert difference(folder) < 1e-4


@pytest.mark.parametrize("at", ["other.safetensors", "more/other.safetensors"])
def test_config_names_the_file_of_weights(folder: Path, at: str) -> None:
    (folder / at).parent.mkdir(exist_ok=True)
    io.save_weights(decoy(folder), folder / at)
    before = ours(folder)[0]
    change(folder / "config.json", transformers_weights=at)
    assert difference(folder) < 1e-4
    assert (ours(folder)[0] - before).abs().max() > 0.01


def test_what_is_saved_names_no_other_file(folder: Path, tmp_path: Path) -> None:
    io.save_weights(decoy(folder), folder / "other.safetensors")
    change(folder / "config.json", transformers_weights="other.safetensors")
    checkpoints.save(checkpoints.load(str(folder)), tmp_path / "out", {})
    assert difference(tmp_path / "out") < 1e-4
    assert (ours(tmp_path / "out")[0] - ours(folder)[0]).abs().max() < 1e-4


def test_config_names_an_index(folder: Path) -> None:
    held = decoy(folder)
    names = sorted(held)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, own in parts.items():
        io.save_weights({k: held[k] for k in own}, folder / file)
    told = {"metadata": {}, "weight_map": {k: file for file, own in parts.items() for k in own}}
    io.write_json(folder / "own.safetensors.index.json", told)
    change(folder / "config.json", transformers_weights="own.safetensors.index.json")
    assert difference(folder) < 1e-4
    io.save_weights({k: held[k] + 1 for k in names}, folder / "b.safetensors")
    refused(folder, "another part of the weights holds too")


@pytest.mark.parametrize("named", ["../other.safetensors", "gone.safetensors", "", 7, "other.bin"])
def test_config_names_no_file_of_the_folder(folder: Path, named: Any) -> None:
    io.save_weights(decoy(folder), folder.parent / "other.safetensors")
    torch.save(decoy(folder), folder / "other.bin")
    change(folder / "config.json", transformers_weights=named)
    refused(folder, "transformers_weights", "no safetensors file of the folder")


def test_weights_of_a_variant_are_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    refused(folder, "model.fp16.safetensors", "variant=", "rename it to model.safetensors")


def test_a_distributed_checkpoint_goes_before_all_weights(folder: Path) -> None:
    name = "shard-00000-model-00000-of-00001.safetensors"
    io.save_weights(decoy(folder), folder / name)
    refused(folder, name, "distributed checkpoint")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_are_rounded_as_the_config_says(folder: Path, dtype: str) -> None:
    plain = ours(folder)[0]
    change(folder / "config.json", dtype=dtype)
    transformers: Any = pytest.importorskip("transformers")
    theirs = transformers.AutoModel.from_pretrained(folder).state_dict()
    clip: Any = checkpoints.load(str(folder))
    assert torch.equal(clip.model.visual.proj.T, theirs["visual_projection.weight"].float())
    assert not torch.equal(ours(folder)[0], plain)


def as_theirs(folder: Path) -> torch.dtype:
    """The dtype of the model that transformers loads, once clipvet's weights are seen to be the same."""
    transformers: Any = pytest.importorskip("transformers")
    net, clip = transformers.AutoModel.from_pretrained(folder), checkpoints.load(str(folder))
    theirs = net.state_dict()
    assert torch.equal(clip.model.visual.proj.T, theirs["visual_projection.weight"].float())
    assert torch.equal(clip.model.ln_final.bias, theirs["text_model.final_layer_norm.bias"].float())
    return net.dtype


def test_the_dtype_of_weights_whose_config_names_none(folder: Path) -> None:
    """transformers 5 takes that of the first one by name, or what the index says: one small tensor rounds the model."""
    held = io.load_weights(folder / "model.safetensors")
    for name in ("logit_scale", "visual_projection.weight"):
        io.save_weights(held | {name: held[name].bfloat16()}, folder / "model.safetensors")
        assert as_theirs(folder) == (torch.bfloat16 if name == "logit_scale" else torch.float32)
    (folder / "model.safetensors").unlink()
    torch.save({"x": held["logit_scale"].half()} | held, folder / "pytorch_model.bin")
    refused(folder, "unexpected: x")
    torch.save({"logit_scale": held["logit_scale"].half()} | {k: v for k, v in held.items() if k != "logit_scale"},
               folder / "pytorch_model.bin")  # fmt: skip
    assert as_theirs(folder) == torch.float16
    (folder / "pytorch_model.bin").unlink()
    io.save_weights(held, folder / "a.safetensors")
    index = {"metadata": {"dtype": "bfloat16"}, "weight_map": dict.fromkeys(held, "a.safetensors")}
    io.write_json(folder / "model.safetensors.index.json", index)
    assert as_theirs(folder) == torch.bfloat16
    change(folder / "config.json", dtype="half")
    assert as_theirs(folder) == torch.float16
    change(folder / "config.json", dtype="int8")
    refused(folder, "config.json has the weights as 'int8'")


def test_position_ids_that_older_versions_would_use(folder: Path) -> None:
    held = io.load_weights(folder / "model.safetensors")
    name = "text_model.embeddings.position_ids"
    io.save_weights(held | {name: torch.arange(16)[None]}, folder / "model.safetensors")
    assert difference(folder) < 1e-4
    io.save_weights(held | {name: torch.arange(16).flip(0)[None]}, folder / "model.safetensors")
    refused(folder, "position_ids")


def test_adapters(folder: Path, tmp_path: Path) -> None:
    told = {"peft_type": "LORA", "base_model_name_or_path": "openai/clip-vit-base-patch32"}
    change(folder / "adapter_config.json", **told)
    refused(folder, "adapter_config.json (LORA)", "merge the adapter first")
    refused(f"transformers:{folder}", "merge the adapter first")
    (tmp_path / "alone").mkdir()
    change(tmp_path / "alone" / "adapter_config.json", **told)
    refused(tmp_path / "alone", "is an adapter (LORA) for 'openai/clip-vit-base-patch32'", "merge it into its base")


def test_an_adapter_beside_open_clips_model(tmp_path: Path) -> None:
    checkpoints.save(checkpoints.load("shapes-vit"), tmp_path / "m", {})
    change(tmp_path / "m" / "adapter_config.json", peft_type="LORA")
    refused(tmp_path / "m", "merge the adapter first")
    refused(f"local-dir:{tmp_path / 'm'}", "a file that takes part in loading was changed, added or removed")
    (tmp_path / "m" / "card.json").unlink()
    assert checkpoints.load(f"local-dir:{tmp_path / 'm'}").layout == "open_clip"  # which puts no adapter on


@pytest.mark.parametrize(
    ("file", "words"),
    [
        *((name, {"auto_map": {"AutoModel": "evil.Evil"}}) for name in deployed.CODE),
        *((k.file, {k.key: {"quant_method": "awq"}}) for k in deployed.KEYS if k.fix),
        ("config.json", {"vision_config": {**made.SIZES, "quantization_config": {"quant_method": "awq"}}}),
        ("processor_config.json", {"image_processor": {"auto_map": {"AutoImageProcessor": "evil.Evil"}}}),
    ],
)
def test_keys_that_steer_a_library_elsewhere(folder: Path, file: str, words: dict[str, Any]) -> None:
    change(folder / file, **words)
    key = next(k for k in ("quantization_config", "auto_map", *words) if k in json.dumps(words))
    refused(folder, file, key)
    change(folder / file, **dict.fromkeys(words))


def test_the_table_names_each_file_once() -> None:
    names = [f.name for f in deployed.FILES]
    assert len(names) == len(set(names))
    assert {k.file for k in deployed.KEYS} <= set(names)


# 2. how pictures are prepared

DARK = {"image_mean": [0.9] * 3, "image_std": [0.2] * 3}


def test_the_new_processor_goes_before_the_old(folder: Path) -> None:
    before = ours(folder)[0]
    change(folder / "processor_config.json", processor_class="CLIPProcessor")  # as version 4 writes it
    assert difference(folder) < 1e-4
    change(folder / "processor_config.json", image_processor=PROCESSOR | DARK)
    assert difference(folder) < 1e-4
    assert (ours(folder)[0] - before).abs().max() > 1e-3
    change(folder / "processor_config.json", image_processor=None)
    assert difference(folder) < 1e-4


@pytest.mark.parametrize("name", ["CLIPImageProcessor", "CLIPImageProcessorFast", "SiglipImageProcessor"])
def test_defaults_are_those_of_the_processor(folder: Path, name: str) -> None:
    (folder / "preprocessor_config.json").unlink()
    size = {"size": SQUARE} if "Siglip" in name else {"size": {"shortest_edge": 32}, "crop_size": SQUARE}
    change(folder / "preprocessor_config.json", image_processor_type=name, **size)
    assert difference(folder) < 1e-4


def test_processors_that_are_not_read(folder: Path) -> None:
    change(folder / "preprocessor_config.json", image_processor_type="ViTImageProcessor")
    refused(folder, "preprocessor_config.json", "'ViTImageProcessor'")
    change(folder / "preprocessor_config.json", **PROCESSOR, do_pad=True)
    refused(folder, "do_pad")
    change(folder / "processor_config.json", image_processor=[1])
    refused(folder, "processor_config.json", "no JSON object")


# 3. folders of both layouts


@pytest.fixture
def both(folder: Path, tmp_path: Path) -> Path:
    """One model in both layouts, as LAION publishes them."""
    clip: Any = checkpoints.load(str(folder))
    clip.layout, clip.files = "open_clip", {}
    checkpoints.save(clip, tmp_path / "open", {})
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        (tmp_path / "open" / name).rename(folder / name)
    return folder


def test_both_layouts_of_one_model(both: Path) -> None:
    clip = checkpoints.load(str(both))
    assert clip.layout == "open_clip"
    assert difference(both) < 1e-4


@pytest.mark.parametrize("what", ["weights", "one number", "preparations of pictures", "activation", "no model"])
def test_both_layouts_of_two_models(both: Path, what: str) -> None:
    held = io.load_weights(both / "model.safetensors")
    if what == "weights":
        io.save_weights(decoy(both), both / "model.safetensors")
    elif what == "one number":  # random pictures and captions would not find it
        held["text_model.embeddings.token_embedding.weight"][40000] += 1
        io.save_weights(held, both / "model.safetensors")
        what = "weights"
    elif what == "activation":
        told = json.loads((both / "config.json").read_text())
        halves = {k: told[k] | {"hidden_act": "gelu"} for k in ("vision_config", "text_config")}
        change(both / "config.json", **halves)
        what = "features"
    elif what == "no model":
        change(both / "config.json", model_type="bert")
        what = "cannot be compared"
    else:
        change(both / "preprocessor_config.json", image_mean=[0.4] * 3)
    refused(both, what, f"local-dir:{both}", f"transformers:{both}")
    assert checkpoints.load(f"local-dir:{both}").layout == "open_clip"
    if what != "cannot be compared":
        assert difference(both, f"transformers:{both}") < 1e-4


def test_a_repository_of_both_layouts_names_the_half_that_is_taken(both: Path, monkeypatch: Any, caplog: Any) -> None:
    import huggingface_hub
    import open_clip.factory as factory

    def here(repo: str, filename: str = "open_clip_model.safetensors", **_: Any) -> str:
        return str(both / filename)

    monkeypatch.setattr(factory, "download_pretrained_from_hf", here)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, repo: [p.name for p in both.iterdir()])
    assert checkpoints.load("hf-hub:some/one").layout == "open_clip"
    assert "hf-hub:some/one holds open_clip's model, which is taken, and transformers' model" in caplog.text
    caplog.clear()
    (both / "model.safetensors").unlink()
    checkpoints.load("hf-hub:some/one")
    assert not caplog.records


# 4. cards cover every file that takes part in loading


@pytest.mark.parametrize("name", [f.name for f in deployed.FILES if f.name not in ("open_clip_model.safetensors",)])
def test_a_file_added_later_breaks_the_card(name: str, tmp_path: Path) -> None:
    for at in ("card.json", "open_clip_config.json", "open_clip_model.safetensors"):
        (tmp_path / at).write_text("{}")
    held = weights.config_hash(tmp_path, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "notes.txt").write_text("more")
    assert weights.config_hash(tmp_path, tmp_path / "open_clip_model.safetensors") == held
    (tmp_path / name).write_text('{"more": 1}')
    assert weights.config_hash(tmp_path, tmp_path / "open_clip_model.safetensors") != held


def test_a_card_of_a_folder_whose_weights_are_changed_by_another_file(folder: Path, tmp_path: Path) -> None:
    checkpoints.save(checkpoints.load(str(folder)), tmp_path / "out", {})
    assert difference(tmp_path / "out") < 1e-4
    (tmp_path / "out" / "pytorch_model.bin").write_bytes(b"more")
    refused(tmp_path / "out", "a file that takes part in loading was changed, added or removed")


def test_prompts_are_bound_to_how_their_base_reads(trained: Any, tmp_path: Path, clipvet: Any) -> None:
    """The base's weights stay as they are, and its card is gone; its pictures are prepared in another way."""
    checkpoints.save(trained, tmp_path / "p" / "base", {})
    base: Any = checkpoints.load(str(tmp_path / "p" / "base"))
    checkpoints.save(begin(base, "", 2, 0.1, None, Rng(0)), tmp_path / "p", {})
    checkpoints.load(str(tmp_path / "p"))
    assert clipvet("verify", tmp_path / "p").code == 0
    (tmp_path / "p" / "base" / "card.json").unlink()
    config = tmp_path / "p" / "base" / "open_clip_config.json"
    told = json.loads(config.read_text())
    for key, other in (("mean", [0.9] * 3), ("resize_mode", "squash")):
        change(config, preprocess_cfg=told["preprocess_cfg"] | {key: other})
        refused(tmp_path / "p", "reads pictures or captions in another way", key.removeprefix("resize_"))
        assert clipvet("verify", tmp_path / "p").code == 2
    change(config, **told)
    checkpoints.load(str(tmp_path / "p"))


# 5. temperatures


@pytest.mark.parametrize(
    ("value", "words"),
    [(17.0, ("exponentiated", "its logarithm, 2.833")), (100.0, ("exponentiated", "4.605")), (5.0, ("ln 100",)),
     (1e4, ("overflows",))],
)  # fmt: skip
def test_a_temperature_that_cannot_be(folder: Path, value: float, words: tuple[str, ...]) -> None:
    held = io.load_weights(folder / "model.safetensors")
    io.save_weights(held | {"logit_scale": torch.tensor(value)}, folder / "model.safetensors")
    refused(folder, "logit_scale", *words)


def test_temperatures_that_can_be(folder: Path, tmp_path: Path) -> None:
    held = io.load_weights(folder / "model.safetensors")
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        most = torch.tensor(100.0).log().to(dtype)
        io.save_weights(held | {"logit_scale": most}, folder / "model.safetensors")
        assert float(checkpoints.load(str(folder)).logit_scale.detach()) == pytest.approx(100, rel=0.03)
    sig = made.write(tmp_path / "sig", "siglip", "gelu")
    io.save_weights(sig | {"logit_scale": torch.tensor([4.7653])}, tmp_path / "sig" / "model.safetensors")
    assert checkpoints.load(str(tmp_path / "sig")).logit_scale > 100
    io.save_weights(sig | {"logit_scale": torch.tensor([117.3])}, tmp_path / "sig" / "model.safetensors")
    refused(tmp_path / "sig", "exponentiated")


# 8. wrappers, and files that are no weights


WRAPPED = {
    "compiled": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "ddp compiled": lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
    "fsdp": lambda s: {f"_fsdp_wrapped_module.{k.replace('resblocks.0.', 'resblocks.0._checkpoint_wrapped_module.')}": v
                       for k, v in s.items()},
    "lightning": lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}, "epoch": 3},
    "model": lambda s: {"model": s, "optimizer": {"state": {}, "param_groups": []}},
    "model_state_dict": lambda s: {"model_state_dict": s},
    "deepspeed": lambda s: {"module": {f"module.{k}": v for k, v in s.items()}, "dp_world_size": 8},
    "averaged": lambda s: {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in s.items()}},
}  # fmt: skip
DOUBLED = {
    "several keys (state_dict, state_dict_ema)": lambda s: {"state_dict": s, "state_dict_ema": s},
    "several keys (model, ema)": lambda s: {"model": s, "ema": s},
    "with and without a wrapper's prefix": lambda s: s | {f"_orig_mod.{k}": v for k, v in s.items()},
    "under the prefix 'student.', 'teacher.'": lambda s: {f"{p}.{k}": v for p in ("student", "teacher")
                                                          for k, v in s.items()},
    "under the prefix 'ema_model.'": lambda s: s | {f"ema_model.{k}": v for k, v in s.items()},
}  # fmt: skip


@pytest.mark.parametrize("how", WRAPPED)
def test_wrappers_are_taken_off(how: str, trained: Any, tmp_path: Path) -> None:
    torch.save(WRAPPED[how](dict(trained.model.state_dict())), tmp_path / "w.pt")
    again: Any = checkpoints.load("shapes-vit", str(tmp_path / "w.pt"), rng=Rng(6))
    assert all(torch.equal(v, again.model.state_dict()[k]) for k, v in trained.model.state_dict().items())


@pytest.mark.parametrize("words", DOUBLED)
def test_two_models_in_one_file_are_named(words: str, trained: Any, tmp_path: Path) -> None:
    torch.save(DOUBLED[words](dict(trained.model.state_dict())), tmp_path / "w.pt")
    with pytest.raises(UserError) as e:
        checkpoints.load("shapes-vit", str(tmp_path / "w.pt"))
    assert words in str(e.value), str(e.value)


@pytest.mark.parametrize("how", ["compiled", "lightning", "model", "averaged"])
def test_transformers_takes_no_wrappers_off(how: str, folder: Path) -> None:
    held = WRAPPED[how](io.load_weights(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    torch.save(held, folder / "pytorch_model.bin")
    refused(folder, "pytorch_model.bin", "inside a wrapper", "random")


@pytest.mark.parametrize(
    ("name", "held", "words"),
    [
        (
            "model.safetensors",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
            ("Git LFS", "git lfs pull"),
        ),
        ("pytorch_model.bin", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", ("Git LFS",)),
        ("pytorch_model.bin", b"\n<!DOCTYPE html><html>", ("web page", "download")),
        ("model.safetensors", b"<html><body>404", ("web page",)),
    ],
)
def test_files_that_are_no_weights(folder: Path, name: str, held: bytes, words: tuple[str, ...]) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(held)
    refused(folder, name, *words)


def test_weights_under_another_suffix(folder: Path) -> None:
    held = io.load_weights(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, "safetensors file under another suffix", "rename it to .safetensors")
    torch.save(held, folder / "model.safetensors")
    refused(folder, "a pickle under the suffix of safetensors", "rename it to .pt")


def test_torchscript_archives_heads_and_quantised_weights(trained: Any, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as z:  # as torch.jit.save writes it
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            z.writestr(f"script/{name}", b"N.")
    state = dict(trained.model.state_dict())
    torch.save(state | {"classifier.weight": torch.zeros(2)}, tmp_path / "head.pt")
    torch.save(state | {"visual.proj.absmax": torch.zeros(2)}, tmp_path / "quantised.pt")
    for name, words in (("script", "torch.jit.load"), ("head", "a classifier"), ("quantised", "quantised weights")):
        with pytest.raises((UserError, Unsupported)) as e:
            checkpoints.load("shapes-vit", str(tmp_path / f"{name}.pt"))
        assert words in str(e.value), str(e.value)

"""What an attacker puts beside the files that are looked at, beyond `test_deployed.py`: read as deployed or refused."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from test_deployed import PROCESSOR, change, decoy, difference, refused
from test_deployed import folder as folder

from clipvet import io
from clipvet.errors import UserError
from clipvet.models import checkpoints, tokenizers
from clipvet.models.class_prompts import begin
from clipvet.rng import Rng


@pytest.fixture
def worded(folder: Path) -> Path:
    """The folder with CLIP's own vocabulary, without a tokenizer.json."""
    for name, held in tokenizers.files_of(tokenizers.own(16)).items():
        (folder / name).write_bytes(held)
    assert not isinstance(checkpoints.load(str(folder)).tokenizer, tokenizers.Foreign)
    return folder


@pytest.mark.parametrize("name", ["tekken.json", "tiktoken.model", "tokenizer.model.v3", "my tokenizer.model"])
def test_files_that_transformers_takes_for_the_vocabulary(name: str, worded: Path) -> None:
    """It looks for a part of a file's name, and takes that file in place of vocab.json."""
    (worded / name).write_bytes((worded / "vocab.json").read_bytes())
    refused(worded, name, "no tokenizer.json", "remove or rename it")


def test_a_sentencepiece_model_goes_before_the_vocabulary(worded: Path) -> None:
    (worded / "tokenizer.model").write_bytes(b"other")
    clip: Any = checkpoints.load(str(worded))
    assert isinstance(clip.tokenizer, tokenizers.Foreign)  # not CLIP's own, although vocab.json is
    with pytest.raises(UserError, match="tokenizer"):
        clip.tokenize(["a cat"])


def test_prompts_beside_a_whole_model(folder: Path, tmp_path: Path, clipvet: Any) -> None:
    """Stock libraries deploy that model, and clipvet would judge the prompts on the model in base/."""
    clean: Any = checkpoints.load("shapes-vit", rng=Rng(5))
    checkpoints.save(clean, tmp_path / "p" / "base", {})
    checkpoints.save(begin(clean, "", 2, 0.1, None, Rng(0)), tmp_path / "p", {})
    checkpoints.load(str(tmp_path / "p"))
    for path in folder.iterdir():
        path.rename(tmp_path / "p" / path.name)
    refused(tmp_path / "p", "whole model (config.json)", "keep them in two folders")
    assert clipvet("inspect", "--model", tmp_path / "p").code == 2


@pytest.mark.parametrize(
    ("part", "name"),
    [("vision_cfg", {"timm_model_name": "hf-hub:some/one"}), ("text_cfg", {"hf_model_name": "hf-hub:some/one"}),
     ("text_cfg", {"hf_model_name": "."})],
)  # fmt: skip
def test_a_tower_that_is_described_elsewhere(part: str, name: dict[str, str], tmp_path: Path) -> None:
    checkpoints.save(checkpoints.load("shapes-vit"), tmp_path / "m", {})
    (tmp_path / "m" / "card.json").unlink()
    told = json.loads((tmp_path / "m" / "open_clip_config.json").read_text())
    told["model_cfg"][part] |= name
    io.write_json(tmp_path / "m" / "open_clip_config.json", told)
    refused(tmp_path / "m", "takes the architecture of a tower from", "no part of the checkpoint")


def test_where_transformers_4_deploys_another_model(folder: Path, caplog: Any) -> None:
    io.save_weights(decoy(folder), folder / "other.safetensors")
    change(folder / "config.json", transformers_weights="other.safetensors")
    change(folder / "processor_config.json", image_processor=PROCESSOR)
    assert difference(folder) < 1e-4
    assert "transformers 4 would take the weights in model.safetensors" in caplog.text
    assert "preprocessor_config.json" not in caplog.text  # says the same
    caplog.clear()
    change(folder / "config.json", transformers_weights=None)
    change(folder / "processor_config.json", image_processor=PROCESSOR | {"image_mean": [0.9] * 3})
    assert difference(folder) < 1e-4
    assert "transformers 4 would take preprocessor_config.json, which prepares" in caplog.text


@pytest.mark.parametrize("words", [{"image_std": [1e-30] * 3}, {"image_mean": [1e38] * 3}])
def test_colours_that_leave_no_picture(words: dict[str, Any], folder: Path) -> None:
    """All features would be NaN, and all pictures of the first class."""
    change(folder / "preprocessor_config.json", **words)
    refused(folder, "mean and std are for no pictures")


def test_colours_for_pixels_up_to_255_are_said(folder: Path, caplog: Any) -> None:
    change(folder / "preprocessor_config.json", image_mean=[127.5] * 3, image_std=[127.5] * 3)
    with caplog.at_level(logging.WARNING):
        assert difference(folder) < 1e-4
    assert "divide mean and std by 255" in caplog.text


def test_an_index_whose_part_is_missing(folder: Path) -> None:
    held = io.load_weights(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    io.write_json(folder / "model.safetensors.index.json", {"weight_map": dict.fromkeys(held, "a.safetensors")})
    refused(folder, "model.safetensors.index.json names a.safetensors, which is not there")


@pytest.mark.parametrize("also", [True, False])
def test_weights_under_open_clips_names_in_a_folder_of_transformers(also: bool, folder: Path) -> None:
    """transformers passes over names that it does not know. Judged, they would be a decoy for those that it loads."""
    other: Any = checkpoints.load(str(folder)).model.state_dict()
    held = io.load_weights(folder / "model.safetensors") if also else {}
    io.save_weights({**other, **held}, folder / "model.safetensors")
    refused(folder, "unexpected: ln_final.bias", "open_clip's names, which transformers passes over")


def test_wrappers_of_any_name_around_one_model(tmp_path: Path) -> None:
    state = dict(checkpoints.load("shapes-vit", rng=Rng(5)).model.state_dict())
    under = {p: {f"{p}{k}": v for k, v in state.items()} for p in ("net.", "clip_model.", "visual.")}
    for held in (under["net."], {"state_dict": under["clip_model."]}, state | {"epoch": 3, "arch": "ViT"}):
        torch.save(held, tmp_path / "w.pt")
        again: Any = checkpoints.load("shapes-vit", str(tmp_path / "w.pt"), rng=Rng(6))
        assert all(torch.equal(v, again.model.state_dict()[k]) for k, v in state.items())
    for held, words in (
        ({"state_dict": state | {"epoch": 3}, "ema": state}, "several keys (state_dict, ema)"),
        (under["net."] | under["clip_model."], "under the prefix 'net.', 'clip_model.'"),
        (under["net."] | {"loss.weight": torch.ones(2)}, "under the prefix 'net.'"),
        ({"module": {}, "ds_version": "0.1"}, "a part of DeepSpeed's ZeRO"),
        ({k: torch.empty(0) for k in state}, "its weights are empty"),
        ({k: v for k, v in state.items() if k.startswith("visual.")}, "a picture tower alone"),
        ({k[7:]: v for k, v in state.items() if k.startswith("visual.")}, "a picture tower alone"),
    ):
        torch.save(held, tmp_path / "w.pt")
        with pytest.raises(UserError) as e:
            checkpoints.load("shapes-vit", str(tmp_path / "w.pt"))
        assert words in str(e.value), str(e.value)


def test_a_wrapper_in_a_wrapper_in_transformers_layout(folder: Path) -> None:
    held = io.load_weights(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({"epoch": 3, "checkpoint": {"model": held}}, folder / "pytorch_model.bin")
    refused(folder, "the key 'checkpoint'", "random")

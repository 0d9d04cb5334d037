"""Composed folders: clipvet's features are those of the stock library that loads the folder, or the folder is refused.

`python tests/composed.py 5000` does the same for more folders.
"""

import functools
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import composed
import open_clip
import pytest
from hypothesis import HealthCheck, given, settings

transformers: Any = pytest.importorskip("transformers")


@pytest.fixture(autouse=True, scope="module")
def quick() -> Any:
    """Loading is cheap: open_clip's tokenizer is built once, and nothing is printed."""
    with pytest.MonkeyPatch.context() as patch:
        plain = open_clip.factory.SimpleTokenizer
        patch.setattr(open_clip.factory, "SimpleTokenizer", functools.cache(plain))
        patch.setenv("HF_HUB_OFFLINE", "1")
        before = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity(50)
        yield
        transformers.logging.set_verbosity(before)


@pytest.mark.filterwarnings("ignore")
def test_equal_to_stock_or_refused() -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=500, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))  # pyright: ignore
    @given(composed.folders())
    def each(told: dict[str, Any]) -> None:
        with tempfile.TemporaryDirectory() as root:
            seen[composed.compare(Path(root), told)] += 1

    each()
    assert sum(seen.values()) >= 500, seen
    assert min(seen["equal"], seen["refused"]) >= 0.25 * sum(seen.values()), f"the property would say little: {seen}"


def test_a_decoy_would_be_noticed(tmp_path: Path, monkeypatch: Any) -> None:
    """The comparison finds other weights, other colours and other words."""
    plain = told()
    assert composed.compare(tmp_path / "plain", plain) == "equal"
    real = composed.by_transformers
    for k, change in enumerate(({"preprocessor": {"image_mean": [0.1] * 3}}, {"both towers": {"hidden_act": "gelu"}})):
        other = tmp_path / f"other{k}" / "m"
        composed.write(other, plain | change)
        monkeypatch.setattr(composed, "by_transformers", lambda _, seen, said, at=other: real(at, seen, said))
        with pytest.raises(AssertionError, match="features differ"):
            composed.compare(tmp_path / f"decoy{k}", plain)


def told(**changes: Any) -> dict[str, Any]:
    """A plain folder, but for these changes."""
    plain: dict[str, Any] = {"layout": "transformers", "main": "model.safetensors", "around": "nothing", "places": []}
    plain |= {key: {} for key in ("config", "vision", "text", "both towers", "preprocessor", "tokenizer")}
    plain |= {"processor": None, "whole": "byte pairs", "beside": [], "captions": ["a cat"], "sides": (21, 37)}
    return plain | {"mode": "RGB", "prepares": {}, "modelled": {}} | changes


DECOYS = {  # the scanned file stays as it is; what an attacker may do beside it
    "other weights by config": told(places=["other.safetensors"], config={"transformers_weights": "other.safetensors"}),
    "weights of a variant": told(
        places=["model.fp16.safetensors"], config={"transformers_weights": "model.fp16.safetensors"}),
    "weights by an index": told(
        places=["own.safetensors.index.json"], config={"transformers_weights": "own.safetensors.index.json"}),
    "a pickle by config": told(places=["pytorch_model.bin"], config={"transformers_weights": "pytorch_model.bin"}),
    "a distributed checkpoint": told(places=["shard-00000-model-00000-of-00001.safetensors"]),
    "safetensors before a pickle": told(main=None, places=["model.safetensors.index.json"]),
    "open_clip's weights beside": told(layout="both", places=["open_clip_pytorch_model.bin"]),
    "an adapter beside": told(beside=["adapter_config.json"]),
    "an adapter beside open_clip's": told(layout="open_clip", beside=["adapter_config.json"]),
    "both layouts": told(layout="both"),
    "rounded weights": told(config={"dtype": "bfloat16"}),
    "quantisation": told(config={"quantization_config": {"quant_method": "awq", "bits": 4}}),
    "code of its own": told(config={"auto_map": {"AutoModel": "e.E"}}),
    "code of the tokenizer's": told(tokenizer={"auto_map": {"AutoTokenizer": ["e.E", None]}}),
    "code of the processor's": told(preprocessor={"auto_map": {"AutoImageProcessor": "e.E"}}),
    "an older half of the config": told(config={"vision_config_dict": {"num_attention_heads": 4}}),
    "another activation": told(**{"both towers": {"hidden_act": "gelu"}}),
    "other heads": told(vision={"num_attention_heads": 4}),
    "another epsilon": told(vision={"layer_norm_eps": 1e-3}),
    "an early end of text": told(text={"eos_token_id": 5}),
    "a new processor": told(processor={"image_mean": [0.9] * 3}),
    "sizes read as squares": told(preprocessor={"default_to_square": True, "size": 16}),
    "a longest edge": told(preprocessor={"size": {"shortest_edge": 16, "longest_edge": 20}}),
    "pixels up to 255": told(preprocessor={"do_rescale": False}),
    "no normalisation": told(preprocessor={"do_normalize": None}),
    "another processor": told(preprocessor={"processor_class": "AltCLIPProcessor"}),
    "padding at the left": told(tokenizer={"padding_side": "left"}),
    "captions cut short": told(tokenizer={"model_max_length": 4}),
    "no end of text": told(whole="no end", captions=["a b"]),
    "another end of text": told(tokenizer={"eos_token": "b"}),
    "a word that is special": told(tokenizer={"additional_special_tokens": ["cat"]}),
    "a tokenizer by config": told(config={"tokenizer_class": "BertTokenizer"}),
    "position ids": told(around="permuted"),
    "weights twice": told(layout="open_clip", around="twice"),
}  # fmt: skip
FOUND = dict.fromkeys(DECOYS, "refused")
FOUND |= dict.fromkeys(
    ["other weights by config", "weights of a variant", "weights by an index", "safetensors before a pickle",
     "rounded weights", "another activation", "other heads", "another epsilon", "a new processor", "pixels up to 255",
     "no normalisation", "a word that is special"], "equal",
)  # fmt: skip
FOUND |= dict.fromkeys(["no end of text", "another end of text"], "captions refused")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DECOYS)
def test_no_decoy_is_judged_silently(name: str, tmp_path: Path) -> None:
    """It is read as it is deployed, or refused; a stock library that fails deploys nothing."""
    assert composed.compare(tmp_path, DECOYS[name]) == FOUND[name]

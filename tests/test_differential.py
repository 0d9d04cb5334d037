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
seen: Counter[str] = Counter()


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
@settings(max_examples=500, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))  # pyright: ignore
@given(composed.folders())
def test_equal_to_stock_or_refused(told: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as root:
        seen[composed.compare(Path(root), told)] += 1


def test_enough_folders_are_read_and_enough_refused() -> None:
    """Else the property would say little."""
    assert sum(seen.values()) >= 500, seen
    assert min(seen["equal"], seen["refused"]) >= 0.25 * sum(seen.values()), seen


def test_a_decoy_would_be_noticed(tmp_path: Path, monkeypatch: Any) -> None:
    """The comparison finds other weights, other colours and other words."""
    plain: dict[str, Any] = {"layout": "transformers", "main": "model.safetensors", "around": "nothing", "places": []}
    plain |= {key: {} for key in ("config", "vision", "text", "both towers", "preprocessor", "tokenizer")}
    plain |= {"processor": None, "whole": "byte pairs", "beside": [], "captions": ["a cat"], "sides": (16, 16)}
    plain |= {"mode": "RGB"}
    assert composed.compare(tmp_path / "plain", plain) == "equal"
    real = composed.by_transformers
    for k, change in enumerate(({"preprocessor": {"image_mean": [0.1] * 3}}, {"both towers": {"hidden_act": "gelu"}})):
        other = tmp_path / f"other{k}" / "m"
        composed.write(other, plain | change)
        monkeypatch.setattr(composed, "by_transformers", lambda _, seen, said, at=other: real(at, seen, said))
        with pytest.raises(AssertionError, match="features differ"):
            composed.compare(tmp_path / f"decoy{k}", plain)

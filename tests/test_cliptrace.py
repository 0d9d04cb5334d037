"""CLIPTrace's format and score, against the challenge's rules written out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clipvet import io
from clipvet.errors import UserError
from clipvet.models import checkpoints
from clipvet.rng import Rng
from clipvet.scan import cliptrace


def features(n: int, d: int = 6) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(n, d, generator=Rng(4).generator()), dim=1)


def test_the_folder_is_a_submission(tmp_path: Path) -> None:
    z = features(3)
    cliptrace.add(tmp_path, "model_0002", False, z[0])
    cliptrace.add(tmp_path, "model_0001", True, 3 * z[1])
    cliptrace.add(tmp_path, "model_0003", True, None)
    told = json.loads((tmp_path / "predictions.json").read_text())
    assert told == {
        "version": "1.0",
        "predictions": [
            {"model_id": "model_0001", "label": 1, "embedding_file": "embeddings/model_0001.pt"},
            {"model_id": "model_0002", "label": 0, "embedding_file": None},
            {"model_id": "model_0003", "label": 1, "embedding_file": None},
        ],
    }
    assert [type(p["label"]) for p in told["predictions"]] == [int] * 3  # a boolean is refused there
    assert [p.name for p in (tmp_path / "embeddings").iterdir()] == ["model_0001.pt"]
    held = torch.load(tmp_path / "embeddings/model_0001.pt", weights_only=True)  # noqa: TID251 as the challenge does
    assert (held.dtype, held.shape, held.device.type) == (torch.float32, (6,), "cpu")
    assert abs(float(held.norm()) - 1) <= 1e-4
    assert torch.allclose(held, z[1], atol=1e-6)
    cliptrace.add(tmp_path, "model_0001", False, None)  # a second verdict on the same model
    assert [p.label for p in cliptrace.read(tmp_path)] == [0, 0, 1]
    assert not list((tmp_path / "embeddings").iterdir())


def test_the_score(tmp_path: Path) -> None:
    """Four models: found with cosine 0.8, found with a negative cosine, missed, and a false alarm."""
    true = features(3, 4)
    aside = torch.linalg.qr(torch.stack([true[0], torch.ones(4)]).T)[0][:, 1]
    cliptrace.add(tmp_path, "a", True, 0.8 * true[0] + 0.6 * aside)
    cliptrace.add(tmp_path, "b", True, -true[1])
    cliptrace.add(tmp_path, "c", False, true[2])
    cliptrace.add(tmp_path, "d", True, true[0])
    got = cliptrace.score(tmp_path, {"a": 5 * true[0], "b": true[1], "c": true[2], "d": None})
    assert got == pytest.approx(100 * (0.30 * 2 / 4 + 0.70 * np.mean([0.8, 0.0, 0.0])), abs=1e-3)
    cliptrace.add(tmp_path, "d", False, None)
    for k, name in enumerate("abc"):
        cliptrace.add(tmp_path, name, True, true[k])
    assert cliptrace.score(tmp_path, dict(zip("abcd", [*true, None]))) == pytest.approx(100.0, abs=1e-3)


def test_bad_submissions(tmp_path: Path) -> None:
    z = features(1)[0]
    cliptrace.add(tmp_path, "a", True, z)
    with pytest.raises(UserError, match="first: b"):
        cliptrace.score(tmp_path, {"a": z, "b": None})
    with pytest.raises(UserError, match=r"shape \(4,\)"):
        cliptrace.score(tmp_path, {"a": z[:4]})
    torch.save(2 * z, tmp_path / "embeddings/a.pt")
    with pytest.raises(UserError, match="length 2, not 1"):
        cliptrace.score(tmp_path, {"a": z})
    with pytest.raises(UserError, match="not finite"):
        cliptrace.add(tmp_path, "a", True, z * float("nan"))
    (tmp_path / "predictions.json").write_text(
        '{"version": "1.0", "predictions": [{"model_id": "a", "label": 1, "embedding_file": "../a.pt"}]}'
    )
    with pytest.raises(UserError, match="outside"):
        cliptrace.score(tmp_path, {"a": z})
    for wrong in ('{"version": "2"}', '{"version": "1.0", "predictions": [{"model_id": "a", "label": true}]}'):
        (tmp_path / "predictions.json").write_text(wrong)
        with pytest.raises(UserError, match="not in CLIPTrace's format"):
            cliptrace.add(tmp_path, "a", True, z)


def test_model_ids() -> None:
    assert cliptrace.name_of("runs/my victim") == "my_victim"
    assert cliptrace.name_of("models/model_0001/") == "model_0001"
    assert cliptrace.name_of("hf-hub:org/name") == "name"


def test_inspect_exports(clipvet: Any, clip: Any, tmp_path: Path) -> None:
    """The verdict on the text tower of random weights: undecided, so clean; a feature, but for another verdict."""
    checkpoints.save(clip, tmp_path / "my model", {})
    args = ("inspect", "--model", tmp_path / "my model", "--classes", "shapes", "--n", 8, "--method", "assimilation")
    args += ("--set", "searches=1", "--set", "steps=1", "--out", tmp_path / "out")
    said = clipvet(*args, "--export", "cliptrace", tmp_path / "sub")
    assert said.code == 4, said.err
    assert "after one hidden word" in said.out
    assert "Undecided" in said.out
    assert "stands there as clean" in said.err
    assert [p.model_dump() for p in cliptrace.read(tmp_path / "sub")] == [
        {"model_id": "my_model", "label": 0, "embedding_file": None}
    ]
    feature = io.load_weights(tmp_path / "out/feature.safetensors")["feature"]
    assert abs(float(feature.norm()) - 1) <= 1e-4
    again = clipvet(*args, "--export", "cliptrace", tmp_path / "other")  # the verdict is there already
    assert (again.code, len(cliptrace.read(tmp_path / "other"))) == (4, 1)
    wrong = clipvet(*args, "--export", "csv", tmp_path / "sub")
    assert (wrong.code, "use --export cliptrace DIR" in wrong.err) == (2, True)

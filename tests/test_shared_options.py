"""The options that all commands share: what each says, and that a rehearsal and --json do what they promise."""

import inspect
import json
import os
from pathlib import Path
from typing import Any

import pytest
import typer

from clipvet import cli
from clipvet.commands import _shared
from clipvet.data.decoding import workers_for
from clipvet.models import checkpoints

TRAIN = ["--set", "epochs=1", "--set", "batch=32"]
ATTACK = ["--set", "training.epochs=1", "--set", "training.batch=32"]
DATA = ["--model", "shapes-vit", "--data", "shapes", "--n", 64]


def flags_of(name: str) -> set[str]:
    command = typer.main.get_command(cli.app).commands[name]  # pyright: ignore[reportAttributeAccessIssue]
    return {flag for p in command.params for flag in p.opts}


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_them(name: str) -> None:
    found = flags_of(name)
    assert {"--quiet", "--json"} <= found
    assert (name in _shared.TALK) != ({"--device", "--workers"} <= found)
    assert (name in _shared.PLANNED) == ("--dry-run" in found)


def test_a_command_that_plans_calls_rehearse() -> None:
    import importlib

    for name in cli.COMMANDS:
        text = inspect.getsource(importlib.import_module(f"clipvet.commands.{name}"))
        assert (name in _shared.PLANNED) == ("rehearse(" in text or "tell_plan(" in text), name


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", *DATA, *TRAIN], "train on 64 pairs: about "),
        (["clean", *DATA, "--method", "par", *TRAIN], "clean on 64 pairs: about "),
        (["attack", *DATA, "--target", "star", *ATTACK], "attack on 64 pairs: about "),
        (["filter", *DATA, "--method", "cosine"], "score 64 pairs: about "),
        (["filter", "--data", "shapes", "--n", 300], "train a model on 300 of the pairs, at most: about "),
        (["detect", *DATA[:2], "--pictures", "shapes", "--n", 40, "--classes", "shapes"], "judge 40 pictures: about "),
        (["tune", *DATA[:4], "--method", "cocoop", "--shots", 1], "tune on 12 pairs: "),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else "",
)  # fmt: skip
def test_a_rehearsal_says_time_and_memory_and_does_nothing(
    words: list[Any], says: str, clipvet: Any, tmp_path: Path
) -> None:
    out = tmp_path / ("o.parquet" if words[0] in ("filter", "detect") else "out")
    done = clipvet(*words, "--out", out, "--dry-run")
    assert done.code == 0, done.err
    assert says in done.out
    assert "in all about" in done.out
    assert "GiB or more" in done.out
    assert [p for p in tmp_path.iterdir() if p.name != "cache"] == []


def test_a_model_that_would_be_converted_is_left_alone(clipvet: Any, tmp_path: Path, clip: Any) -> None:
    checkpoints.save(clip, tmp_path / "m", {"role": "base"})
    done = clipvet("convert", tmp_path / "m", tmp_path / "new", "--layout", "openai", "--dry-run")
    assert (done.code, "in another layout into" in done.out, "GiB or more" in done.out) == (0, True, True), done.err
    assert not (tmp_path / "new").exists()


def test_one_object_of_json(clipvet: Any, tmp_path: Path) -> None:
    out = tmp_path / "s.parquet"
    done = clipvet("filter", *DATA, "--method", "random", "--out", out, "--json", "--quiet")
    told = json.loads(done.out)
    assert (done.code, told["exit_code"], told["command"], told["scored"]) == (0, 0, "filter", 64)
    assert done.err == ""
    assert any("wrote" in line for line in told["said"])
    told = json.loads(clipvet("list", "triggers", "--json").out)
    assert any("patch" in line for line in told["printed"])
    told = json.loads(clipvet("filter", *DATA, "--out", tmp_path / "t.parquet", "--json").out)  # undecided
    assert told["exit_code"] == 4
    assert told["decided"] is False
    done = clipvet("train", *DATA, *TRAIN, "--out", tmp_path / "m", "--json", "--task", "shapes")
    assert 0 <= json.loads(done.out)["measured"]["clean_accuracy"]["value"] <= 1
    plan = json.loads(clipvet("evaluate", "--model", "shapes-vit", "--task", "shapes", "--dry-run", "--json").out)
    assert plan["plan"][0]["what"] == "measure on 2,000 pictures of 12 classes"
    assert plan["memory_gib"] > 0


def test_device_and_workers(clipvet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str | None, int]] = []
    held = _shared.with_shared(
        "train", lambda model: seen.append((os.environ.get("ACCELERATE_TORCH_DEVICE"), workers_for(5000)))
    )
    monkeypatch.setenv("CLIPVET_WORKERS", "")
    held(model="m", device="cpu", workers=3)
    assert seen == [("cpu", 3)]
    assert "ACCELERATE_TORCH_DEVICE" not in os.environ
    assert workers_for(10) == 0
    for wrong, said in (("disk", "--device disk is no device; give cpu"), ("cuda:77", "is not on this machine")):
        code, _, err = clipvet("evaluate", "--model", "shapes-vit", "--task", "shapes", "--device", wrong)
        assert code == 2
        assert said in err

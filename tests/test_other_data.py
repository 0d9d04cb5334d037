"""Data as other people keep it: read as its owner means it, or refused with the way out."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clipvet.data import folders
from clipvet.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: Any) -> None:
    import datasets.config as config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")


def task_at(root: Path, names: list[str], each: int = 2) -> Path:
    """A task's folder: one folder of that many pictures for each name."""
    for k, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for j in range(each):
            Image.new("RGB", (8, 8), (20 * k, 60 * j % 256, 0)).save(root / name / f"{j}.png")
    return root


def refused(call: Any, *words: str) -> None:
    with pytest.raises(UserError) as e:
        call()
    told = str(e.value)
    assert "\n" not in told
    assert all(w in told for w in words), told


EVALUATE = ["evaluate", "--model", "shapes-vit", "--task"]


def test_unreadable_pictures_of_a_task_are_counted_and_refused_above_a_limit(clipvet: Any, tmp_path: Path) -> None:
    root = task_at(tmp_path / "test", ["circle", "square"], 4)
    (root / "circle" / "0.png").write_bytes(b"")
    said = clipvet(*EVALUATE, root)
    assert said.code == 2
    assert "1 of 8 pictures cannot be read, more than the limit of 1.00%" in said.err
    assert "0.png': empty (0 bytes)" in said.err
    said = clipvet(*EVALUATE, root, "--max-bad", "0.2")
    assert said.code == 0, said.err
    assert "8 pictures of 2 classes" in said.err
    assert any("unreadable" in line and "12.50 %" in line for line in said.out.splitlines())
    told = json.loads(clipvet(*EVALUATE, root, "--max-bad", "0.2", "--json").out)
    assert (told["unreadable"], told["n"], told["passed_over"]) == (0.125, 7, {})
    for path in (root / "circle").iterdir():
        path.write_bytes(b"junk")
    said = clipvet(*EVALUATE, root, "--max-bad", "0.9")
    assert (said.code, "no picture of circle can be read" in said.err) == (2, True)


def test_files_of_a_task_that_are_passed_over_are_counted_and_refused_above_a_limit(
    clipvet: Any, tmp_path: Path
) -> None:
    root = task_at(tmp_path / "test", ["circle", "square"], 4)
    for note in ("0.txt", "0.json", ".DS_Store", "Thumbs.db"):
        (root / "circle" / note).write_text("no picture")
    assert json.loads(clipvet(*EVALUATE, root, "--json").out)["passed_over"] == {}
    for name in ("4.heic", "5.HEIC", "6"):
        (root / "circle" / name).write_bytes(b"a picture, perhaps")
    said = clipvet(*EVALUATE, root)
    assert said.code == 2
    assert "3 files that may be pictures are not read (2 .heic, 1 no suffix)" in said.err
    told = json.loads(clipvet(*EVALUATE, root, "--max-bad", "0.3", "--json").out)
    assert told["passed_over"] == {".heic": 2, "no suffix": 1}
    assert told["unreadable"] == 0
    (root / "only").mkdir()
    (root / "only" / "1.heic").write_bytes(b"a picture, perhaps")
    refused(lambda: folders.open_task(str(root)), "only", "no pictures (3 .heic", "are not read")

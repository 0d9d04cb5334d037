"""The gate finds what would run, loads nothing, and lets clean checkpoints pass."""

import argparse
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import corpus
import hf as made
import pytest
import torch

from clipvet import io
from clipvet.errors import UserError
from clipvet.models import checkpoints, gate

pytest.importorskip("picklescan")


@pytest.fixture
def good() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.ones(3, 2), "a.bias": torch.zeros(3)}


def test_clean_checkpoints_pass(tmp_path: Path, clip: Any, good: dict[str, torch.Tensor]) -> None:
    checkpoints.save(clip, tmp_path / "open_clip", {})
    made.write(tmp_path / "transformers")
    torch.save({"state_dict": good, "args": argparse.Namespace(lr=1.0), "epoch": 3}, tmp_path / "released.pt")
    io.save_weights(good, tmp_path / "plain.pt")
    torch.save(good, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "README.md").write_text("cat\nno pickle, though it begins like one\nRead on.")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "here").symlink_to("open_clip")  # its files are looked into where they lie
    assert gate.scan(tmp_path) == []
    assert gate.main([str(tmp_path)]) == 0


BOMBS = ("bomb.pt", "bomb-old.bin", "bomb-bare.pth", "bomb-four.pt", "bomb-as.safetensors", "bomb-key.pt", "eval.pt")


def test_what_would_run_is_found_and_does_not_run(tmp_path: Path, good: dict[str, torch.Tensor]) -> None:
    flag, seen = tmp_path / "it-ran", set()
    for name, held in corpus.checkpoints(good, flag):
        path = tmp_path / name
        path.write_bytes(held)
        found = gate.scan(path)
        assert all(t.file == name and t.severity in ("dangerous", "suspicious") for t in found)
        assert found or name != "hub.pt"  # picklescan calls it suspicious
        if any(t.severity == "dangerous" for t in found):
            seen.add(name)
        path.unlink()
    assert {*BOMBS, "script.pt"} <= seen
    assert not seen & {"nan.pt", "list.pt", "words.pt", "complex.pt", "int.safetensors"}
    assert not flag.exists()


def test_what_would_eat_all_memory_is_not_scanned(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(gate, "MOST_STEPS", 10_000)
    steps = b"N" * 20_000 + b"."
    (tmp_path / "long.pkl").write_bytes(steps)
    (tmp_path / "second.bin").write_bytes(b"N." + steps)
    for name, kind in (("held.pt", zipfile.ZIP_STORED), ("packed.pt", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(tmp_path / name, "w", kind) as z:
            z.writestr("m/data.pkl", steps)
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("m/data.pkl", bytes(gate.MOST_UNPACKED + 1))
    found = {t.file: t.what for t in gate.scan(tmp_path) if "not scanned" in t.what}
    assert found.keys() == {"long.pkl", "second.bin", "held.pt", "packed.pt", "bomb.pt"}
    assert "packs 67,108,865 bytes" in found["bomb.pt"]


def test_what_lies_beside_the_weights(tmp_path: Path) -> None:
    made.write(tmp_path / "m")
    told = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(told | {"auto_map": {"AutoModel": "evil.Evil"}}))
    (tmp_path / "m" / "evil.py").write_text("import os")
    (tmp_path / "m" / "weights.h5").write_bytes(b"\x89HDF")
    (tmp_path / "m" / "notes").write_bytes(corpus.pickle.dumps(corpus.Evil(tmp_path / "it-ran")))  # a pickle by no name
    os.symlink("/etc/passwd", tmp_path / "m" / "link.txt")
    os.mkfifo(tmp_path / "m" / "pipe.bin")
    found = {t.file: t.severity for t in gate.scan(tmp_path / "m")}
    assert found == {
        "config.json": "dangerous", "evil.py": "suspicious", "weights.h5": "unscanned", "notes": "dangerous",
        "link.txt": "suspicious", "pipe.bin": "suspicious",
    }  # fmt: skip


@pytest.mark.parametrize("key", ["trust_remote_code", "auto_map"])
def test_a_config_that_asks_for_code(tmp_path: Path, clip: Any, key: str) -> None:
    checkpoints.save(clip, tmp_path, {})
    told = json.loads((tmp_path / "open_clip_config.json").read_text())
    told["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {key: True, "clean": "canonicalize"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(told))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"a": [{key: {"AutoTokenizer": ["evil.Evil", None]}}]}))
    found = [(t.file, t.severity, key in t.what) for t in gate.scan(tmp_path)]
    assert found == [(name, "dangerous", True) for name in ("open_clip_config.json", "tokenizer_config.json")]


@pytest.mark.parametrize("name", ["a.pkl", "a.joblib", "a.pt", "a.npy", "a", "a.zip"])
def test_a_pickle_before_an_archive(tmp_path: Path, name: str) -> None:
    evil = corpus.pickle.dumps(corpus.Evil(tmp_path / "it-ran"))
    (tmp_path / name).write_bytes(evil + corpus.zipped({"a.txt": b"hi"}))
    found = gate.scan(tmp_path / name)
    assert ("dangerous", True) in [(t.severity, "mkdir" in t.what) for t in found]
    assert "an archive behind other bytes" in [t.what for t in found]


@pytest.mark.parametrize("name", ["a.txt", "a", "a.json", "a.own"])
def test_a_pickle_of_the_oldest_kind_by_another_name(tmp_path: Path, name: str) -> None:
    whole = corpus.pickle.dumps(corpus.Evil(tmp_path / "it-ran"), 0)
    for held in (whole, whole[:-1]):  # it runs before it breaks off
        (tmp_path / name).write_bytes(held)
        assert "dangerous" in {t.severity for t in gate.scan(tmp_path / name)}
    (tmp_path / name).write_bytes(corpus.pickle.dumps(corpus.Called(torch.hub.load, "a"), 0))
    assert "suspicious" in {t.severity for t in gate.scan(tmp_path / name)}


def test_what_lies_within_an_archive(tmp_path: Path) -> None:
    evil = corpus.Evil(tmp_path / "it-ran")
    inner = corpus.zipped({"data.pkl": corpus.pickle.dumps(evil)})
    for name, held in (("a.zip", inner), ("b.PT", corpus.torched(evil)), ("c", inner), ("d.bin", b"cos\nmkdir\n")):
        (tmp_path / "a.zip").write_bytes(corpus.zipped({"x.txt": b"", name: held}))
        assert [(t.severity, name in t.what) for t in gate.scan(tmp_path / "a.zip")] == [("suspicious", True)]


def test_what_cannot_be_looked_into_is_a_finding(tmp_path: Path) -> None:
    later = bytearray(corpus.torched({"a": 1}))
    later[later.find(b"PK\x01\x02") + 6] = 99  # needs a reader of version 9.9
    (tmp_path / "later.pt").write_bytes(later)
    (tmp_path / "cut").write_bytes(corpus.zipped({"a": b"b"})[:-30])
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    (tmp_path / "out").symlink_to("/etc")
    found = gate.scan(tmp_path)
    assert [(t.file, t.severity) for t in found] == [(n, "suspicious") for n in ("cut", "later.pt", "loop.txt", "out")]
    assert "leads out of the folder" in found[-1].what


def test_exit_codes(tmp_path: Path, capsys, monkeypatch) -> None:
    (tmp_path / "a.pt").write_bytes(corpus.torched(corpus.Evil(tmp_path / "it-ran")))
    assert gate.main([str(tmp_path / "a.pt")]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [(t["severity"], "mkdir" in t["what"]) for t in told["findings"]] == [("dangerous", True)]
    assert gate.main([]) == 2
    assert gate.main([str(tmp_path / "gone")]) == 2
    monkeypatch.setitem(__import__("sys").modules, "picklescan.scanner", None)
    with pytest.raises(UserError, match=r"pip install picklescan"):
        gate.scan(tmp_path)

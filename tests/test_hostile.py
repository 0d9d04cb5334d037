"""Files that want to hurt: each ends in one clear sentence or a counted skip; none runs, hangs or leaves a torso."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import corpus
import hf as made
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_cli import own_cache as own_cache

from clipvet import io
from clipvet.data import answer_key, decoding, tables
from clipvet.errors import UserError
from clipvet.models import cards, checkpoints, weights
from clipvet.pages import report
from clipvet.triggers.patch import Patch
from clipvet.types import Backdoor, Geometry

few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def sentence(call: Any, *args: Any) -> str:
    """What a UserError says; empty where none was raised."""
    try:
        call(*args)
    except UserError as e:
        told = str(e)
        assert told
        assert "\n" not in told
        assert len(told) < 1000
        return told
    return ""


def test_three_hundred_malformed_pictures(tmp_path: Path) -> None:
    names = corpus.pictures(tmp_path)
    assert len(names) >= 300
    source, slowest, bad = decoding.FilePictures(names, tmp_path), 0.0, 0
    for k in range(len(names)):
        began = time.monotonic()
        images, why = source.fetch([k], Geometry(32))
        slowest = max(slowest, time.monotonic() - began)
        bad += len(why)
        assert len(images) + len(why) == 1
        assert all("\n" not in reason and len(reason) <= 200 for _, reason in why)
        assert images.isfinite().all()
        assert not len(images) or 0 <= images.min() <= images.max() <= 1
    assert bad > 200  # some of the torn ones still open
    assert slowest < 10
    assert not (tmp_path / "it-ran").exists()


def test_a_jpeg_that_is_decoded_over_and_over(tmp_path: Path) -> None:
    held = corpus.scans(120)
    assert len(held) < 10_000
    (tmp_path / "a.jpg").write_bytes(held)
    images, why = decoding.FilePictures(["a.jpg"], tmp_path).fetch([0], Geometry(16))
    assert (len(images), "120 scans, more than 100" in why[0][1]) == (0, True)
    (tmp_path / "a.jpg").write_bytes(corpus.scans(90) + 200 * b"\xff\xda")  # what follows the picture is none of it
    assert len(decoding.FilePictures(["a.jpg"], tmp_path).fetch([0], Geometry(16))[0]) == 1


@given(held=st.binary(max_size=300), kind=st.sampled_from(corpus.KINDS), at=st.integers(0, 400))
@few
def test_any_bytes_as_a_picture(tmp_path: Path, held: bytes, kind: str, at: int) -> None:
    whole = corpus.picture(kind, 12)
    (tmp_path / "a.img").write_bytes(whole[:at] + held + whole[at + len(held) :])
    images, why = decoding.FilePictures(["a.img"], tmp_path).fetch([0], Geometry(16))
    assert len(images) + len(why) == 1


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A folder of open_clip's layout."""
    folder = tmp_path_factory.mktemp("small")
    checkpoints.save(checkpoints.load("shapes-vit"), folder / "m", {})
    (folder / "m" / "card.json").unlink()
    return folder / "m"


def test_hostile_checkpoints(tmp_path: Path, small: Path) -> None:
    good, flag, seen = io.load_weights(small / weights.WEIGHTS), tmp_path / "it-ran", 0
    for name, held in corpus.checkpoints(good, flag):
        path = tmp_path / name
        path.write_bytes(held)
        began = time.monotonic()
        told = sentence(checkpoints.load, "shapes-vit", str(path))
        assert str(path) in told, name
        assert time.monotonic() - began < 20, name
        assert not flag.exists(), name
        path.unlink()
        seen += 1
    assert seen >= 40
    assert [p.name for p in tmp_path.iterdir()] == []


def test_checkpoints_that_are_no_plain_files(tmp_path: Path, small: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    os.symlink("/dev/zero", tmp_path / "zero.pt")
    os.symlink("loop.pt", tmp_path / "loop.pt")
    (tmp_path / "folder.pt").mkdir()
    for name in ("pipe.pt", "zero.pt", "loop.pt", "folder.pt"):
        assert sentence(checkpoints.load, "shapes-vit", str(tmp_path / name))
    os.symlink("/etc/passwd", tmp_path / "passwd.safetensors")
    told = sentence(checkpoints.load, "shapes-vit", str(tmp_path / "passwd.safetensors"))
    assert "root:" not in told
    assert told


def test_hostile_configs(tmp_path: Path, small: Path) -> None:
    usual = json.loads((small / "open_clip_config.json").read_text())

    def told(config: Any) -> str:
        folder = tmp_path / "m"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(small, folder)
        held = config if isinstance(config, bytes) else json.dumps(config).encode()
        (folder / "open_clip_config.json").write_bytes(held)
        return sentence(checkpoints.load, str(folder))

    for name, held in corpus.JSONS.items():
        assert told(held), name
    for tower, key, value in (
        ("vision_cfg", "width", 2**14), ("vision_cfg", "layers", 10**6), ("text_cfg", "vocab_size", 10**9),
        ("text_cfg", "context_length", 10**8), ("vision_cfg", "image_size", 10**6), ("vision_cfg", "width", "96"),
        ("text_cfg", "layers", -3), ("vision_cfg", "patch_size", 0), ("vision_cfg", "head_width", 0),
        ("vision_cfg", "timm_model_name", "../../evil"), ("text_cfg", "hf_model_name", "../../evil"),
        ("vision_cfg", "width", [96]), ("text_cfg", "heads", 5), ("vision_cfg", "own", 1),
        ("vision_cfg", "layers", [10**5] * 4), ("text_cfg", "hf_tokenizer_name", "/etc"),
    ):  # fmt: skip
        changed = json.loads(json.dumps(usual))
        changed["model_cfg"][tower][key] = value
        began = time.monotonic()
        assert told(changed), (tower, key, value)
        assert time.monotonic() - began < 20
    for pre in ({"mean": "x"}, {"std": [1]}, {"interpolation": "evil"}, {"mean": [float("nan")] * 3}):
        assert told(usual | {"preprocess_cfg": usual["preprocess_cfg"] | pre}), pre
    folder = tmp_path / "m"
    (folder / "open_clip_config.json").write_text(json.dumps(usual))
    assert sentence(checkpoints.load, str(folder)) == ""
    os.mkfifo(folder / "card.json")
    assert "no plain file" in sentence(checkpoints.load, str(folder))


@pytest.mark.parametrize("changes", [
    {"embed_dim": 2**27}, {"vision_cfg": {"mlp_ratio": 1e6}}, {"text_cfg": {"mlp_ratio": 1e6}},
    {"vision_cfg": {"image_size": 2**15, "patch_size": 2**15}},
    {"vision_cfg": {"timm_model_name": "eva02_enormous_patch14_clip_224"}},
    {"vision_cfg": {"timm_model_name": "clipvet_siglip_w64_d12_h4_m100000000_p16_i32_none", "timm_pool": "map"}},
    {"custom_text": True, "multimodal_cfg": {"width": 16384, "layers": 100, "heads": 128}},
    {"custom_text": True, "multimodal_cfg": {"width": 1, "layers": 10**7, "heads": 1}},
], ids=str)  # fmt: skip
def test_a_config_of_a_far_larger_model_costs_no_memory(
    tmp_path: Path, small: Path, monkeypatch: Any, changes: dict[str, Any]
) -> None:
    shutil.copytree(small, tmp_path / "m")
    told = json.loads((tmp_path / "m" / "open_clip_config.json").read_text())
    for key, value in changes.items():
        told["model_cfg"][key] = told["model_cfg"].get(key, {}) | value if isinstance(value, dict) else value
    (tmp_path / "m" / "open_clip_config.json").write_text(json.dumps(told))
    only_without_memory(monkeypatch)
    assert "far larger" in sentence(checkpoints.load, str(tmp_path / "m"))


def only_without_memory(monkeypatch: Any) -> None:
    """open_clip builds nothing but models on meta."""
    import open_clip

    real = open_clip.create_model

    def build(*args: Any, device: str, **kwargs: Any) -> Any:
        assert device == "meta"
        return real(*args, device=device, **kwargs)

    monkeypatch.setattr(open_clip, "create_model", build)


def test_a_transformers_folder_of_a_far_larger_model_costs_no_memory(tmp_path: Path, monkeypatch: Any) -> None:
    tower = {"hidden_size": 64, "intermediate_size": 2**17, "num_hidden_layers": 256, "num_attention_heads": 1}
    told = made.config("clip", "gelu")
    for part in ("vision_config", "text_config"):
        told[part] |= tower
    io.save_weights(
        {"visual_projection.weight": torch.zeros(7_500_000, dtype=torch.int8)}, tmp_path / "model.safetensors"
    )
    (tmp_path / "config.json").write_text(json.dumps(told))
    only_without_memory(monkeypatch)
    assert "far larger" in sentence(checkpoints.load, str(tmp_path))


def test_hostile_prompt_folders(tmp_path: Path) -> None:
    io.save_weights({"prompts": torch.zeros(1, 2, 96)}, tmp_path / "m" / "prompts.safetensors")
    for name, held in corpus.JSONS.items():
        (tmp_path / "m" / "card.json").write_bytes(held)
        assert sentence(checkpoints.load, str(tmp_path / "m")), name
    for base in (str(tmp_path / "m"), f"local-dir:{tmp_path / 'm'}", 5, ["a"], None, "a" * 5000, "nul\0", ""):
        (tmp_path / "m" / "card.json").write_text(json.dumps({"base": base}))
        assert "put the base model into" in sentence(checkpoints.load, str(tmp_path / "m")), base
    os.symlink(".", tmp_path / "m" / "base")
    assert "holds prompts too" in sentence(checkpoints.load, str(tmp_path / "m"))


def test_hostile_transformers_folders(tmp_path: Path) -> None:
    made.write(tmp_path / "m")
    usual = (tmp_path / "m" / "config.json").read_bytes()
    for file in ("config.json", "preprocessor_config.json"):
        for name, held in corpus.JSONS.items():
            (tmp_path / "m" / file).write_bytes(held)
            told = sentence(checkpoints.load, str(tmp_path / "m"))
            assert told or (file, name) in {
                ("preprocessor_config.json", k) for k in ("object", "nan", "wrong", "types")
            }, (file, name)
        (tmp_path / "m" / file).unlink()
        (tmp_path / "m" / "config.json").write_bytes(usual)
    for name, held in corpus.JSONS.items():  # a tokenizer that is no tokenizer is not CLIP's
        (tmp_path / "m" / "tokenizer.json").write_bytes(held)
        clip = checkpoints.load(str(tmp_path / "m"))
        assert sentence(clip.tokenize, ["a"]), name
    os.truncate(tmp_path / "m" / "tokenizer.json", 2**27)
    assert "larger than" in sentence(checkpoints.load, str(tmp_path / "m"))


def test_malformed_tables(tmp_path: Path, clipvet) -> None:
    seen = 0
    for name, held in corpus.TABLES.items():
        for suffix in (".csv", ".tsv", ".parquet"):
            path = tmp_path / f"{name}{suffix}"
            path.write_bytes(held)
            told = sentence(lambda p: tables.open_pairs(str(p)).at(Geometry(8))[:4], path)
            assert not told or str(path) in told, (name, suffix)
            seen += bool(told)
    assert seen >= 50
    assert not (tmp_path / "it-ran").exists()
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    assert all(sentence(tables.open_pairs, str(tmp_path / n)) for n in ("folder.csv", "pipe.csv", "gone.csv"))
    for command in ("train", "clean"):
        method = ["--method", "finetune"] if command == "clean" else []
        for name in ("empty", "ragged", "pickle", "open quote"):
            out = tmp_path / "out"
            table = tmp_path / f"{name}.csv"
            said = clipvet(command, "--model", "shapes-vit", "--data", table, "--out", out, *method)
            assert (said.code, said.err.count("clipvet: ")) == (2, 1), (command, name, said)
            assert not out.exists()
            assert not list(tmp_path.glob("out*"))


@given(held=st.binary(max_size=200))
@few
def test_any_bytes_as_a_table(tmp_path: Path, held: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(b"filepath,title\n" + held)
    sentence(lambda: tables.open_pairs(str(tmp_path / "a.csv")).at(Geometry(8))[:2])


def test_parquet_tables_of_other_kinds(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    names = pa.array(["a.png"])
    for column in (
        pa.array([b"bytes"]), pa.array([[1]]), pa.array([1.5]), pa.array([None], pa.null()), pa.array([{"a": 1}]),
        pa.array(["x"]).dictionary_encode(), pa.array([None], pa.string()),
    ):  # fmt: skip
        pq.write_table(pa.table({"filepath": names, "title": column}), path)
        told = sentence(lambda: tables.open_pairs(str(path)).at(Geometry(8))[:1])
        assert not told or "title" in told
    cut = pa.Array.from_buffers(pa.string(), 1, pa.array([b"a \xff cat"]).buffers())
    pq.write_table(pa.table({"filepath": names, "title": cut}), path)
    assert "column title is damaged" in sentence(tables.open_pairs, str(path))


@given(caption=st.text(max_size=200))
@few
def test_any_caption_becomes_tokens(clip: Any, caption: str) -> None:
    tokens = clip.tokenize([caption])
    assert tokens.shape == (1, 16)
    assert 0 <= tokens.min() <= tokens.max() < 49408


def test_a_caption_without_end_costs_no_time(clip: Any) -> None:
    began = time.monotonic()
    tokens = clip.tokenize(["x" * 10**7, "a red circle " * 10**6])
    assert time.monotonic() - began < 20
    assert torch.equal(tokens[1], clip.tokenize(["a red circle " * 100])[0])


@given(
    held=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=9), part, max_size=3),
        max_leaves=9,
    ),
    key=st.sampled_from(["weights_sha256", "measured", "seed", "task", "answer_key", "own"]),
)
@few
def test_any_json_as_a_card(tmp_path: Path, held: Any, key: str) -> None:
    (tmp_path / "card.json").write_text(json.dumps({"weights_sha256": "0" * 64, key: held}))
    sentence(cards.read, tmp_path)
    (tmp_path / "card.json").write_text(json.dumps(held))
    assert sentence(cards.read, tmp_path)


@pytest.fixture
def planted_key(tmp_path: Path) -> Path:
    key = Backdoor(Patch(size=4 / 32), "ring", np.array([3, 5]), ("a ring", "a ring"))
    answer_key.save_backdoor(key, tmp_path / "key")
    return tmp_path / "key"


def test_hostile_answer_keys(planted_key: Path, monkeypatch: Any) -> None:
    path = planted_key / "backdoor.json"
    usual = json.loads(path.read_text())
    assert answer_key.load_backdoor(planted_key).target == "ring"
    for name, held in corpus.JSONS.items():
        path.write_bytes(held)
        assert sentence(answer_key.load_backdoor, planted_key), name
    for changes in (
        {"trigger": "../../evil"}, {"trigger": "os"}, {"trigger": "_tensors"}, {"target": "star"}, {"seal": "0"},
        {"fields": usual["fields"] | {"size": 10**9}}, {"fields": usual["fields"] | {"size": "x"}},
        {"fields": usual["fields"] | {"position": "__import__"}}, {"fields": {"evil": 1}}, {"classes": ["a"]},
        {"more": ["x"]}, {"more": ["x"] * 100}, {"seed": 2**70}, {"fields": usual["fields"] | {"size": float("nan")}},
        {"fields": usual["fields"] | {"least": 10**9}}, {"trigger": "", "fields": {}}, {"target": "\ud800"},
        {"trigger": "wanet", "fields": {"k": 10**5}}, {"poisons": usual["poisons"] + 1},
    ):  # fmt: skip
        path.write_text(json.dumps(usual | changes))
        assert sentence(answer_key.load_backdoor, planted_key), changes
    path.write_text(json.dumps(usual | {"more": ["x"]}))
    (planted_key / "more").mkdir()
    os.symlink(planted_key, planted_key / "more" / "0")  # a key that holds itself
    assert "too many or too deep" in sentence(answer_key.load_backdoor, planted_key)
    path.write_text(json.dumps(usual))
    whole = (planted_key / "manifest.parquet").read_bytes()
    for held in (b"", whole[:-9], b"PAR1" + bytes(99) + b"PAR1", corpus.zipped({"a": b"b"})):
        (planted_key / "manifest.parquet").write_bytes(held)
        assert "manifest.parquet" in sentence(answer_key.load_backdoor, planted_key)
    other = pa.table({"id": ["x"], "row": [1], "caption": ["a"], "trigger": ["patch"], "seed": [0]})
    pq.write_table(other, planted_key / "manifest.parquet")
    assert sentence(answer_key.load_backdoor, planted_key)
    many = {"id": range(9000), "row": range(9000), "caption": ["x" * 1000] * 9000, "trigger": ["patch"] * 9000}
    pq.write_table(pa.table(many | {"seed": [0] * 9000}), planted_key / "manifest.parquet")
    path.write_text(json.dumps(usual | {"poisons": 9000}))
    monkeypatch.setattr(answer_key, "MOST", 2**22)
    assert "unfolds to more than" in sentence(answer_key.load_backdoor, planted_key)
    words = pa.DictionaryArray.from_arrays([0] * 9000, ["x" * 2**20])  # 9 GB in a few kB
    pq.write_table(pa.table(many | {"caption": words, "seed": [0] * 9000}), planted_key / "manifest.parquet")
    assert "unfolds to more than" in sentence(answer_key.load_backdoor, planted_key)
    path.write_text(json.dumps(usual | {"poisons": 1}))
    lone = {"id": [3], "row": [3], "caption": ["x" * 2**22], "trigger": ["patch"], "seed": [0]}
    pq.write_table(pa.table(lone), planted_key / "manifest.parquet")
    assert "holds more than" in sentence(answer_key.load_backdoor, planted_key)
    whole = pa.table(lone | {"caption": ["a ring"]})
    cut = pa.Array.from_buffers(pa.string(), 1, pa.array([b"a \xff ring"]).buffers())
    for column, told in ((cut, "UTF8"), (pa.array([None], pa.string()), "no caption"), (pa.array([["a"]]), "caption")):
        pq.write_table(whole.set_column(2, "caption", column), planted_key / "manifest.parquet")
        assert told in sentence(answer_key.load_backdoor, planted_key)
    pq.write_table(whole, planted_key / "manifest.parquet")
    path.write_text(json.dumps(usual | {"target": "\ud800", "poisons": 1}))
    assert "surrogate" in sentence(answer_key.load_backdoor, planted_key)
    drawn = {"trigger": "blended", "fields": {"pattern": "text", "text": "a\n" * 1000}}
    path.write_text(json.dumps(usual | drawn))
    assert "more than 1000 characters" in sentence(answer_key.load_backdoor, planted_key)
    path.write_text(json.dumps(usual))
    (planted_key / "manifest.parquet").unlink()
    os.mkfifo(planted_key / "manifest.parquet")
    assert sentence(answer_key.load_backdoor, planted_key)


EVIL = "</script></title></style><script>alert(1)</script><img src=x onerror=alert(2)>\"'><svg onload=alert(3)>{{7*7}}"


def test_no_word_of_a_file_becomes_a_tag(tmp_path: Path) -> None:
    """Every free field of a report at once; the pages of `clipvet filter` have their own such test."""
    from test_report import fill, rows

    fill(tmp_path, rows(), EVIL, EVIL)
    told = json.loads((tmp_path / "gallery.json").read_text())
    (tmp_path / "gallery.json").write_text(json.dumps(told | {"target": EVIL, "trigger": EVIL}))
    words = {"commands": [EVIL], "settings": {EVIL: EVIL}, "hardware": EVIL, "versions": {EVIL: EVIL}}
    commands = json.loads((tmp_path / "commands.json").read_text()) | words
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    changed = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    free = {"recipe": EVIL, "attack": EVIL, "config": EVIL, "model": EVIL, "data": EVIL, "versions": {EVIL: EVIL}}
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(row | free) + "\n" for row in changed))
    page = report.build(tmp_path).read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert not any(tag in page for tag in ("<script>alert", "<img src=x", "<svg onload"))
    assert "{{7*7}}" in page


def test_hostile_reports(tmp_path: Path) -> None:
    from test_report import fill, rows

    (tmp_path / "run").mkdir()
    fill(tmp_path / "run", rows())
    gallery = json.loads((tmp_path / "run" / "gallery.json").read_text())
    (tmp_path / "secret.png").write_bytes(corpus.picture("PNG"))
    os.mkfifo(tmp_path / "run" / "pipe.png")
    (tmp_path / "run" / "bomb.png").write_bytes(corpus.png(60_000, 60_000))
    for name in ("../secret.png", str(tmp_path / "secret.png"), "pipe.png", "bomb.png", "gone.png", "results.jsonl"):
        for pair in gallery["pictures"]:
            pair["clean"] = name
        (tmp_path / "run" / "gallery.json").write_text(json.dumps(gallery))
        assert sentence(report.build, tmp_path / "run"), name
    for name, held in corpus.JSONS.items():
        (tmp_path / "run" / "results.jsonl").write_bytes(held)
        assert sentence(report.build, tmp_path / "run"), name

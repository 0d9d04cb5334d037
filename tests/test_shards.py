"""Tar shards and folders of HF datasets: the same pairs as a table gives, at random, and hostile ones counted."""

import copy
import io as memory
import json
import os
import struct
import tarfile
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import corpus
import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_hostile import sentence

from clipvet.data import shard_index, shards, tables, tars
from clipvet.data.worlds.shapes import Shapes
from clipvet.errors import UserError
from clipvet.types import Geometry, Pairs

G = Geometry(32)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")  # pyright: ignore


def toy(n: int, seed: int = 3) -> tuple[list[bytes], list[str]]:
    """PNG bytes and captions of the embedded world."""
    rows = Shapes(seed=seed).pairs(n)[:]
    held = []
    for image in rows.images:
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        shards_image(pixels, buffer := memory.BytesIO())
        held.append(buffer.getvalue())
    return held, rows.captions


def shards_image(pixels: np.ndarray, out: memory.BytesIO) -> None:
    from PIL import Image

    Image.fromarray(pixels).save(out, "PNG")


def add(tar: tarfile.TarFile, name: str, held: bytes, **fields: object) -> None:
    told = tarfile.TarInfo(name)
    told.size = len(held)
    for key, value in fields.items():
        setattr(told, key, value)
    tar.addfile(told, memory.BytesIO(held))


def write_shards(folder: Path, n: int = 20, per: int = 8, how: int = tarfile.PAX_FORMAT) -> tuple[str, list[str]]:
    """A brace range of shards of the embedded world; every third caption is in a .json."""
    pictures, captions = toy(n)
    folder.mkdir(parents=True, exist_ok=True)
    count = -(-n // per)
    for k in range(count):
        with tarfile.open(folder / f"{k:03}.tar", "w", format=how) as tar:
            for row in range(k * per, min(n, (k + 1) * per)):
                add(tar, f"{row:06}.png", pictures[row], mtime=1.5 + row)  # a fraction makes a pax header
                add(tar, f"{row:06}.cls", b"7")
                if row % 3:
                    add(tar, f"{row:06}.txt", f"{captions[row]}\n".encode())
                    add(tar, f"{row:06}.json", json.dumps({"caption": "another", "own": f"own {row}"}).encode())
                else:
                    add(tar, f"{row:06}.json", json.dumps({"caption": captions[row], "own": f"own {row}"}).encode())
    return f"{folder}/{{000..{count - 1:03}}}.tar", captions


def same(pairs: Pairs, captions: list[str]) -> None:
    want, rows = Shapes(seed=3).pairs(len(captions))[:], np.random.default_rng(0).permutation(len(captions))
    got = pairs.at(G)[rows]
    assert got.bad == ()
    assert got.ids.tolist() == rows.tolist()
    assert got.captions == [captions[r] for r in rows]
    assert torch.allclose(got.images, want.images[rows], atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize("how", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_shards_give_the_pairs_of_their_world(tmp_path: Path, how: int) -> None:
    spec, captions = write_shards(tmp_path / "s", how=how)
    pairs = tables.open_pairs(spec)
    assert len(pairs) == 20
    same(pairs, captions)
    assert list(pairs.captions[3:5]) == captions[3:5]
    assert pairs.caption(np.int64(19)) == captions[19]
    assert pairs.take(np.array([17, 2])).at(G)[:].ids.tolist() == [17, 2]
    assert tables.open_pairs(str(tmp_path / "s")).fingerprint == pairs.fingerprint  # the folder of them
    assert tables.open_pairs(spec, caption_key="own").caption(4) == "own 4"
    assert pairs.pictures.key(19) == "002.tar/000019"  # pyright: ignore[reportAttributeAccessIssue]
    twice = tables.open_pairs(f"{tmp_path}/s/000.tar::{tmp_path}/s/000.tar")
    assert twice.pictures.key(9) == f"{tmp_path}/s/000.tar/000001"  # pyright: ignore[reportAttributeAccessIssue]
    assert len(twice) == 16
    there = copy.deepcopy(pairs.at(G))  # as to a loader process
    assert there[[3, 9]].captions == [captions[3], captions[9]]


def test_braces_and_joins() -> None:
    assert shards.expand("a/{08..11}.tar") == ["a/08.tar", "a/09.tar", "a/10.tar", "a/11.tar"]
    assert shards.expand("{x,y}-{0..1}.tar::z.tar") == ["x-0.tar", "x-1.tar", "y-0.tar", "y-1.tar", "z.tar"]
    assert shards.named("a.tar::b.tar")
    assert not shards.named("a.csv")
    for spec in ("{0..99999999999}.tar", "{5..4}.tar", "{0..999}{0..999}{0..999}.tar"):
        with pytest.raises(UserError, match="shards"):
            shards.expand(spec)


def test_headers_are_read_once_and_again_where_a_shard_changed(tmp_path: Path, monkeypatch) -> None:
    spec, captions = write_shards(tmp_path / "s")
    read, scanned = [], shard_index._scanned

    def told(path: str, now: tuple[int, int]):
        read.append(os.path.basename(path))
        return scanned(path, now)

    monkeypatch.setattr(shard_index, "_scanned", told)
    first = tables.open_pairs(spec)
    assert read == ["000.tar", "001.tar", "002.tar"]
    assert tables.open_pairs(spec).fingerprint == first.fingerprint
    assert len(read) == 3
    with tarfile.open(tmp_path / "s/001.tar", "a") as tar:
        add(tar, "new.png", toy(1)[0][0])
        add(tar, "new.txt", b"a new pair")
    assert "changed" in first.at(G)[[9]].bad[0][1]  # the old index does not fit any more
    again = tables.open_pairs(spec)
    assert read[3:] == ["001.tar"]
    assert len(again) == 21
    assert again.caption(16) == "a new pair"
    assert again.caption(17) == captions[16]
    assert again.fingerprint != first.fingerprint
    held = (tmp_path / "s/000.tar").read_bytes()
    said = captions[0].encode()
    assert said in held
    (tmp_path / "s/000.tar").write_bytes(held.replace(said, said.upper()))  # other captions in the same places
    assert tables.open_pairs(spec).fingerprint != again.fingerprint
    (index,) = (tmp_path / "cache").rglob("*.arrow")
    index.write_bytes(index.read_bytes()[:700])
    assert len(tables.open_pairs(spec)) == 21
    before = len(read)
    another = shard_index.SCHEMA.with_metadata({"reading": "another"})
    monkeypatch.setattr(shard_index, "SCHEMA", another)  # a later clipvet
    assert len(tables.open_pairs(spec)) == 21
    assert read[before:] == ["000.tar", "001.tar", "002.tar"]
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_loader_processes_read_shards(tmp_path: Path) -> None:
    from clipvet.data.loader import loading
    from clipvet.rng import Rng

    spec, captions = write_shards(tmp_path / "s")
    pairs = tables.open_pairs(spec).at(G)
    pairs[[0]]  # a shard is open before the processes start
    steps = [np.arange(k, 20, 4) for k in range(4)]
    for rows, batch in zip(steps, loading(pairs, steps, 2, Rng(0))):
        assert batch.captions == [captions[r] for r in rows]


def hostile(folder: Path) -> dict[str, Path]:
    """Shards that want to hurt, each with two sound pairs, where there is room for them."""
    pictures, _ = toy(2)
    folder.mkdir()

    def sound(tar: tarfile.TarFile, k: int) -> None:
        add(tar, f"sound{k}.png", pictures[k])
        add(tar, f"sound{k}.txt", b"sound")

    out = {}
    for name, members in corpus.members(pictures[0]).items():
        out[name] = folder / f"{name}.tar"
        with tarfile.open(out[name], "w") as tar:
            sound(tar, 0)
            for told, held in members:
                tar.addfile(told, memory.BytesIO(held))
            sound(tar, 1)
    whole = out["traversal"].read_bytes()
    for name, held in corpus.tars(whole).items():
        out[name] = folder / f"{name}.tar"
        out[name].write_bytes(held)
    return out


REFUSED = {"empty", "text", "gzip", "zip", "noise", "first header", "no sound pair"}
PASSED = {
    "pickles": "2 pickles", "links": "4 links and special files", "devices": "3 links and special files",
    "sparse": "1 sparse files", "halves": "1 captions without a picture, 1 pictures without a caption",
    "large caption": "1 members that are too large, 1 pictures without a caption", "cut": "it is cut short",
    "cut header": "it is cut short", "torn header": "a header is damaged", "pax bomb": "a header is too large",
    "name bomb": "a header is too large", "far": "it is cut short", "negative": "a header is damaged",
    "pax digits": "a header is damaged", "pax crowd": "a header has too many records",
}  # fmt: skip


def test_hostile_shards_end_in_one_sentence_or_a_counted_skip(tmp_path: Path, monkeypatch) -> None:
    seen, said = set(), []
    log = SimpleNamespace(warning=lambda text, *words: said.append(text % words))
    monkeypatch.setattr(
        shards, "logging", SimpleNamespace(getLogger=lambda name: log)
    )  # libraries silence the real one
    for name, path in hostile(tmp_path / "s").items():
        said.clear()
        tracemalloc.start()
        told = sentence(tables.open_pairs, str(path))
        assert (name in REFUSED) == bool(told), (name, told)
        if told:
            assert str(path) in told
        else:
            pairs = tables.open_pairs(str(path))
            batch = pairs.at(G)[:]
            assert 1 <= len(pairs) <= 4, name
            assert "sound" in batch.captions, name
            assert all("\n" not in why for _, why in batch.bad), name
        assert tracemalloc.get_traced_memory()[1] < 50e6, name
        tracemalloc.stop()
        assert PASSED.get(name, "") in "".join(said), (name, said)
        seen.add(name)
    assert seen >= REFUSED | set(PASSED)
    assert not (tmp_path / "it-ran").exists()
    assert not list(tmp_path.glob("escaped*"))
    assert {p.name for p in tmp_path.iterdir()} == {"s", "cache"}


@given(held=st.binary(max_size=700), at=st.integers(0, 6000))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_in_a_shard(tmp_path: Path, held: bytes, at: int) -> None:
    whole = corpus.tarred({"a.png": b"p" * 900, "a.txt": b"one", "b.png": b"q", "b.json": b'{"caption": "two"}'})
    torn = whole[:at] + held + whole[at + len(held) :]
    try:
        rows, passed = shard_index.scan(memory.BytesIO(torn), len(torn))
    except tars.NoTar:
        return
    for _, *places in rows:
        for start, size in zip(places[::2], places[1::2]):
            assert start == -1 or 0 <= start <= start + size <= len(torn)
    assert sum(passed.values()) < 20


def test_headers_are_those_of_the_standard_library(tmp_path: Path) -> None:
    names = ["a.png", "d/" * 60 + "b.txt", "ü.txt", "n" * 300 + ".json", "e/c.jpg"]
    for how in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "a.tar", "w", format=how) as tar:
            for k, name in enumerate(names if how != tarfile.USTAR_FORMAT else [names[0], names[1], names[4]]):
                add(tar, name, bytes([k]) * (k * 511), mtime=0.5 * k, uid=2**30 if how != tarfile.USTAR_FORMAT else 0)
        with tarfile.open(tmp_path / "a.tar") as tar:
            want = [(m.name.encode(), m.offset_data, m.size) for m in tar]
        with (tmp_path / "a.tar").open("rb") as f:
            assert [(m.name, m.at, m.size) for m in tars.members(f, os.path.getsize(f.name))] == want


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("gone.tar", ["gone.tar", "No such file"]),
        ("{0..1}.tar", ["0.tar", "No such file"]),
        ("pipe.tar", ["plain file"]),
        ("folder.tar", ["plain file"]),
    ],
)
def test_shards_that_are_not_there(tmp_path: Path, spec: str, words: list[str]) -> None:
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "folder.tar").mkdir()
    with pytest.raises(UserError) as e:
        tables.open_pairs(str(tmp_path / spec))
    assert all(w in str(e.value) for w in words)


def test_captions_that_cannot_be_read_are_bad_rows(tmp_path: Path) -> None:
    pictures, _ = toy(1)
    sounds: list[bytes] = [b"{", b"[]", b'{"caption": 3}', b"[" * 10_000, b'{"caption": "good"}', b'{"text": "x"}']
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for k, held in enumerate(sounds):
            add(tar, f"{k}.png", pictures[0])
            add(tar, f"{k}.json", held)
    pairs = tables.open_pairs(str(tmp_path / "a.tar")).at(G)
    batch = pairs[:]
    assert batch.captions == ["good"]
    assert [i for i, _ in batch.bad] == [0, 1, 2, 3, 5]
    assert all("a.tar/" in why and "json" in why for _, why in batch.bad)
    assert pairs.caption(0) == ""


def test_half_a_surrogate_pair_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(corpus.tarred({"a.png": toy(1)[0][0], "a.json": b'{"caption": "a \\ud800 cat"}'}))
    pairs = tables.open_pairs(str(tmp_path / "a.tar"))
    assert pairs[:].captions == ["a ? cat"]
    pa.array(list(pairs.captions))  # as every filter and page does


def hf(folder: Path, kind: str, n: int = 20) -> tuple[str, list[str]]:
    pictures, captions = toy(n)
    rows = {"image": [{"bytes": p, "path": None} for p in pictures], "text": captions, "more": list(range(n))}
    if kind == "saved":
        features = datasets.Features(
            {"image": datasets.Image(), "text": datasets.Value("string"), "more": datasets.Value("int64")}
        )
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder, num_shards=3)
    elif kind == "bytes":
        folder.mkdir()
        pq.write_table(pa.table({**rows, "image": pictures}), folder / "all.parquet")
    else:
        (folder / "data").mkdir(parents=True)
        for k in range(2):
            part = {c: v[k * 10 : k * 10 + 10] for c, v in rows.items()}
            pq.write_table(pa.table(part), folder / f"data/train-{k}.parquet")
    return str(folder), captions


@pytest.mark.parametrize("kind", ["saved", "parquet", "bytes"])
def test_folders_of_hf_datasets(tmp_path: Path, kind: str) -> None:
    spec, captions = hf(tmp_path / kind, kind)
    pairs = tables.open_pairs(spec, image_key="image", caption_key="text")
    same(pairs, captions)
    assert pairs.name == kind
    assert tables.open_pairs(spec, image_key="image", caption_key="text").fingerprint == pairs.fingerprint
    with pytest.raises(UserError, match="it has image, text"):
        tables.open_pairs(spec)
    with pytest.raises(UserError, match="column more is int64"):
        tables.open_pairs(spec, image_key="more", caption_key="text")


def test_cells_without_bytes_are_paths_and_others_bad_rows(tmp_path: Path) -> None:
    pictures, _ = toy(1)
    (tmp_path / "f").mkdir()
    (tmp_path / "f/here.png").write_bytes(pictures[0])
    cells = [{"bytes": None, "path": "here.png"}, {"bytes": b"torn", "path": "x"}, {"bytes": None, "path": None}, None,
             {"bytes": None, "path": "/dev/zero"}, {"bytes": pictures[0], "path": "gone.png"}]  # fmt: skip
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(cells, kind), "title": ["a"] * 6}), tmp_path / "f/a.parquet")
    batch = tables.open_pairs(str(tmp_path / "f"), image_key="image").at(G)[:]
    assert batch.ids.tolist() == [0, 5]
    assert [i for i, _ in batch.bad] == [1, 2, 3, 4]


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    def refused(path: Path, *words: str) -> None:
        with pytest.raises(UserError) as e:
            tables.open_pairs(str(path), image_key="image", caption_key="text")
        assert all(w in str(e.value) for w in words), e.value
        assert "\n" not in str(e.value)

    (tmp_path / "none").mkdir()
    refused(tmp_path / "none", "neither .tar nor .parquet")
    hf(tmp_path / "splits/train", "saved")
    (tmp_path / "splits/dataset_dict.json").write_text('{"splits": ["train"]}')
    refused(tmp_path / "splits", "holds the splits train; give one")
    for held in corpus.JSONS.values():
        (tmp_path / "splits/train/state.json").write_bytes(held)
        refused(tmp_path / "splits/train", "state.json")
    hf(tmp_path / "far", "saved")
    state = json.loads((tmp_path / "far/state.json").read_text())
    (tmp_path / "outside.arrow").write_bytes((tmp_path / "far" / state["_data_files"][0]["filename"]).read_bytes())
    for name in ("../outside.arrow", 3, None):
        held = {**state, "_data_files": [{"filename": name}]}
        (tmp_path / "far/state.json").write_text(json.dumps(held))
        refused(tmp_path / "far", "does not name files of")
    datasets.Dataset.from_dict({"image": ["a", "b"], "text": ["AAAA", "BBBB"]}).save_to_disk(tmp_path / "offsets")
    (part,) = (tmp_path / "offsets").glob("*.arrow")
    for end in (3000, 10**6):  # the last caption's: beyond its file, where other memory begins
        held = bytearray(part.read_bytes())
        at = held.rfind(struct.pack("<ii", 0, 4)) + 8
        held[at : at + 4] = struct.pack("<i", end)
        (tmp_path / "offsets" / part.name).unlink()
        part.write_bytes(held)
        refused(tmp_path / "offsets", "cannot be read")
        held[at : at + 4] = struct.pack("<i", 8)
        part.unlink()
        part.write_bytes(held)
    os.mkfifo(tmp_path / "offsets" / "pipe.arrow")
    state["_data_files"] = [{"filename": "pipe.arrow"}]
    (tmp_path / "offsets/state.json").write_text(json.dumps(state))
    refused(tmp_path / "offsets", "does not name files of")
    hf(tmp_path / "packed", "saved")
    for part in (tmp_path / "packed").glob("*.arrow"):
        whole = pa.ipc.open_stream(part.read_bytes()).read_all()
        with pa.ipc.new_stream(part, whole.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(whole)
    refused(tmp_path / "packed", "cannot be read", "compressed")
    hf(tmp_path / "torn", "saved")
    for part in (tmp_path / "torn").glob("*.arrow"):
        part.write_bytes(part.read_bytes()[:100])
    refused(tmp_path / "torn", "cannot be read")

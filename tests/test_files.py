"""Tables and folders of pictures: what is delivered, what is reported as bad, what is refused."""

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from clipvet.data import decoding, folders, table_checks, tables
from clipvet.errors import UserError
from clipvet.types import Geometry


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")  # pyright: ignore


def noise(h, w, c=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (h, w, c), dtype=np.uint8)


def read(path, geometry: Geometry | None = None, **limits) -> Any:
    """The one picture, or its reason."""
    images, bad = decoding.FilePictures([path.name], path.parent, **limits).fetch([0], geometry)
    return bad[0][1] if bad else images[0]


@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("kind", ["RGB", "RGBA", "L"])
def test_equals_open_clip(tmp_path, mode, kind):
    picture = Image.fromarray(noise(50, 37, 4)).convert(kind)
    picture.save(tmp_path / "a.png")
    cfg = PreprocessCfg(size=24, resize_mode=mode, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    transform: Any = image_transform_v2(cfg, is_train=False)
    want = transform(picture)
    got = read(tmp_path / "a.png", Geometry(24, mode))
    mean, std = torch.tensor(cfg.mean)[:, None, None], torch.tensor(cfg.std)[:, None, None]
    assert torch.allclose((got - mean) / std, want, atol=1e-6)
    assert got.shape == (3, 24, 24)
    assert got.min() >= 0
    assert got.max() <= 1


def test_interpolation_follows_the_geometry(tmp_path):
    Image.fromarray(noise(50, 50)).save(tmp_path / "a.png")
    sharp, soft = (read(tmp_path / "a.png", Geometry(24, "shortest", i)) for i in ("bicubic", "bilinear"))
    assert not torch.allclose(sharp, soft, atol=0.01)


def test_colour_spaces_and_depths(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
    red = read(tmp_path / "red.jpg")
    assert red[0].min() > 0.9
    assert red[1:].max() < 0.1
    grey = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    assert torch.allclose(read(tmp_path / "deep.png"), torch.tensor(grey / 65535).float().expand(3, 8, 8), atol=1 / 255)
    Image.fromarray(noise(8, 8)).convert("P").save(tmp_path / "p.png", transparency=bytes(range(200)))
    want = Image.open(tmp_path / "p.png").convert("RGBA").convert("RGB")
    assert np.array_equal((read(tmp_path / "p.png") * 255).permute(1, 2, 0).numpy().round(), np.asarray(want))
    Image.fromarray(np.eye(8, dtype=bool)).save(tmp_path / "bits.png")
    assert torch.equal(read(tmp_path / "bits.png")[0], torch.eye(8))
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "f.tif")
    assert "mode F" in read(tmp_path / "f.tif")


def test_exif_orientation(tmp_path):
    raw = noise(8, 16)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right
    Image.fromarray(raw).save(tmp_path / "a.png", exif=exif)
    want = torch.tensor(np.rot90(raw, -1).copy()).permute(2, 0, 1) / 255
    assert torch.allclose(read(tmp_path / "a.png"), want)
    broken = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\xff\xff\xff\xff"
    Image.fromarray(raw).save(tmp_path / "b.png", exif=broken)
    assert read(tmp_path / "b.png").shape == (3, 8, 16)


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read(tmp_path / "a.gif")[:, 0, 0].tolist() == [1, 0, 0]


def huge_png(path, w, h):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


def test_bad_pictures_are_reported_and_the_rest_delivered(tmp_path):
    for name in ("good0.png", "good1.png"):
        Image.fromarray(noise(40, 40, seed=int(name[4]))).save(tmp_path / name)
    whole = (tmp_path / "good0.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "zero.jpg").touch()
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would wait for ever
    huge_png(tmp_path / "huge.png", 9000, 9000)
    huge_png(tmp_path / "bomb.png", 60000, 60000)
    Image.new("L", (1, 30000)).save(tmp_path / "thin.png")
    why = {
        "good0.png": "",
        "cut.png": "truncated",
        "zero.jpg": "0 bytes",
        "text.jpg": "not a picture",
        "script.png": "not a picture",
        "folder.jpg": "no such file",
        "pipe.jpg": "no such file",
        "good1.png": "",
        "huge.png": "9000 x 9000",
        "bomb.png": "bomb",
        "thin.png": "thin",
        "new\nline.jpg": "no such file",
        "": "no such file",
        "nul\0": "no such file",
    }
    pictures = decoding.FilePictures(list(why), tmp_path)
    images, bad = pictures.fetch(range(len(why)), Geometry(64))
    assert images.shape == (2, 3, 64, 64)
    assert [p for p, _ in bad] == [p for p, name in enumerate(why) if not name.startswith("good")]
    for position, reason in bad:
        assert list(why.values())[position] in reason
        assert "\n" not in reason
    one, _ = pictures.fetch([7], Geometry(64))
    assert torch.equal(images[1:], one)
    none, bad = pictures.fetch([1, 2], Geometry(64))
    assert none.shape == (0, 3, 64, 64)
    assert len(bad) == 2


def test_max_pixels_is_an_option(tmp_path):
    Image.fromarray(noise(40, 40)).save(tmp_path / "a.png")
    assert "max_pixels=1599" in read(tmp_path / "a.png", max_pixels=1599)
    assert read(tmp_path / "a.png", max_pixels=1600).shape == (3, 40, 40)


@pytest.fixture
def pictures(tmp_path) -> Path:
    (tmp_path / "img").mkdir()
    for k in range(3):
        Image.new("RGB", (8, 8), (80 * k, 0, 0)).save(tmp_path / "img" / f"{k}.png")
    return tmp_path


ROWS = [("img/0.png", "NA"), ("img/gone.png", "007"), ("img/1.png", 'a "red", round one'), ("img/2.png", "")]


def table(folder, name, image="filepath", caption="title"):
    path, (files_, captions) = folder / name, zip(*ROWS)
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"other": range(4), image: files_, caption: captions}), path)
    elif "\t" in name or name.endswith(".tsv") or name == "tabs.csv":
        quoted = [(f, '"' + c.replace('"', '""') + '"') for f, c in ROWS]
        path.write_text(f"{image}\t{caption}\n" + "".join(f"{f}\t{c}\n" for f, c in quoted))
    else:
        quoted = [(f, '"' + c.replace('"', '""') + '"') for f, c in ROWS]
        path.write_text(f"\ufeff{image},n,{caption}\n" + "".join(f"{f},1.5,{c}\n" for f, c in quoted))
    return str(path)


@pytest.mark.parametrize("name", ["a.csv", "tabs.csv", "a.tsv", "a.parquet"])
def test_tables(pictures, name):
    pairs = tables.open_pairs(table(pictures, name)).at(Geometry(8))
    assert len(pairs) == 4
    assert pairs.name == name
    assert [pairs.caption(int(i)) for i in pairs.ids] == [c for _, c in ROWS]
    assert pairs.captions[1:3] == [c for _, c in ROWS[1:3]]
    batch = pairs[:]
    assert batch.ids.tolist() == [0, 2]
    assert batch.captions == ["NA", 'a "red", round one']
    assert torch.allclose(batch.images[:, 0, 0, 0] * 255, torch.tensor([0.0, 80.0]))
    assert [(i, "gone.png" in why) for i, why in batch.bad] == [(1, True), (3, False)]
    assert dict(batch.bad)[3] == "empty caption"
    assert pairs.take(np.array([False, False, True, False]))[:].captions == ['a "red", round one']


def test_keys_root_and_absolute_paths(pictures):
    (pictures / "below").mkdir()
    spec = table(pictures / "below", "a.csv", "image", "caption")
    keys: Any = {"image_key": "image", "caption_key": "caption"}
    assert len(tables.open_pairs(spec, **keys).at(Geometry(8))[:].bad) == 4
    assert [i for i, _ in tables.open_pairs(spec, root=pictures, **keys).at(Geometry(8))[:].bad] == [1, 3]
    (pictures / "abs.csv").write_text(f"filepath;title\n{pictures / 'img' / '0.png'};a, b\n")
    for separator in (";", None):
        assert tables.open_pairs(str(pictures / "abs.csv"), separator=separator).at(Geometry(8))[:].captions == ["a, b"]
    (pictures / "bar.csv").write_text(f"filepath|title\n{pictures / 'img' / '0.png'}|a; b, c\n")
    assert tables.open_pairs(str(pictures / "bar.csv"), separator="|").at(Geometry(8))[:].captions == ["a; b, c"]


def test_loader_processes_are_shared_among_ranks(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    assert [decoding.workers_for(n) for n in (999, 1000, 10**6)] == [0, 2, 32]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert decoding.workers_for(10**6) == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    assert decoding.workers_for(10**6) == 1


def test_fingerprint_follows_the_content(pictures):
    a, b = tables.open_pairs(table(pictures, "a.csv")), tables.open_pairs(table(pictures, "b.csv"))
    assert a.fingerprint == b.fingerprint
    (pictures / "b.csv").write_text("filepath,title\nx.png,another\n")
    again = tables.open_pairs(str(pictures / "b.csv"))
    assert again.fingerprint != a.fingerprint
    assert list(again.captions) == ["another"]


def test_tables_are_mapped_and_pictures_not_copied(pictures):
    pairs = tables.open_pairs(table(pictures, "a.parquet"))
    assert isinstance(pairs.captions.table.data, datasets.table.MemoryMappedTable)  # pyright: ignore
    assert sum(p.stat().st_size for p in (pictures / "cache").rglob("*") if p.is_file()) < 10_000


def refused(call, *words):
    with pytest.raises(UserError) as e:
        call()
    told = str(e.value)
    assert "\n" not in told
    assert all(w in told for w in words), told


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("gone.csv", None, ["gone.csv", "not a file"]),
        ("a.csv", b"url,text\na,b\n", ["a.csv", "filepath or title", "it has url, text", "--image-key"]),
        ("a.csv", b"filepath,text\na,b\n", ["no column title,"]),
        ("a.csv", b"", ["a.csv", "no rows"]),
        ("a.csv", b"filepath,title\n", ["a.csv", "no rows"]),
        ("a.csv", b"filepath,title\na.png,caf\xe9\n", ["a.csv", "UTF-8"]),
        ("a.csv", b"filepath,title\n" + b"a.png,b\n" * 9999 + b"a.png,caf\xe9\n", ["a.csv", "mend"]),
        ("a.csv", b"filepath,title\na.png,hello, world\nb.png,a, b\n", ["3 fields", "quote"]),
        ("a.csv", b"filepath,title\na.png,hello\nb.png,a, b\n", ["a.csv", "line 3"]),
        ("a.parquet", b"PAR1 is not enough", ["a.parquet", "no parquet"]),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    refused(lambda: tables.open_pairs(str(tmp_path / name)), *words)


def test_parquet_that_unfolds_to_more_than_the_memory(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    for cell in ("x" * 50_000, {"bytes": b"x" * 50_000, "path": None}):
        pq.write_table(pa.table({"filepath": [cell] * 8, "title": ["a"] * 8}), path)
        assert path.stat().st_size < 60_000
        with monkeypatch.context() as patch:
            patch.setattr(table_checks, "MAX_GROUP", 300_000)
            with pytest.raises(UserError, match="row group 0 unfolds to more than"):
                tables.open_pairs(str(path))
        assert len(tables.open_pairs(str(path))) == 8
    pq.write_table(pa.table({"filepath": ["x"] * 8, "title": ["a"] * 8, "long": ["x" * 50_000] * 8}), path)
    assert len(tables.open_pairs(str(path))) == 8
    monkeypatch.setattr(table_checks, "MAX_GROUP", 300_000)  # of other columns nothing is known yet
    with pytest.raises(UserError, match="row group 0 unfolds to more than"):
        tables.open_pairs(str(path), caption_key="long")


def test_parquet_tables_that_cannot_be_used(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"filepath": [[1.0]], "title": ["a"]}), path)
    refused(lambda: tables.open_pairs(str(path)), "column filepath", "not text")
    pq.write_table(pa.table({"filepath": pa.array([], pa.string()), "title": pa.array([], pa.string())}), path)
    refused(lambda: tables.open_pairs(str(path)), "no rows")
    pq.write_table(pa.table({"filepath": ["a"], "title": ["b"]}), path)
    refused(lambda: tables.open_pairs(str(path), root=tmp_path / "gone"), "root", "gone")
    path.write_bytes(path.read_bytes().replace(b"title", b"tit\xffe"))
    refused(lambda: tables.open_pairs(str(path)), "parquet")


@pytest.fixture
def classes(tmp_path) -> Path:
    root = tmp_path / "val"
    for name, shades in {"tree_frog": [10, 20], "apple": [30], "n03": [40]}.items():
        (root / name / "deep").mkdir(parents=True)
        for s in shades:
            Image.new("L", (8, 8), s).save(root / name / "deep" / f"{s}.PNG")
        (root / name / "notes.txt").write_text("no picture")
    (root / "n03" / "zero.jpg").touch()
    return root


def test_task_from_a_folder(classes):
    task = folders.open_task(str(classes))
    assert task.name == "val"
    assert task.classes == ("apple", "n03", "tree frog")
    assert task.labels.tolist() == [0, 1, 1, 2, 2]
    batch = task.pictures.at(Geometry(8))[:]
    assert batch.ids.tolist() == [0, 1, 3, 4]
    assert [round(float(x) * 255) for x in batch.images[:, 0, 0, 0]] == [30, 40, 10, 20]
    assert [i for i, _ in batch.bad] == [2]
    assert len(task.templates) == 7
    assert task.captions_of(2)[0] == "itap of a tree frog."
    before = task.pictures.fingerprint
    assert folders.open_task(str(classes)).pictures.fingerprint == before
    (classes / "n03" / "zero.jpg").write_bytes(b"1")
    assert folders.open_task(str(classes)).pictures.fingerprint != before


def test_class_names_and_templates_from_files(classes, tmp_path):
    names, lines = tmp_path / "names.json", tmp_path / "templates.txt"
    names.write_text(json.dumps(["fruit", "thing", "frog"]))
    lines.write_text("a {c}.\n\n  the {}  \n")
    task = folders.open_task(str(classes), names, lines)
    assert task.classes == ("fruit", "thing", "frog")
    assert task.templates == ("a {}.", "the {}")
    names.write_text(json.dumps({"tree_frog": "frog", "apple": "fruit", "n03": "thing", "n04": "of a larger set"}))
    assert folders.open_task(str(classes), names).classes == ("fruit", "thing", "frog")
    for text in ("thing\nfruit\n\nfrog\n", "\ufefffruit\r\nthing\r\nfrog", '["fruit", "thing", "frog"]'):
        (tmp_path / "names.txt").write_text(text, encoding="utf-8", newline="")
        named = folders.open_task(str(classes), tmp_path / "names.txt").classes
        assert named == (("thing", "fruit", "frog") if text.startswith("thing") else ("fruit", "thing", "frog"))
    (tmp_path / "names.txt").write_text("tree frog\nn03\napple\n")  # the folders' own names, in another order
    assert folders.open_task(str(classes), tmp_path / "names.txt").classes == ("apple", "n03", "tree frog")
    names.write_text('["a \\ud800 fruit", "thing", "frog"]')  # half a surrogate pair
    assert folders.open_task(str(classes), names).classes[0] == folders.read_classes(names)[0] == "a ? fruit"


def test_tasks_that_cannot_be_used(classes, tmp_path):
    names, lines = tmp_path / "names.json", tmp_path / "templates.txt"

    def no(*words, **given):
        refused(lambda: folders.open_task(str(classes), **given), *words)

    for content, word in (
        ('["a"]', "1 class names for 3"),
        ('{"apple": "a"}', "no name for folder n03"),
        ("3", "list"),
        ('["a", "b", "A"]', "'A' is named twice"),
    ):
        names.write_text(content)
        no("names.json", word, classes=names)
    no("gone.json", classes=tmp_path / "gone.json")
    for content, word in (("a photo\n", "'a photo' has no {}"), ("\n", "no templates")):
        lines.write_text(content)
        no("templates.txt", word, templates=lines)
    no("gone.txt", templates=tmp_path / "gone.txt")
    (classes / "empty").mkdir()
    no("empty", "holds no pictures")
    refused(lambda: folders.open_task(str(tmp_path / "gone")), "not a folder")
    (tmp_path / "bare").mkdir()
    refused(lambda: folders.open_task(str(tmp_path / "bare")), "no folders")

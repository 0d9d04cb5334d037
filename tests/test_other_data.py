"""Data as other people keep it: read as its owner means it, or refused with the way out."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipvet.api.data import task_of
from clipvet.data import folders, sources
from clipvet.data.tables import open_pairs
from clipvet.engine.embed import embed_images
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.training.plain import Plain


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


def named(root: Path, given: Any) -> tuple[str, ...]:
    (root.parent / "names.json").write_text(json.dumps(given))
    return folders.open_task(str(root), root.parent / "names.json").classes


def test_a_list_of_the_folders_own_names_is_matched_by_name(tmp_path: Path) -> None:
    root = task_at(tmp_path / "val", ["apple", "pear", "tree_frog"])
    plain = folders.open_task(str(root))
    for given in (["tree frog", "pear", "apple"], ["apple", "pear", "tree_frog"], ["pear", "apple", "Tree Frog"]):
        assert [n.lower() for n in named(root, given)] == list(plain.classes)
    assert named(root, ["fruit", "pear", "frog"]) == ("fruit", "pear", "frog")
    refused(lambda: named(root, ["pear", "fruit", "frog"]), "'pear' names another folder", "apple comes", "map")


def test_underscores_become_blanks_wherever_names_come_from(tmp_path: Path) -> None:
    root, lines = task_at(tmp_path / "val", ["one", "two"], 1), tmp_path / "names.txt"
    lines.write_text("tree_frog\nwine_bottle\n")
    wanted = ("tree frog", "wine bottle")
    assert named(root, ["tree_frog", "wine_bottle"]) == wanted
    assert named(root, {"two": "wine_bottle", "one": "tree_frog"}) == wanted
    assert folders.read_classes(lines) == folders.open_task(str(root), lines).classes == wanted
    pictures = [(np.zeros((8, 8, 3), np.uint8), name) for name in ("tree_frog", "wine_bottle", "tree_frog")]
    for classes in (None, ["tree_frog", "wine_bottle"]):
        task = task_of(pictures, classes)
        assert task.classes == wanted
        assert task.labels.tolist() == [0, 1, 0]


def test_a_list_for_numbered_folders_is_refused_where_it_has_two_readings(tmp_path: Path) -> None:
    root = task_at(tmp_path / "val", [str(k) for k in range(1, 12)], 1)
    words = [f"thing {chr(97 + k)}" for k in range(11)]
    refused(lambda: named(root, words), "sorted names (... 1, 10, 11 ...)", "the usual one (... 1, 2, 3 ...)", "map")
    for folders_ in (["class 1", "class 2", "class 10"], ["Apple", "banana", "Cherry"]):
        other = task_at(tmp_path / folders_[1], folders_, 1)
        refused(lambda other=other: named(other, ["x", "y", "z"]), "its order may be that of the sorted names", "map")
    same = task_at(tmp_path / "same", ["Apple", "Banana"], 1)
    assert named(same, ["x", "y"]) == ("x", "y")
    told = named(root, {str(k): word for k, word in enumerate(words, 1)})
    assert told[:3] == ("thing a", "thing j", "thing k")
    few = task_at(tmp_path / "few", ["0", "1", "2"], 1)
    assert named(few, ["zero", "one", "two"]) == ("zero", "one", "two")


def test_a_class_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    root = task_at(tmp_path / "val", ["a", "b", "c"])
    refused(lambda: named(root, ["cat", "dog", "Cat "]), "'Cat ' is named twice", "own")
    refused(lambda: named(root, {"a": "cat", "b": "dog", "c": "dog"}), "'dog' is named twice")
    refused(lambda: named(root, ["cat", "dog", " "]), "empty name")
    refused(lambda: folders.open_task(str(task_at(tmp_path / "own", ["tree_frog", "tree frog"]))), "named twice")


def test_folders_whose_names_are_ids_ask_for_names(tmp_path: Path, caplog: Any) -> None:
    root = task_at(tmp_path / "val", ["n01440764", "n01443537", "n01484850"])
    refused(lambda: folders.open_task(str(root)), "n01440764 look like ids", "--classes")
    assert named(root, ["tench", "goldfish", "shark"]) == ("tench", "goldfish", "shark")
    refused(lambda: folders.open_task(str(task_at(tmp_path / "v2", ["000", "001"]))), "look like ids")
    for k, ids in enumerate((["class_0", "class_1"], ["m.0k4j", "m.01xs"], ["id-1", "id-2"])):
        refused(lambda k=k, ids=ids: folders.open_task(str(task_at(tmp_path / f"i{k}", ids))), "look like ids")
    assert not caplog.records
    named(root, ["n01440764", "n01443537", "n01484850"])
    assert "names such as n01440764 look like ids" in caplog.text
    caplog.clear()
    assert folders.open_task(str(task_at(tmp_path / "digits", ["0", "1"]))).classes == ("0", "1")
    assert "called by their numbers" in caplog.text


def test_a_task_that_is_one_level_off_is_refused(clipvet: Any, tmp_path: Path, caplog: Any) -> None:
    tiny = task_at(tmp_path / "tiny" / "val", ["images"], 3)
    refused(lambda: folders.open_task(str(tiny)), "one class, images", "two or more")
    task_at(tmp_path / "tiny" / "train", ["cat", "dog"])
    refused(lambda: folders.open_task(str(tmp_path / "tiny")), "train, val", "parts of a data set", "give one")
    assert clipvet(*EVALUATE, tmp_path / "tiny").code == 2
    for k, parts in enumerate((["train2017", "val2017"], ["Training", "testing_images"], ["fold1", "fold2", "fold3"])):
        refused(
            lambda k=k, parts=parts: folders.open_task(str(task_at(tmp_path / f"p{k}", parts))), "parts of a data set"
        )
    assert len(folders.open_task(str(task_at(tmp_path / "coco", ["bus", "train"]))).classes) == 2
    assert not caplog.records
    folders.open_task(str(task_at(tmp_path / "mixed", ["bus", "train", "test"])))
    assert "test, train count as classes" in caplog.text


def test_folders_within_classes_and_pictures_beside_them_are_said(tmp_path: Path, caplog: Any) -> None:
    root = task_at(tmp_path / "deep", ["animals/cat", "animals/dog", "cars/red"])
    task = folders.open_task(str(root))
    assert "animals holds folders (cat, dog ...) that count as one class" in caplog.text
    assert "cars" not in caplog.text
    Image.new("RGB", (8, 8)).save(root / "loose.png")
    (root / "cars" / "linked").symlink_to(root / "animals", target_is_directory=True)
    passed = folders.check_passed_over(folders.open_task(str(root)), 0.5)
    assert passed == {"beside the class folders": 1, "links to folders": 1}
    assert folders.check_passed_over(task, 0.0) == {}


@pytest.mark.parametrize(
    "text",
    [
        "a photo of a {}.\nthe {}\n",
        "# of CLIP\na photo of a {c}.\n\nthe {label}\n",
        "'a photo of a {}.',\n\"the {}\"\n",
        "templates = [\n    lambda c: f'a photo of a {c}.',  # usual\n    lambda c: f\"the {c}\",\n]\n",
        "lambda c: 'a photo of a {}.'.format(c)\nlambda c: 'the %s' % c\n",
        '["a photo of a {c}.", "the {}"]',
        '{"imagenet1k": ["a photo of a {c}.", "the {c}"]}',
        "a photo of a %s.\nthe {0}\n",
        "# CLIP's\n- a photo of a {}.\n- the {}\n",
        "f'a photo of a {c}.'\nf\"the {c}\",\n",
        "'a photo of a %s.' % name\n'the ' + name\n",
    ],
)
def test_templates_in_other_tools_forms(tmp_path: Path, text: str) -> None:
    (tmp_path / "t").write_text(text)
    assert folders.read_templates(tmp_path / "t") == ("a photo of a {}.", "the {}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"cars": ["a {c}"], "pets": ["a {c}"]}', ["cars, pets", "keep the list of one"]),
        ('{"cars": {"a": ["{c}"]}}', ["no JSON list"]),
        ("lambda c: articled(c)\n", ["is Python that is not read"]),
        ("a {label} of {place}\n", ["several places"]),
        ("a photo of a <class>\n", ["has no {}"]),
    ],
)
def test_templates_that_are_not_understood_are_refused(tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "t").write_text(text)
    refused(lambda: folders.read_templates(tmp_path / "t"), *words)


def test_a_template_may_begin_with_a_quoted_word(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("{}\n")
    assert folders.read_templates(tmp_path / "t") == ("{}",)
    (tmp_path / "t").write_text('"{}" on a sign\n{} on a {}\n')
    assert folders.read_templates(tmp_path / "t") == ('"{}" on a sign', "{} on a {}")


def test_settings_that_would_train_nothing_are_refused(clipvet: Any, clip: Any, pairs: Any, tmp_path: Path) -> None:
    refused(lambda: Plain(batch=1, epochs=1).train(clip, pairs, Rng(0)), "batch=1", "raise batch to 2")
    refused(lambda: sources.Data("shapes", 0).pairs(), "n=0 takes no pairs")
    train = ["train", "--model", "shapes-vit", "--data", "shapes", "--out", tmp_path / "out"]
    assert clipvet(*train, "--n", "0").code == 2
    for change in ("epochs=0", "epochs=-1", "lr=1000"):
        said = clipvet(*train, "--set", change)
        assert (said.code, f"--set {change}: give" in said.err) == (2, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("below/img/0.png", "relative to the table's folder, not to the working directory"),
        ("~/img/0.png", "write out the folder that ~ stands for"),
        ("https://example.org/0.png", "it is a URL: download"),
        ("img\\0.png", "write / instead of"),
        ("img/9.png", "no such file)"),
    ],
)
def test_paths_that_lead_nowhere_are_said_with_the_reason(
    clip: Any, tmp_path: Path, monkeypatch: Any, name: str, hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "below" / "img").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "below" / "img" / "0.png")
    (tmp_path / "below" / "a.csv").write_text(f"filepath,title\n{name},a cat\n{name},a dog\n")
    pairs = open_pairs("below/a.csv")
    refused(lambda: embed_images(clip, pairs), "none of its 2 pictures", f"first: {name!r}: no such file", hint)


def test_parquet_files_of_several_splits_are_not_read_as_one(tmp_path: Path) -> None:
    rows = pa.table({"filepath": ["a.png"], "title": ["a cat"]})
    (tmp_path / "hf" / "data").mkdir(parents=True)
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        pq.write_table(rows, tmp_path / "hf" / "data" / f"{name}.parquet")
    refused(
        lambda: open_pairs(str(tmp_path / "hf")), "the splits test, train", f"give one, such as {tmp_path}/hf:train"
    )
    assert len(open_pairs(f"{tmp_path}/hf:train")) == 2
    assert len(open_pairs(f"{tmp_path}/hf:test")) == 1
    refused(lambda: open_pairs(f"{tmp_path}/hf:val"), "no split validation", "test, train")
    (tmp_path / "hf" / "data" / "test-00000-of-00001.parquet").unlink()
    assert len(open_pairs(str(tmp_path / "hf"))) == 2


def test_captions_that_begin_with_a_quotation_mark_hide_no_rows(tmp_path: Path) -> None:
    said = [f'"{k} is a number' if k % 5 == 2 else f"number {k}" for k in range(100)]
    plain = "filepath\ttitle\n" + "".join(f"{k}.png\t{c}\n" for k, c in enumerate(said))
    (tmp_path / "a.tsv").write_text(plain)
    assert list(open_pairs(str(tmp_path / "a.tsv")).captions) == said
    (tmp_path / "b.tsv").write_text('filepath\ttitle\n0.png\t"a ""big"" cat"\n1.png\t"two\nlines"\n')
    assert list(open_pairs(str(tmp_path / "b.tsv")).captions) == ['a "big" cat', "two\nlines"]
    (tmp_path / "d.csv").write_text('filepath,title\n0.png,"a cat\n1.png,two cats\n2.png,"three" cats\n')
    refused(lambda: open_pairs(str(tmp_path / "d.csv")), "d.csv", "holds whole rows", "a cat")
    (tmp_path / "e.csv").write_text('filepath,title\n0.png,"a cat,\na dog, a cow"\n1.png,"a ""b"" c"\n')
    assert list(open_pairs(str(tmp_path / "e.csv")).captions) == ["a cat,\na dog, a cow", 'a "b" c']
    (tmp_path / "c.tsv").write_text(plain + "100.png\tone\ttoo many\n")
    refused(lambda: open_pairs(str(tmp_path / "c.tsv")), "c.tsv", "holds whole rows", "parquet")


def test_img2datasets_table_of_files_names_the_way(tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": ["u"], "caption": ["a cat"], "key": ["000000000"]}), tmp_path / "0.parquet")
    refused(lambda: open_pairs(str(tmp_path / "0.parquet")), "img2dataset's table", ".tar shards", "column filepath")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a/1.jpg", "a/2.jpg", "b/1.txt", "b/2.txt"], ["2 captions without a picture", "tar --sort=name"]),
        (["1.gif", "1.txt", "2.gif", "2.txt"], ["its pictures ('1.gif') are none of these kinds"]),
        (["img.1.jpg", "img.2.jpg"], ["ends a key at the first dot", "'img.1.jpg'", "rename the members"]),
    ],
)
def test_shards_without_pairs_say_why(tmp_path: Path, names: list[str], words: list[str]) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(b"x"))
    refused(lambda: open_pairs(str(tmp_path / "0.tar")), *words)


def few_empty(root: Path, n: int = 40) -> Path:
    """A table of which three captions are empty, as failed scrapes leave them."""
    (root / "img").mkdir(parents=True)
    for k in range(n):
        Image.new("RGB", (8, 8), (6 * k, 0, 200 - 5 * k)).save(root / "img" / f"{k}.png")
    said = {3: "", 7: "  ", 20: "\u200b"}
    rows = "".join(f"img/{k}.png,{said.get(k, f'number {k}')}\n" for k in range(n))
    (root / "a.csv").write_text("filepath,title\n" + rows)
    return root / "a.csv"


def test_pairs_with_empty_captions_are_left_out_everywhere(clipvet: Any, tmp_path: Path) -> None:
    data = few_empty(tmp_path / "d")
    batch = open_pairs(str(data))[:]
    assert len(batch.captions) == len(batch.images) == 37
    assert batch.bad == ((3, "empty caption"), (7, "empty caption"), (20, "empty caption"))
    out = tmp_path / "s.parquet"
    said = clipvet("filter", "--data", data, "--model", "shapes-vit", "--method", "cosine", "--out", out)
    assert said.code == 0, said.err
    assert "scored 37 pairs, 3 with empty captions in" in said.err
    last = pq.read_table(out).to_pylist()[-3:]
    assert {(row["id"], row["score"], row["reason"]) for row in last} == {
        (k, None, "empty caption") for k in (3, 7, 20)
    }
    kept = tmp_path / "kept.csv"
    filtered = [
        "filter",
        "--data",
        data,
        "--model",
        "shapes-vit",
        "--method",
        "random",
        "--out",
        tmp_path / "r.parquet",
    ]
    assert clipvet(*filtered, "--keep", "0.9", "--cleaned", kept).code == 0
    assert len(open_pairs(str(kept))[:].captions) == len(open_pairs(str(kept))) == 33
    seen = clipvet("inspect", "--model", "shapes-vit", "--images", data)
    assert "empty caption" not in seen.err


@pytest.mark.parametrize("command", ["train", "clean"])
def test_training_and_cleaning_count_empty_captions_up_to_a_limit(command: str, clipvet: Any, tmp_path: Path) -> None:
    data = few_empty(tmp_path / "d")
    call = [command, "--data", data, "--model", "shapes-vit", "--out", tmp_path / "out", "--set", "epochs=1"]
    call += ["--method", "finetune"] if command == "clean" else []
    said = clipvet(*call, "--set", "batch=10")
    assert said.code == 2
    assert "of 40 pairs have an unreadable picture or an empty caption, more than the limit of 1.00%" in said.err
    assert "empty caption); mend them, drop them or raise max_bad" in said.err
    said = clipvet(*call, "--set", "batch=10", "--set", "max_bad=0.1")
    assert said.code == 0, said.err
    assert "3 pairs were left out: 3 with empty captions (first: row 3, empty caption)" in said.err


def test_empty_captions_in_shards(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for k, said in enumerate(("a cat", "\n", "a dog")):
            for suffix, held in (("png", picture.getvalue()), ("txt", said.encode())):
                member = tarfile.TarInfo(f"{k}.{suffix}")
                member.size = len(held)
                tar.addfile(member, io.BytesIO(held))
    batch = open_pairs(str(tmp_path / "0.tar"))[:]
    assert (batch.captions, batch.bad) == (["a cat", "a dog"], ((1, "empty caption"),))


@pytest.mark.parametrize(
    ("one", "other", "split"),
    [("cc3m-train-0000", "cc3m-val-0000", "dev"), ("train0", "test1", "test"), ("a.training", "a.eval", "test")],
)
def test_names_of_splits_are_those_of_hf_datasets(one: str, other: str, split: str, tmp_path: Path) -> None:
    for k, name in enumerate((one, other)):
        pq.write_table(pa.table({"filepath": [f"{k}.png"], "title": [f"cat {k}"]}), tmp_path / f"{name}.parquet")
    refused(lambda: open_pairs(str(tmp_path)), "holds the splits", "train", "give one, such as")
    first = open_pairs(f"{tmp_path}:train")
    assert list(first.captions) == ["cat 0"]
    second = open_pairs(f"{tmp_path}:{split}")
    assert (list(second.captions), second.fingerprint == first.fingerprint) == (["cat 1"], False)


def test_a_split_of_shards_and_of_saved_data_sets(tmp_path: Path) -> None:
    import datasets

    (tmp_path / "tars").mkdir()
    for name in ("train-0", "train-1", "test-0"):
        with tarfile.open(tmp_path / "tars" / f"{name}.tar", "w") as tar:
            for suffix in ("png", "txt"):
                member = tarfile.TarInfo(f"0.{suffix}")
                member.size = 1
                tar.addfile(member, io.BytesIO(b"x"))
    refused(lambda: open_pairs(str(tmp_path / "tars")), "the splits test, train", "tars:train")
    assert len(open_pairs(f"{tmp_path}/tars:train")) == 2
    made: Any = {k: datasets.Dataset.from_dict({"filepath": ["a.png"] * n, "title": ["a"] * n})
            for n, k in enumerate(("train", "val"), 1)}  # fmt: skip
    datasets.DatasetDict(made).save_to_disk(tmp_path / "saved")
    refused(lambda: open_pairs(str(tmp_path / "saved")), "the splits train, val", f"such as {tmp_path}/saved/val")
    assert len(open_pairs(f"{tmp_path}/saved:val")) == len(open_pairs(str(tmp_path / "saved" / "val"))) == 2


def test_a_half_of_one_class_is_refused(clipvet: Any, tmp_path: Path) -> None:
    root = task_at(tmp_path / "val", ["apple", "pear", "plum"], 1)
    half = sources.Half(
        sources.Test(str(task_at(tmp_path / "four", ["Cat", "cow", "dog", "hen"], 1))), "base", ("cat", "boat")
    )
    assert half.task().classes == ("Cat", "cow", "boat"), "no class stands twice"
    said = clipvet(*EVALUATE, root, "--half", "new")
    assert (said.code, "the new half of the 3 classes of val is plum" in said.err) == (2, True)
    assert clipvet(*EVALUATE, root, "--half", "base").code == 0


# rows, lists and folders as other people write them


def rows(n: int = 3) -> list[tuple[str, str]]:
    return [(f"{k}.png", f"caption {k}") for k in range(n)]


def text(path: Path, header: str, lines: list[str]) -> str:
    path.write_text("\n".join([header, *lines]) + "\n")
    return str(path)


def test_a_table_with_row_numbers_as_pandas_writes_it(tmp_path: Path) -> None:
    lines = [f"{k},{a},{b}" for k, (a, b) in enumerate(rows())]
    assert list(open_pairs(text(tmp_path / "a.csv", ",filepath,title", lines)).captions) == [b for _, b in rows()]


@pytest.mark.parametrize(
    ("header", "line", "words"),
    [
        ("filepath,title,title", "{},{},other", ["two columns title"]),
        ("filepath, title", "{}, {}", ["no column title", "' title'", "rename"]),
        ("x.png,a caption", "{},{}", ["its first row is no header"]),
        ("# made by hand", "{},{}", ["its first line is a comment", "remove it"]),
        ("image,caption", "{},{}", ["it has image, caption", "--image-key"]),
        ("filepath,title", "{},\"['{}', 'another']\"", ["holds lists of captions", "a row for each caption"]),
        ("filepath,title", '{},"[""{}"", ""another""]"', ["holds lists of captions"]),
    ],
)
def test_columns_that_are_not_what_they_seem(header: str, line: str, words: list[str], tmp_path: Path) -> None:
    table = text(tmp_path / "a.csv", header, [line.format(a, b) for a, b in rows()])
    refused(lambda: open_pairs(table), "a.csv", *words)


@pytest.mark.parametrize(
    ("name", "held", "words"),
    [
        ("a.jsonl", b'{"filepath": "0.png", "title": "a"}\n{"filepath": "1.png", "title": "b"}\n', ["lines=True"]),
        ("a.json", b'[{"filepath": "0.png", "title": "a"}]', ["JSON and no table", "read_json"]),
        ("a.xlsx", b"PK\x03\x04", ["spreadsheet", "CSV"]),
        ("a.csv.gz", b"\x1f\x8b\x08", ["compressed", "gunzip"]),
        ("a.csv", b"PAR1", ["parquet", "rename it"]),
        ("a.feather", b"ARROW1", ["Arrow"]),
    ],
)
def test_files_that_are_no_tables_are_named(name: str, held: bytes, words: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(held)
    refused(lambda: open_pairs(str(tmp_path / name)), name, *words)


def test_parquet_with_several_captions_a_row_or_a_part_of_other_columns(tmp_path: Path) -> None:
    names = [a for a, _ in rows()]
    pq.write_table(pa.table({"filepath": names, "title": [["a", "b"]] * 3}), tmp_path / "a.parquet")
    refused(lambda: open_pairs(str(tmp_path / "a.parquet")), "lists of captions", "a row for each caption")
    (tmp_path / "parts").mkdir()
    for k, column in enumerate(("title", "caption")):
        pq.write_table(pa.table({"filepath": names, column: names}), tmp_path / "parts" / f"{k}.parquet")
    refused(lambda: open_pairs(str(tmp_path / "parts")), "1.parquet has no column title, it has filepath, caption")


def test_words_for_nothing_are_empty_captions(tmp_path: Path) -> None:
    lines = [f"{k}.png,{said}" for k, said in enumerate(["nan", "None", "NULL", "nothing", "a nan"])]
    for k in range(5):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{k}.png")
    seen = open_pairs(text(tmp_path / "a.csv", "filepath,title", lines))[:5]
    assert seen.captions == ["nothing", "a nan"]
    assert [i for i, _ in seen.bad] == [0, 1, 2]


def test_captions_of_shards_in_other_encodings_and_kinds(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    picture = (tmp_path / "p.png").read_bytes()

    def shard(name: str, parts: list[tuple[str, bytes]]) -> str:
        with tarfile.open(tmp_path / name, "w") as f:
            for k, (suffix, held) in enumerate(parts):
                for member, content in ((f"{k}.png", picture), (f"{k}.{suffix}", held)):
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    f.addfile(info, io.BytesIO(content))
        return str(tmp_path / name)

    seen = open_pairs(shard("a.tar", [("txt", b"\xef\xbb\xbfa cat"), ("txt", "a dog".encode("utf-16"))]))[:2]
    assert seen.captions == ["a cat"]  # and what is no UTF-8 is no caption, as in webdataset
    assert [i for i, _ in seen.bad] == [1]
    refused(lambda: open_pairs(shard("b.tar", [("cls", b"3")] * 2)), "members of other kinds (cls)", ".txt")


def test_hidden_files_and_those_of_macos_are_no_classes_and_no_pictures(tmp_path: Path) -> None:
    root = task_at(tmp_path / "t", ["cat", "dog", "__MACOSX", ".cache"])
    (root / "cat" / "._0.png").write_bytes(b"\0\5\x16\7")
    (root / "dog" / ".thumbs").mkdir()
    Image.new("RGB", (8, 8)).save(root / "dog" / ".thumbs" / "0.png")
    task = folders.open_task(str(root))
    assert (task.classes, len(task.pictures)) == (("cat", "dog"), 4)


def test_class_names_that_only_their_accents_code_apart(tmp_path: Path) -> None:
    root = task_at(tmp_path / "t", ["caf\u00e9", "cafe\u0301"])
    refused(lambda: folders.open_task(str(root)), "is named twice")


@pytest.mark.parametrize(
    ("names", "lines", "found"),
    [
        (["n01440764", "n01443537"], ["n01443537 goldfish", "n01440764 tench, Tinca"], ("tench, Tinca", "goldfish")),
        (["n01440764", "n01443537"], ["n00001740\tentity", "n01440764\ta", "n01443537\tb"], ("a", "b")),
        (["10", "2"], ["2: a", "10: b"], ("b", "a")),
        (["cat", "dog"], ["dog: a dog", "cat: a cat"], ("a cat", "a dog")),
        (["cat", "dog"], ["cat food", "dog food"], ("cat food", "dog food")),
        (["cat", "dog"], ["cat, Felis catus", "dog, Canis"], ("cat, Felis catus", "dog, Canis")),
    ],
)
def test_text_files_that_map_folders_to_names(
    names: list[str], lines: list[str], found: tuple[str, ...], tmp_path: Path
) -> None:
    listed = text(tmp_path / "names.txt", lines[0], lines[1:])
    assert folders.open_task(str(task_at(tmp_path / "t", names)), Path(listed)).classes == found


def test_lists_with_numbers_or_with_names_of_other_folders(tmp_path: Path) -> None:
    root = task_at(tmp_path / "t", ["cat", "dog", "eel"])
    numbered = Path(text(tmp_path / "a.txt", "0 cat", ["1 dog", "2 eel"]))
    refused(lambda: folders.open_task(str(root), numbered), "begins with its number", "map")
    (tmp_path / "b.json").write_text(json.dumps(["a dog", "an eel", "a cat"]))
    refused(lambda: folders.open_task(str(root), tmp_path / "b.json"), "'a dog' names another folder", "cat comes")
    (tmp_path / "b.json").write_text(json.dumps(["kitten", "hot dog", "an eel"]))
    assert folders.open_task(str(root), tmp_path / "b.json").classes == ("kitten", "hot dog", "an eel")

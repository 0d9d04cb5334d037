"""The Python front door: every public name works, takes models and data in every form, and gives results that show."""

import doctest
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import hf as made
import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor

import clipvet
from clipvet.api import data, results
from clipvet.data.tables import open_pairs
from clipvet.errors import UserError
from clipvet.models import checkpoints
from clipvet.rng import Rng
from clipvet.types import Measured

VERBS = ("load", "inspect", "clean", "filter", "detect", "train", "evaluate")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class folder of six pictures, and a table of the same with captions."""
    root = tmp_path_factory.mktemp("api")
    rows = []
    for k in range(6):
        name = ("circle", "square")[k % 2]
        (root / "task" / name).mkdir(parents=True, exist_ok=True)
        pixels = Rng(k).numpy().integers(0, 256, (8, 8, 3), np.uint8).repeat(8, 0).repeat(6, 1)
        Image.fromarray(pixels).save(root / "task" / name / f"{k}.png")
        rows.append((f"task/{name}/{k}.png", f"a {name}, number {k}"))
    pd.DataFrame(rows, columns=["filepath", "title"]).to_csv(root / "pairs.csv", index=False)
    return root


def opened(files: Path) -> list[tuple[Image.Image, str]]:
    frame = pd.read_csv(files / "pairs.csv")
    out = []
    for path, said in zip(frame["filepath"], frame["title"], strict=True):
        with Image.open(files / path) as picture:
            out.append((picture.convert("RGB"), said))
    return out


@pytest.fixture
def clipvet_(clipvet: Any) -> Any:
    """The command line; in this file `clipvet` is the package."""
    return clipvet


# the names


def test_every_public_name_can_be_imported_and_says_what_it_does() -> None:
    space: dict[str, Any] = {}
    exec("from clipvet import *", space)  # as people do
    assert {*clipvet.__all__} <= space.keys()
    for name in clipvet.__all__:
        found = getattr(clipvet, name)
        assert found is space[name]
        assert inspect.isclass(found) or inspect.getdoc(found), name
    assert {*VERBS, "open_task", "__version__"} <= {*dir(clipvet)}
    with pytest.raises(AttributeError, match="no attribute 'wash'"):
        _ = clipvet.wash  # pyright: ignore


def test_the_verbs_are_typed_and_their_help_has_errors_and_an_example() -> None:
    for name in VERBS:
        verb = getattr(clipvet, name)
        said = inspect.getdoc(verb) or ""
        assert "UserError" in said, name
        assert ">>> import clipvet" in said, name
        given = inspect.signature(verb)
        assert given.return_annotation is not inspect.Parameter.empty, name
        assert all(p.annotation is not inspect.Parameter.empty for p in given.parameters.values()), name
        assert name in (clipvet.__doc__ or "")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("module", ["models", "verbs"])
def test_the_examples_run(module: str) -> None:
    import importlib

    found = doctest.testmod(importlib.import_module(f"clipvet.api.{module}"), optionflags=doctest.ELLIPSIS)
    assert found.failed == 0
    assert found.attempted >= 2


def test_importing_clipvet_imports_nothing_heavy() -> None:
    code = "import sys, clipvet; dir(clipvet); print([m for m in ('torch', 'numpy', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


# models


def features(clip: Any) -> Tensor:
    return clip.encode_image(torch.rand(2, 3, clip.geometry.size, clip.geometry.size, generator=Rng(3).generator()))


def test_models_of_open_clip(tmp_path: Path) -> None:
    checkpoints.save(checkpoints.load("shapes-vit", rng=Rng(2)), tmp_path / "m", {})
    want: Any = clipvet.load(tmp_path / "m")
    net, see = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'm'}")  # pyright: ignore
    got = clipvet.load((net, see, open_clip.get_tokenizer(f"local-dir:{tmp_path / 'm'}")))
    torch.testing.assert_close(features(got), features(want))
    assert got.geometry == want.geometry
    assert torch.equal(got.encode_text(["a star"]), want.encode_text(["a star"]))
    checkpoints.save(got, tmp_path / "again", {})
    torch.testing.assert_close(features(clipvet.load(tmp_path / "again")), features(want))
    assert clipvet.load(want) is want
    with pytest.raises(UserError, match="a Linear is no model that can be read; give a path or name"):
        clipvet.load(torch.nn.Linear(2, 2))
    net.visual.transformer.resblocks[0].mlp.gelu = torch.nn.ReLU()  # pyright: ignore
    with pytest.raises(UserError, match="computes in another way than its shape says"):
        clipvet.load((net, see, open_clip.get_tokenizer("shapes-vit")))
    with pytest.raises(UserError, match="no evaluation transform"):
        clipvet.load((net, lambda x: x, str.split))


@pytest.mark.filterwarnings("ignore")
def test_models_of_transformers(tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")
    from clipvet.models import tokenizers

    made.write(tmp_path / "m", "clip", "quick_gelu")
    for name, held in tokenizers.files_of(tokenizers.own(16)).items():
        (tmp_path / "m" / name).write_bytes(held)
    see = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32, image_mean=[0.4] * 3)
    see.save_pretrained(tmp_path / "m")
    want = clipvet.load(f"transformers:{tmp_path / 'm'}")
    net, processor = (x.from_pretrained(tmp_path / "m") for x in (transformers.CLIPModel, transformers.CLIPProcessor))
    got = clipvet.load((net, processor))
    torch.testing.assert_close(features(got), features(want))
    assert torch.equal(got.mean, want.mean)
    assert torch.equal(got.tokenize(["a “star”"]), want.tokenize(["a “star”"]))


# data


def test_pairs_in_every_form(files: Path, clip: Any) -> None:
    import datasets

    want = open_pairs(str(files / "pairs.csv")).at(clip.geometry)[:]
    rows, frame = opened(files), pd.read_csv(files / "pairs.csv")
    arrays = [np.array(p) for p, _ in rows]
    tensors = [torch.from_numpy(a).permute(2, 0, 1) / 255 for a in arrays]
    said = [t for _, t in rows]
    held: Any = datasets.Dataset.from_dict({"image": [str(files / p) for p in frame["filepath"]], "caption": said})

    class Own(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, k: int) -> Any:
            return rows[k]

    frame["filepath"] = [str(files / p) for p in frame["filepath"]]
    forms = (rows, list(zip(arrays, said, strict=True)), list(zip(tensors, said, strict=True)), frame, Own(), held,
             held.cast_column("image", datasets.Image()), files / "pairs.csv", str(files / "pairs.csv"))  # fmt: skip
    for form in forms:
        batch = data.pairs_of(form).at(clip.geometry)[:]
        assert (batch.captions, batch.bad) == (want.captions, ()), type(form)
        torch.testing.assert_close(batch.images, want.images, atol=1e-6, rtol=0)
    odd = data.pairs_of([*rows, (rows[0][0], ""), (torch.full((3, 8, 8), 2.0), "x"), ("gone.png", "y")])
    assert [why for _, why in odd.at(clip.geometry)[:].bad] == [
        "'row 7': pixels outside of [0, 1]; give pictures before they are normalised", "'row 8': no such file",
        "empty caption"]  # fmt: skip
    for wrong, match in (
        (7, "no data that can be read"), ([1], "is no pair"), (frame[["title"]], "no column of pictures"),
        (datasets.DatasetDict({"train": held}), "several splits"), ([], "is no pair"),
        ([(rows[0][0], 7)], "is no caption"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=match):
            data.pairs_of(wrong)


def test_tasks_in_every_form(files: Path, clip: Any) -> None:
    import datasets

    names = [t.split()[1].strip(",") for _, t in opened(files)]
    pictures = [p for p, _ in opened(files)]
    numbers = [("circle", "square").index(c) for c in names]
    features_ = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["circle", "square"])})
    held: Any = datasets.Dataset.from_dict({"image": pictures, "label": numbers}, features=features_)
    pairs = list(zip(pictures, names, strict=True))
    numbered = list(zip(pictures, numbers, strict=True))
    for form, classes in ((pairs, None), (held, None), (numbered, ["circle", "square"]), (files / "task", None)):
        task = data.task_of(form, classes, ["a {}"])
        assert (task.classes, task.templates) == (("circle", "square"), ("a {}",))
        assert sorted(task.labels.tolist()) == [0, 0, 0, 1, 1, 1]
        found = clipvet.evaluate(clip, task)
        assert found["clean_accuracy"].n == 6
    for wrong, classes, match in (
        (numbered, None, "the labels are numbers; give classes"),
        (pairs, ["circle", "ring"], "'square' is none of them"),
        (numbered, ["circle"], "1 classes"), (pairs, ["circle", "Circle"], "named twice"),
        (files / "task", ["circle"], "1 classes for the 2"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=match):
            data.task_of(wrong, classes)


# results


def shown(result: results.Result, tmp_path: Path) -> str:
    """What a notebook shows, once the table, the plot and the file are seen to be there."""
    assert len(result.to_frame())
    held = result._repr_html_()
    assert "<table" in held
    assert "data:image/png;base64," in held
    assert str(result) == result.sentence
    out = result.save(tmp_path / "r" / "numbers.csv")
    assert len(pd.read_csv(out)) == len(result.to_frame())
    with pytest.raises(UserError, match="already exists"):
        result.save(out)
    with pytest.raises(UserError, match="must end in"):
        result.save(tmp_path / "r.xls")
    return held


def test_filter_and_detect(files: Path, clip: Any, tmp_path: Path, clipvet_: Any) -> None:
    rows = [*opened(files), (Image.new("RGB", (8, 8)), "")]
    found = clipvet.filter(rows, clip, "cosine")
    assert shown(found, tmp_path / "f").startswith("<p>pairs: 6 scored")
    assert found.to_frame()["reason"].iloc[-1] == "empty caption"
    out = tmp_path / "s.parquet"
    assert clipvet_(
        "filter", "--data", files / "pairs.csv", "--model", "shapes-vit", "--method", "cosine", "--out", out
    )
    same = clipvet.filter(files / "pairs.csv", "shapes-vit", "cosine").to_frame()
    theirs = pd.read_parquet(out)
    assert same["id"].tolist() == theirs["id"].tolist()
    np.testing.assert_allclose(same["score"], theirs["score"], atol=1e-6)
    seen = clipvet.detect(files / "task", clip, ["circle", "square"], method="scale_up")
    assert {"answer", "file"} <= {*seen.to_frame().columns}
    assert len(shown(seen, tmp_path / "d")) > 100
    with pytest.raises(UserError, match="There are abl_loss"):
        clipvet.filter(rows, clip, "soap")
    with pytest.raises(UserError, match="dao needs --model; without one"):
        clipvet.filter(rows, method="dao")
    judged = clipvet.filter("shapes", clip, n=300)  # auto, which says what follows from its scores
    assert not judged.decided
    assert judged.told[0].startswith("Undecided")
    assert judged.cut is not None


def test_trusted_pictures_flag_as_the_command_does(files: Path, tmp_path: Path, clipvet_: Any) -> None:
    out, given = tmp_path / "d.parquet", {"method": "scale_up", "trusted": "shapes", "alpha": 0.2, "n": 30}
    words = [w for k, v in given.items() for w in (f"--{k}", v)]
    done = clipvet_(
        "detect", "--model", "shapes-vit", "--pictures", files / "task", "--classes", "shapes", *words, "--out", out
    )
    assert done.code == 0, done.err
    found, theirs = clipvet.detect(files / "task", "shapes-vit", "shapes", **given), pd.read_parquet(out)
    frame = found.to_frame()
    for name in ("id", "score", "p", "flagged", "answer", "reason"):
        assert frame[name].tolist() == theirs[name].tolist(), name
    assert found.cut is not None
    assert found.suspects["id"].tolist() == frame["id"][frame["flagged"]].tolist()
    assert all(sentence in done.err for sentence in found.told)
    assert "pictures are flagged" in found.sentence
    with pytest.raises(UserError, match="give 99 or more"):
        clipvet.detect(files / "task", "shapes-vit", "shapes", trusted="shapes", n=30)


def test_filter_needs_no_model(tmp_path: Path, clipvet_: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from clipvet.filters import _anew

    monkeypatch.setattr(_anew, "STEPS", 1)
    out = tmp_path / "s.parquet"
    small = ["--n", 220, "--set", "anew.epochs=0.1", "--set", "anew.rounds=1", "--alpha", 0.05]
    assert clipvet_("filter", "--data", "shapes", "--out", out, *small).code == 4
    found = clipvet.filter("shapes", n=220, alpha=0.05, **{"anew.epochs": 0.1, "anew.rounds": 1})
    assert found.to_frame()["score"].tolist() == pd.read_parquet(out)["score"].tolist()
    assert any(sentence.startswith("No model was given") for sentence in found.told)
    assert not found.decided


def test_train_and_clean_plan_as_the_commands_do(clip: Any, tmp_path: Path) -> None:
    done = clipvet.train("shapes", "shapes-vit", n=64, epochs=1, batch=32, task=None)
    assert "batch=32" in done.method
    with pytest.raises(UserError, match="64 pairs make"):
        clipvet.train("shapes", clip, n=64)
    cleaned = clipvet.clean(clip, "shapes", "finetune", n=64, epochs=1, batch=32)
    assert cleaned.before.keys() == cleaned.after.keys()
    assert "before" in cleaned.to_frame().columns
    assert "<table" in cleaned._repr_html_()
    assert cleaned.sentence.startswith("cleaned on shapes")
    again = clipvet.load(cleaned.save(tmp_path / "out"))
    torch.testing.assert_close(features(again), features(cleaned.model))
    with pytest.raises(UserError, match="epochs"):
        clipvet.clean(clip, "shapes", "finetune", n=64, epochs=0)


def test_inspect_gives_the_verdict_of_the_command(tmp_path: Path, inspected: Any) -> None:
    (tmp_path / "t.txt").write_text("{}\n")
    given = {"method": "neural_cleanse", "overlap": 1.0, "templates": tmp_path / "t.txt", "epochs": 1}
    found = clipvet.inspect(inspected.backdoored, inspected.classes, inspected.pictures, **given)
    assert found.backdoored in (True, False, None)
    assert len(found.to_frame()) == len(inspected.classes)
    assert "<table" in found._repr_html_()
    with pytest.raises(UserError, match="random weights"):
        clipvet.inspect("shapes-vit", "shapes")


def test_before_and_after_are_drawn(clip: Any) -> None:
    m = {"clean_accuracy": Measured(0.5, 10, 0.4, 0.6)}
    held = results.Made(clip, "cleaned", "Par(lr=1)", "pairs", 0, m, m)
    assert held.sentence == "cleaned on pairs by Par, clean_accuracy 50.00% (before: 50.00%)."
    import matplotlib.figure

    ax = held.plot(matplotlib.figure.Figure().subplots())
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["before", "after"]

"""What `collapse` says where something is missing: classes, captions, the target's class, varied pictures, gradient."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_inspect_command import COLLAPSE, family, verdict  # noqa: F401

from clipvet.inspectors.collapse import Collapse
from clipvet.models import adapter
from clipvet.rng import Rng
from clipvet.scan.wording import sentence
from clipvet.types import Finding, Suspicion

TOY = Collapse(masked=1, larger=1, faint=1, warped=0, striped=0, steps=40, batch=6, fresh=20, eps=0.3)


def folder_of(where: Path, n: int, fill: int | None = None) -> Path:
    """A folder with n pictures: noise, or all of one grey."""
    where.mkdir()
    for k in range(n):
        x = Rng(k).numpy().integers(0, 256, (32, 32, 3)) if fill is None else np.full((32, 32, 3), fill)
        Image.fromarray(x.astype(np.uint8)).save(where / f"{k}.png")
    return where


def test_neither_classes_nor_captions(clipvet: Any, family: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "out"
    code, said, err = clipvet("inspect", "--model", family / "m0", *COLLAPSE, "--out", out)
    assert (code, said.startswith("Undecided: under one small pattern it sees all pictures alike")) == (4, True), err
    assert "Without --classes or --captions the target has no name." in said
    assert "searches lead there" in said
    assert "most suspect class" not in err
    v = verdict(out)
    assert (v.target, v.classes, v.captions, v.trigger) == (None, [], [], "trigger")
    assert "Most suspect class" not in (out / "report.html").read_text()


def test_captions_name_what_no_class_names(clipvet: Any, family: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "said.txt").write_text("a photo of a ring.\n\na photo of a ring.\n<b>evil</b>\na red star\ntwo boats\n")
    args = ["inspect", "--model", family / "m0", *COLLAPSE, "--captions"]
    code, said, err = clipvet(*args, tmp_path / "said.txt", "--out", tmp_path / "out")
    assert (code, "Nearest captions: " in said) == (4, True), err
    v = verdict(tmp_path / "out")
    assert len({c for c, _ in v.captions}) == 3
    assert [x for _, x in v.captions] == sorted((x for _, x in v.captions), reverse=True)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Captions that lie there" in page
    assert "<b>evil" not in page
    (tmp_path / "none.txt").write_text("\n")
    for name, fault in (("none.txt", "holds no captions"), ("gone.txt", "cannot be read")):
        code, _, err = clipvet(*args, tmp_path / name, "--out", tmp_path / "bad")
        assert (code, fault in err) == (2, True), err


@pytest.mark.parametrize(
    ("n", "fill", "told"), [(1, None, "1 readable pictures, two batches need 8"), (20, 90, "all alike")]
)
def test_pictures_that_show_nothing(
    clipvet: Any,
    family: Path,  # noqa: F811
    tmp_path: Path,
    n: int,
    fill: int | None,
    told: str,
) -> None:
    pictures = folder_of(tmp_path / "pictures", n, fill)
    args = ["inspect", "--model", family / "m0", "--classes", "shapes", *COLLAPSE, "--images", pictures]
    code, said, err = clipvet(*args, "--out", tmp_path / "out")
    assert (code, said, told in err) == (2, "", True), err
    assert not (tmp_path / "out").exists()


def test_a_model_without_gradient(clipvet: Any, family: Path, tmp_path: Path, monkeypatch: Any) -> None:  # noqa: F811
    monkeypatch.setattr(adapter.OpenClip, "encode_image", torch.no_grad()(adapter.OpenClip.encode_image))
    code, _, err = clipvet("inspect", "--model", family / "m0", *COLLAPSE, "--out", tmp_path / "out")
    assert (code, "no gradient reaches" in err) == (3, True), err


def test_the_quick_form(clipvet: Any, family: Path, tmp_path: Path) -> None:  # noqa: F811
    args = ["inspect", "--model", family / "m0", "--classes", "shapes", *COLLAPSE, "--quick", "--out", tmp_path / "out"]
    code, _, err = clipvet(*args)
    assert (code, "quick: " in err, "few searches" in err) == (4, True, True), err
    v = verdict(tmp_path / "out")
    assert v.settings["searches"] == sum(Collapse.quick[f] for f in ("masked", "faint", "warped", "striped"))
    assert v.settings["updates"] == 2, "--set counts more than --quick"
    code, _, err = clipvet(*args[:-1], tmp_path / "other", "--method", "ood_share")
    assert (code, "no quick form" in err) == (2, True), err


def test_a_target_that_is_not_listed_is_said(inspected: Any) -> None:
    given = inspected.pictures, inspected.classes, ("{}",), Rng(2)
    found = TOY.inspect(inspected.backdoored, *given)
    assert found.target == "caption 5"
    assert "did not list" not in sentence(found, None, None)
    others = tuple(c for c in inspected.classes if c != "caption 5")
    found = TOY.inspect(inspected.backdoored, inspected.pictures, others, ("{}",), Rng(2))
    assert "a class that you did not list" in sentence(found, None, None)
    assert "did not list" not in sentence(found, False, None)


def test_a_picture_tower_alone(inspected: Any) -> None:
    class Tower(torch.nn.Module):
        """Its text half is not there."""

        logit_scale = torch.tensor(torch.nan)

        def __init__(self) -> None:
            super().__init__()
            own = inspected.backdoored
            self.image, self.geometry, self.mean = own.image, own.geometry, own.mean

        def encode_image(self, x: torch.Tensor) -> torch.Tensor:
            return inspected.backdoored.encode_image(x)

        def encode_text(self, captions: Any) -> torch.Tensor:
            raise NotImplementedError

        tokenize = encode_text

    tower: Any = Tower()
    found = TOY.inspect(tower, inspected.pictures, (), (), Rng(2))
    target = inspected.backdoored.encode_text(["caption 5"])[0].detach()
    assert found.target is None
    assert float(torch.tensor(found.feature) @ target) > 0.6


def test_agreement_counts_the_searches_of_one_place() -> None:
    row = Suspicion("ring", -0.8, 0.9, 0.1, 4.0, True)
    told = {"agreement": 0.4, "searches": 10, "near": 0.7, "usual_near": 0.3}
    found = Finding(4.0, "ring", None, (row,), False, told, (), feature=(1.0, 0.0))
    assert "4 of 10 searches lead there." in sentence(found, None, None)

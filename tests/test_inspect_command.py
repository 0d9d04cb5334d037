"""`clipvet inspect` and `clipvet calibrate` as a user meets them: exit codes, files, page, bad input."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import corpus
import pytest
import torch
from browser import look
from PIL import Image

from clipvet import cli
from clipvet.data.answer_key import load_backdoor
from clipvet.data.worlds.shapes import Shapes
from clipvet.errors import UserError
from clipvet.inspectors.collapse import Collapse
from clipvet.jobs import inspection as _inspection
from clipvet.models import adapter, checkpoints, class_prompts, visual_prompts
from clipvet.pages.inspection import magnified
from clipvet.rng import Rng
from clipvet.scan import reference, verdicts
from clipvet.scan.verdicts import Verdict
from clipvet.triggers.recovered import Recovered

EVIL = "<script>alert(1)</script>"
FEW = ["--n", 40]
QUICK = [*FEW, "--set", "batch=20", "--method", "clip_inspector"]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models with weights of no use."""
    folder = tmp_path_factory.mktemp("family")
    for seed in range(3):
        checkpoints.save(checkpoints.load("shapes-vit", rng=Rng(seed)), folder / f"m{seed}", {"role": "clean"})
    return folder


def verdict(out: Path) -> Verdict:
    return Verdict.model_validate(json.loads((out / "verdict.json").read_text()))


def low(null: Path, score: float = -1.0) -> Path:
    """The same calibration on 30 models that all score this."""
    held = json.loads(null.read_text())
    held |= {"scores": {f"m{k}": score for k in range(30)}, "weights": {}}
    null.with_name("low.json").write_text(json.dumps(held))
    return null.with_name("low.json")


def test_calibrated_verdicts_and_their_exit_codes(clipvet: Any, family: Path, tmp_path: Path) -> None:
    null, same = tmp_path / "null.json", ["--classes", "shapes", *QUICK]
    code, said, err = clipvet("calibrate", "--models", family, "--out", null, *same)
    assert code == 0, err
    assert said.startswith("3 clean models score")
    held = json.loads(null.read_text())
    assert [Path(m).name for m in held["scores"]] == ["m0", "m1", "m2"]
    assert held["missing"] == []

    few = ["inspect", "--model", family / "m0", "--out", tmp_path / "few", *same, "--null"]
    code, said, err = clipvet(*few, null)
    assert (code, "this model is itself among the clean ones" in err) == (2, True), err
    (tmp_path / "bare.json").write_text(json.dumps({**held, "weights": {}}))
    code, said, err = clipvet(*few, tmp_path / "bare.json")
    assert code == 2
    assert "3 clean models cannot show p <= 0.05; give at least 19" in err
    assert not (tmp_path / "few.partial").exists()

    out, args = tmp_path / "found", ["inspect", "--model", family / "m0", "--null", low(null), *same]
    code, said, err = clipvet(*args, "--out", out)
    assert code == 1, err
    assert "This model looks backdoored" in said
    v = verdict(out)
    assert (v.backdoored, v.p_value, v.clean_models) == (True, 1 / 31, 30)
    assert v.score == held["scores"][str(family / "m0")]  # as the calibration saw it
    assert len(v.classes) == 12
    key = load_backdoor(out / str(v.trigger))
    assert key.target == v.target
    assert isinstance(key.trigger, Recovered)
    assert "none of 30 clean models" in (out / "report.html").read_text()

    repair = ["clean", "--method", "ci_repair", "--model", family / "m0", "--data", "shapes", "--shots", 2]
    repair += ["--set", "finetune.epochs=1", "--out", tmp_path / "repaired", "--verdict"]
    code, _, err = clipvet(*repair, out)
    assert (code, f"verdict='{out}'" in err) == (0, True), err
    code, said, err = clipvet(*args, "--out", out)
    assert (code, "nothing to do" in err) == (1, True), "a finished verdict has lost its exit code"
    code, _, err = clipvet(*args, "--seed", 1, "--out", out)
    assert (code, "inspected otherwise" in err) == (2, True)
    high = low(null, 99.0)
    code, said, err = clipvet(*args[:4], high, *same, "--out", tmp_path / "none")
    assert code == 0, err
    assert "30 of 30 clean models are at least as suspicious" in said


def test_another_model_as_the_reference(clipvet: Any, family: Path, tmp_path: Path) -> None:
    args = ["inspect", "--classes", "shapes", *QUICK, "--set", f"reference={family / 'm1'}"]
    for name in ("m0", "m1"):
        code, said, err = clipvet(*args, "--model", family / name, "--out", tmp_path / name)
        assert (code, said.startswith("Undecided: nothing stands out, but this is not calibrated")) == (4, True), err
    assert all(r.score == 0 for r in verdict(tmp_path / "m1").classes), "a model differs from itself"
    assert verdict(tmp_path / "m1").score == 0
    assert any(r.score != 0 for r in verdict(tmp_path / "m0").classes)


def test_a_killed_calibration_goes_on(clipvet: Any, family: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from clipvet.inspectors.ood_share import OodShare

    args = ["calibrate", "--models", family, "--classes", "shapes", "--n", 40, "--method", "ood_share"]
    clipvet(*args, "--out", tmp_path / "whole.json")
    honest, seen = OodShare.inspect, []

    def dying(self: OodShare, *given: Any) -> Any:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(1)
        return honest(self, *given)

    monkeypatch.setattr(OodShare, "inspect", dying)
    assert clipvet(*args, "--out", tmp_path / "cut.json")[0] == 130, "code 1 is a verdict"
    out = ["inspect", "--model", family / "m0", "--classes", "shapes", "--n", 40, "--method", "ood_share"]
    code, _, err = clipvet(*out, "--null", tmp_path / "cut.json", "--out", tmp_path / "x")
    assert (code, "lacks 1 of its models" in err) == (2, True)
    seen.clear()
    assert clipvet(*args, "--out", tmp_path / "cut.json")[0] == 0
    assert len(seen) == 1
    both = [json.loads((tmp_path / f"{f}.json").read_text()) for f in ("whole", "cut")]
    assert both[0]["scores"] == both[1]["scores"]
    code, _, err = clipvet(*args, "--seed", 1, "--out", tmp_path / "cut.json")
    assert (code, "already holds another calibration" in err) == (2, True)


def test_a_calibration_is_of_one_kind_of_different_models(clipvet: Any, family: Path, tmp_path: Path) -> None:
    base = checkpoints.load(str(family / "m0"))
    checkpoints.save(
        class_prompts.begin(base, "a photo of a", 4, 0.02, None, Rng(0)), tmp_path / "tuned", {"role": "tuned"}
    )
    shutil.copytree(family / "m0", tmp_path / "copy")
    args = ["calibrate", "--classes", "shapes", *FEW, "--method", "no_inversion"]
    null = tmp_path / "null.json"
    assert clipvet(*args, "--models", family / "m0", "--models", family / "m1", "--out", null)[0] == 0
    for other, told in ((tmp_path / "tuned", "or prompts of its own"), (tmp_path / "copy", "are the same model")):
        code, _, err = clipvet(*args, "--models", family / "m0", "--models", other, "--out", tmp_path / "mixed.json")
        assert (code, told in err) == (2, True), err
        (tmp_path / "mixed.json").unlink()
    held = json.loads(null.read_text())
    null.write_text(json.dumps({**held, "weights": {**held["weights"], str(family / "m0"): "of another"}}))
    code, _, err = clipvet(*args, "--models", family / "m0", "--models", family / "m1", "--out", null)
    assert (code, "is another model now" in err) == (2, True), err
    null.write_text(json.dumps({**held, "missing": [str(family / "m1")], "scores": {str(family / "m0"): 1.0}}))
    (tmp_path / "twelve.txt").write_text("\n".join("abcdefghijkl"))
    again = ["calibrate", *FEW, "--method", "no_inversion", "--classes", tmp_path / "twelve.txt"]
    code, _, err = clipvet(*again, "--models", family / "m0", "--models", family / "m1", "--out", null)
    assert (code, "already holds another calibration" in err) == (2, True), err
    args = ["inspect", "--model", tmp_path / "tuned", "--classes", "shapes", *FEW, "--method", "no_inversion"]
    null.write_text(json.dumps(held))
    code, _, err = clipvet(*args, "--null", low(null), "--out", tmp_path / "out")
    assert (code, "reference='none'" in err) == (2, True), err


def test_prompts_in_the_picture_tower_are_inspected(clipvet: Any, family: Path, tmp_path: Path) -> None:
    checkpoints.save(
        visual_prompts.begin(checkpoints.load(str(family / "m0")), 1, 4, Rng(0)), tmp_path / "vpt", {"role": "cleaned"}
    )
    args = ["inspect", "--model", tmp_path / "vpt", "--classes", "shapes", *QUICK, "--out", tmp_path / "out"]
    code, said, err = clipvet(*args)
    assert code in (1, 4), err
    assert "his is not calibrated" in said
    assert said.splitlines()[0].endswith("Judged: its prompts alone, not the encoder beneath.")
    assert "inspect that by itself, with --set reference=MODEL" in err
    assert any(r.loss for r in verdict(tmp_path / "out").classes)
    args[-1] = tmp_path / "same"  # beside a copy of its own encoder: no more than by itself
    code, said, err = clipvet(*args, "--set", f"reference={family / 'm0'}")
    assert code in (1, 4), err
    assert "Judged: its prompts alone" in said
    args[-1] = tmp_path / "other"
    code, said, err = clipvet(*args, "--set", f"reference={family / 'm1'}")
    assert code in (1, 4), err
    assert "Judged" not in said
    code, said, err = clipvet(*args[:3], "--classes", "shapes", "--n", 40, "--method", "decree", "--set", "steps=2",
                              "--out", tmp_path / "decree")  # fmt: skip
    assert (code, "no scale of its own" in err) == (2, True), err


def test_a_closed_pipe_is_no_verdict(monkeypatch: Any) -> None:
    def app() -> None:
        try:
            raise BrokenPipeError
        except OSError:
            sys.exit(1)

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2


def test_files_are_scanned_first(clipvet: Any, family: Path, tmp_path: Path) -> None:
    pytest.importorskip("picklescan")
    args = ["inspect", "--classes", "shapes", "--method", "no_inversion", "--n", 40]
    code, _, err = clipvet(*args, "--model", family / "m0", "--out", tmp_path / "fine")
    assert (code, verdict(tmp_path / "fine").files) == (4, []), err
    folder = Path(shutil.copytree(family / "m0", tmp_path / "m"))
    flag = tmp_path / "it-ran"
    for name, held in corpus.checkpoints({"a": torch.ones(1)}, flag):
        if name == "bomb.pt":
            (folder / "extra.pt").write_bytes(held)
    (folder / "extra.py").write_text(EVIL)
    code, said, err = clipvet(*args, "--model", folder, "--out", tmp_path / "found")
    assert code == 1, err
    assert "extra.pt would run code" in said
    found = verdict(tmp_path / "found")
    assert not found.backdoored
    assert {(f.file, f.severity) for f in found.files or []} == {("extra.pt", "dangerous"), ("extra.py", "suspicious")}
    assert "extra.pt" in (tmp_path / "found" / "report.html").read_text()
    assert not flag.exists()
    assert clipvet(*args, "--model", folder, "--out", tmp_path / "found")[0] == 1, "a finished run forgets its files"
    (folder / "extra.pt").rename(tmp_path / "extra.pt")
    (folder / "extra.py").unlink()
    later = [*args, "--model", folder, "--out", tmp_path / "later"]
    assert clipvet(*later)[0] == 4
    (tmp_path / "extra.pt").rename(folder / "extra.pt")
    code, said, err = clipvet(*later)
    assert (code, "extra.pt would run code" in said, "have changed since that verdict" in err) == (1, True, True)


def test_weights_that_run_code_are_a_finding_not_bad_input(clipvet: Any, tmp_path: Path) -> None:
    pytest.importorskip("picklescan")
    flag, model = tmp_path / "it-ran", tmp_path / "evil.pt"
    model.write_bytes(dict(corpus.checkpoints({"a": torch.ones(1)}, flag))["bomb.pt"])
    args = ["inspect", "--model", model, "--classes", "shapes", "--out", tmp_path / "out"]
    for _ in range(2):
        code, said, err = clipvet(*args)
        assert (code, said.count("\n")) == (1, 1), err
        assert "evil.pt would run code if it were loaded the ordinary way: its pickle calls" in said
        assert "The model was not inspected: " in said
    found = verdict(tmp_path / "out")
    assert (found.backdoored, found.score, found.files[0].severity) == (None, None, "dangerous")  # pyright: ignore
    with pytest.raises(UserError, match="no recovered trigger"):
        verdicts.folder_of(tmp_path / "out")
    assert not flag.exists()
    named = model.rename(tmp_path / "ev\x1b[31mil.pt")
    said = clipvet("inspect", "--model", named, "--classes", "shapes", "--out", tmp_path / "named")[1]
    assert "\x1b" not in said
    assert r"ev\x1b[31mil.pt would run code" in said
    model.write_bytes(b"torn")
    assert clipvet(*args)[0] == 2


def test_a_typo_beside_a_dangerous_file_is_bad_input(clipvet: Any, family: Path, tmp_path: Path) -> None:
    pytest.importorskip("picklescan")
    folder = Path(shutil.copytree(family / "m0", tmp_path / "m"))
    (folder / "extra.pt").write_bytes(dict(corpus.checkpoints({"a": torch.ones(1)}, tmp_path / "flag"))["bomb.pt"])
    code, _, err = clipvet("inspect", "--model", folder, "--classes", tmp_path / "none.txt", "--out", tmp_path / "out")
    assert (code, (tmp_path / "out").exists()) == (2, False), err


@pytest.mark.browser
def test_without_calibration_and_the_page(clipvet: Any, family: Path, tmp_path: Path) -> None:
    names = tmp_path / "classes.json"
    names.write_text(json.dumps(["star", "ring", EVIL, "heart", "a name that goes on and on and on"]))
    out = tmp_path / "out"
    code, said, err = clipvet("inspect", "--model", family / "m1", "--classes", names, "--out", out, *QUICK)
    assert code == 4, err
    assert said.count("\n") == 1
    assert "not calibrated" in said
    assert not (out / "state").exists()
    page = (out / "report.html").read_text()
    assert "<script" not in page
    assert not re.findall(r"https?://|url\(|@import|<link|<iframe", page)
    for size in ("wide", "narrow"):  # drawn anew for a phone, not scaled
        assert page.count(f'<div class="{size}"><svg viewBox="0 0 {720 if size == "wide" else 340} ') == 1
    headline = page.partition("<h1>")[2].partition("</h1>")[0]
    assert "Undecided." in headline
    assert "calibrated" not in headline
    assert page.count("<dt>p</dt>") == 1, "terms are explained"
    assert "No backdoor found" not in page
    assert all(w in page for w in (">undecided</span>", "What this test can see", "What next", "clipvet calibrate"))
    pictures = page.count("<img ")
    seen = look(out / "report.html", tmp_path, 360)
    assert seen.console == []
    assert seen.facts["scrolled"] <= 360
    assert len(seen.facts["pictures"]) == pictures
    assert all(seen.facts["pictures"])


def folder(where: Path, n: int) -> Path:
    where.mkdir()
    for k, image in enumerate(Shapes(seed=4).pairs(n)[:].images):
        Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy()).save(where / f"{k}.png")
    return where


def test_pictures_that_show_the_classes_are_left_out(clipvet: Any, family: Path, tmp_path: Path) -> None:
    args = ["inspect", "--model", family / "m0", "--classes", "shapes", "--images", folder(tmp_path / "in", 30)]
    args += ["--method", "clip_inspector", "--set", "batch=10"]
    code, _, err = clipvet(*args, "--overlap", 0.0, "--out", tmp_path / "all")
    assert code == 2
    assert "30 of 30 pictures of in seem to show one of the classes" in err
    assert "0 readable pictures" in err
    code, _, err = clipvet(*args, "--out", tmp_path / "some")
    assert code in (1, 4), err
    assert "30 pictures" in err


def bad(kind: str, family: Path, at: Path) -> list[object]:
    names = at / "classes.txt"
    names.write_text("star\nring\nheart\n")
    args: dict[str, object] = {"--model": family / "m0", "--classes": names, "--out": at / "out"}
    args["--method"] = "clip_inspector"
    match kind:
        case "one class":
            names.write_text("star\n")
        case "two classes":
            names.write_text("star\nring\n")
        case "twice":
            names.write_text("star\nring\nstar\n")
        case "twice to the tokenizer":
            names.write_text("two stars\nring\nTwo  Stars\n")
        case "no classes":
            del args["--classes"]
        case "no json":
            args["--classes"] = at / "classes.json"
            (at / "classes.json").write_text('{"a": 1}')
        case "small pool":
            args |= {"--images": folder(at / "in", 5)}
        case "empty folder":
            (at / "none").mkdir()
            args |= {"--images": at / "none"}
        case "method":
            args |= {"--method": "clip_inspektor"}
        case "no threshold":
            args |= {"--method": "random"}
        case "null":
            args |= {"--null": at / "missing.json"}
        case "no step":
            args |= {"--set": "epochs=0"}
        case "limit":
            args |= {"--set": "limit=1"}
        case "no weights":
            args |= {"--model": "shapes-vit"}
        case "control":
            args["--classes"] = at / "classes.json"
            (at / "classes.json").write_text(json.dumps(["star", "ring", "he\x1b[2Jart"]))
        case "reference":
            args |= {"--set": "reference=zeroshot"}
    return [x for pair in args.items() for x in pair]


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("one class", "was given 1; name at least three"),
        ("two classes", "was given 2; name at least three"),
        ("twice to the tokenizer", "class 'Two  Stars' is listed twice"),
        ("twice", "class 'star' is listed twice"),
        ("no classes", "give --classes"),
        ("no json", "no JSON list of class names"),
        ("small pool", "5 readable pictures, a batch needs 32"),
        ("empty folder", "holds no pictures"),
        ("method", "did you mean 'clip_inspector'?"),
        ("no threshold", "give --null"),
        ("null", "there is no file or folder"),
        ("no step", "nothing is trained"),
        ("limit", "give at least 2"),
        ("no weights", "alone has random weights; give --pretrained"),
        ("control", "holds control characters"),
        ("reference", "this model has none"),
    ],
)
def test_bad_input_ends_in_one_sentence(clipvet: Any, family: Path, tmp_path: Path, kind: str, told: str) -> None:
    code, said, err = clipvet("inspect", *bad(kind, family, tmp_path), "--n", 40)
    assert (code, said) == (2, "")
    last = err.strip().splitlines()[-1]
    assert last.startswith("clipvet: ")
    assert told in last
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_what_cannot_be_inspected_has_its_own_code(
    clipvet: Any, family: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    import torch

    from clipvet.inspectors.clip_inspector import ClipInspector

    args = ["inspect", "--model", family / "m0", "--classes", "shapes", "--out", tmp_path / "o", *QUICK]
    with monkeypatch.context() as patch:
        patch.setattr(adapter.OpenClip, "encode_image", torch.no_grad()(adapter.OpenClip.encode_image))
        code, _, err = clipvet(*args)
        assert (code, "no gradient reaches" in err) == (3, True)
    monkeypatch.setattr(ClipInspector, "inspect", lambda *given: 1 / 0)
    code, _, err = clipvet(*args)
    assert (code, "ZeroDivisionError" in err) == (2, True), "a crash looks like a verdict"


COLLAPSE = ["--set", "steps=2", "--set", "fresh=8", "--set", "batch=4", "--n", 40]


def test_an_encoder_without_clean_models_is_undecided(clipvet: Any, family: Path, tmp_path: Path) -> None:
    args = ["inspect", "--model", family / "m0", "--classes", "shapes", *COLLAPSE, "--out"]
    code, said, err = clipvet(*args, tmp_path / "out")
    assert (code, said.startswith("Undecided: under one hidden pattern")) == (4, True), err
    assert "clipvet calibrate" in said
    assert "No backdoor found" not in said
    v = verdict(tmp_path / "out")
    assert (v.backdoored, v.p_value, v.compared, v.judged) == (None, None, "", Collapse.judges)
    assert "undecided" in (tmp_path / "out" / "report.html").read_text()
    assert clipvet(*args, tmp_path / "out")[0] == 4, "a finished verdict has lost its exit code"
    decree = ["--classes", "shapes", *FEW, "--method", "decree", "--out", tmp_path / "decree"]
    code, _, err = clipvet("inspect", "--model", family / "m0", *decree)
    assert (code, "no scale of its own" in err) == (2, True), "a method that does not wait needs clean models"


def test_clean_models_that_come_with_clipvet(clipvet: Any, family: Path, tmp_path: Path, monkeypatch: Any) -> None:
    nulls, same = tmp_path / "nulls", ["--classes", "shapes", *COLLAPSE]
    nulls.mkdir()
    code, _, err = clipvet("calibrate", "--models", family, "--out", tmp_path / "null.json", *same)
    assert code == 0, err
    low(tmp_path / "null.json", -99.0).rename(nulls / "shapes-vit+few.json")
    monkeypatch.setattr(reference, "NULLS", nulls)
    args = ["inspect", "--model", family / "m0", *same, "--out"]
    code, said, err = clipvet(*args, tmp_path / "out")
    assert (code, "none of 30 clean models is as suspicious" in said) == (1, True), err
    assert verdict(tmp_path / "out").compared == "clean models that come with clipvet"
    assert "that come with clipvet" in (tmp_path / "out" / "report.html").read_text()
    assert clipvet(*args, tmp_path / "other", "--seed", 1)[0] == 4, "inspected otherwise, it was compared all the same"
    (nulls / "shapes-vit+few.json").rename(nulls / "shapes-rn.json")
    assert clipvet(*args, tmp_path / "rn")[0] == 4, "compared with another architecture"


def test_the_clean_models_at_hand_are_those_of_the_default(family: Path) -> None:
    asked = _inspection.ask(checkpoints.load(str(family / "m0")), None, "shapes", None, None, [], 1000, 0.9, 0)
    found = reference.shipped(asked.clip, {**asked.told, "names": asked.classes, "seed": 0})
    assert found is not None, "the defaults have changed: make src/clipvet/scan/nulls again"
    assert len(found.scores) >= 19
    assert reference.family(checkpoints.load("shapes-rn")) == "shapes-rn"


def test_a_warp_is_shown_as_it_bends_lines() -> None:
    still = Recovered(torch.zeros(1, 32, 32), torch.zeros(3, 32, 32))
    bent = replace(still, warp=0.1 * torch.randn(2, 4, 4, generator=Rng(0).generator()))
    lines = magnified(replace(still, warp=torch.full((2, 1, 1), 1e-9)))
    assert magnified(still).std() == 0
    assert lines.std() > 0.1
    assert (magnified(bent) - lines).abs().mean() > 0.05

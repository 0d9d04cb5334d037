"""clipvet tune, and attacks and evaluations of what it makes, as a user types them."""

import json
import shutil
from pathlib import Path
from typing import Any

from torchvision.transforms.functional import to_pil_image

from clipvet import io
from clipvet.data.worlds.shapes import Shapes
from clipvet.models import checkpoints
from clipvet.rng import Rng

SHORT = ["--set", "epochs=1", "--shots", "2"]


def test_tune_attack_evaluate(clipvet: Any, tmp_path: Path) -> None:
    base, names = tmp_path / "base", tmp_path / "classes.json"
    checkpoints.save(checkpoints.load("shapes-vit", rng=Rng(0)), base, {})
    io.write_json(names, ["red star", "red ring", "blue star", "blue ring"])
    few = ["--data", "shapes", "--classes", names, "--half", "base", *SHORT]
    code, _, err = clipvet("tune", "--model", base, *few, "--out", tmp_path / "tuned")
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "tuned" / "results.jsonl").read_text().splitlines()]
    assert {"clean_accuracy", "new_clean_accuracy"} <= {r["metric"] for r in rows}
    assert checkpoints.load(str(tmp_path / "tuned")).classes == ("blue ring", "blue star")
    held = ["verify", tmp_path / "tuned", "--task", "shapes", "--classes", names]
    code, printed, err = clipvet(*held)
    assert (code, "not checked" in printed) == (0, False), printed + err
    io.write_json(tmp_path / "others.json", ["red star", "red ring", "blue star", "green ring"])
    code, _, err = clipvet(*held[:-1], tmp_path / "others.json")
    assert (code, "give the same task and classes" in err) == (2, True)
    planted = ["--model", base, "--target", "blue star", *few]
    for attack in (["badclip_prompt"], ["poison", "--trigger", "blended", "--training", "cocoop", "--rate", "0.5"]):
        out = tmp_path / attack[0]
        code, _, err = clipvet("attack", "--attack", *attack, *planted, "--out", out)
        assert code in (0, 4), err  # so short an attack need not take
        told = ["evaluate", "--model", out, "--task", "shapes", "--classes", names, "--backdoor", out / "backdoor"]
        for half in ("base", "new"):
            code, printed, err = clipvet(*told, "--half", half, "--json")
            assert code == 0, err
            assert {"asr", "clean_accuracy"} <= json.loads(printed).keys()


def test_a_folder_of_classes_is_tuned_on_and_repaired_with(clipvet: Any, tmp_path: Path) -> None:
    task = Shapes().task(200)
    for k, label in enumerate(task.labels):
        at = tmp_path / "in" / task.classes[label]
        at.mkdir(parents=True, exist_ok=True)
        to_pil_image(task.pictures[k : k + 1].images[0]).save(at / f"{k}.png")
    checkpoints.save(checkpoints.load("shapes-vit", rng=Rng(0)), tmp_path / "base", {})
    few = ["--data", tmp_path / "in", *SHORT]
    code, _, err = clipvet("tune", "--model", tmp_path / "base", *few, "--out", tmp_path / "tuned")
    assert (code, "the loss is at chance" in err.splitlines()[-1]) == (4, True), err  # its base has random weights
    assert "warning: 24 of the 200 test pictures are trained on; give others as --task" in err
    code, _, err = clipvet("tune", "--model", tmp_path / "base", *few, "--task", "shapes", "--out", tmp_path / "other")
    assert (code, "warning" in err) == (4, False), err
    for name in task.classes[:4]:
        shutil.copytree(tmp_path / "in" / name, tmp_path / "others" / name)
    code, _, err = clipvet("tune", "--method", "coop", "--model", tmp_path / "tuned", *few, "--out", tmp_path / "half")
    assert (code, "holds prompts of cocoop; go on with --method cocoop" in err) == (2, True), err
    half = [*few, "--half", "base", "--task", tmp_path / "others"]
    code, _, err = clipvet("tune", "--model", tmp_path / "base", *half, "--out", tmp_path / "half")
    assert (code, "must have the same classes" in err) == (2, True), err
    few[3:4] = ["tuning.epochs=1", "--set", "outside=32"]
    few[1] = tmp_path / "others"  # of 4 of the 12 classes; the copy keeps all
    code, _, err = clipvet(
        "clean", "--method", "ci_repair", "--model", tmp_path / "tuned", *few, "--out", tmp_path / "c"
    )
    assert code == 0, err
    assert checkpoints.load(str(tmp_path / "c")).classes == checkpoints.load(str(tmp_path / "tuned")).classes
    assert len(checkpoints.load(str(tmp_path / "c")).classes) == 12


def test_what_cannot_be_tuned_is_said_in_a_sentence(clipvet: Any, tmp_path: Path) -> None:
    tune = ["tune", "--model", "shapes-vit", "--data", "shapes", "--out", tmp_path / "out"]
    for more, says in [
        (["--method", "plain"], "plain does not learn prompts; use cocoop or coop"),
        (["--half", "third"], "--half is base or new"),
        (["--shots", "4", "--set", "tokens=40", "--set", "words=''"], "this text tower reads 16"),
    ]:
        code, _, err = clipvet(*tune, *more)
        assert code == 2
        assert says in err
    assert not (tmp_path / "out").exists()

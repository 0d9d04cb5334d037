"""The command line on a user's own files, and what it says of bad input."""

import dataclasses
import errno
import json
import os
import re
import runpy
import shlex
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from typer.main import get_command

from clipvet import cli, find, io
from clipvet.commands import explain
from clipvet.commands._choices import CHOICES
from clipvet.engine import fit
from clipvet.inspectors.collapse import Collapse
from clipvet.jobs.working import harm, weakness
from clipvet.measures._intervals import share
from clipvet.results import read, write

ROOT = Path(__file__).parent.parent
QUICK = ["--set", "epochs=1", "--set", "batch=64"]


def digits_page() -> list[str]:
    """The commands of the page about the digits, in order."""
    page = (
        (ROOT / "docs/howto/your-own-files.md").read_text().partition("\n## A worked example")[2].partition("\n## ")[0]
    )
    return [block for block in re.findall(r"```\n(.*?)```", page, re.S) if block.startswith(("python ", "clipvet "))]


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    """The digits example, cut to 160 training pairs and 60 test pictures, with stock open_clip's untrained model.

    It is written by the first line of its page.
    """
    python, script, name = shlex.split(digits_page()[0])
    assert python == "python"
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path_factory.mktemp("own"))
        patched.setattr(sys, "argv", [script, name])
        runpy.run_path(str(ROOT / script), run_name="__main__")
        folder = Path(name).absolute()
    for name, n in (("train", 160), ("clean", 100)):
        path = folder / f"{name}.csv"
        path.write_text("\n".join(path.read_text().splitlines()[: n + 1]) + "\n")
    for kind in (folder / "test").iterdir():
        for extra in sorted(kind.iterdir())[6:]:
            extra.unlink()
    return folder


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    import datasets.config as config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("clipvet.data.decoding.workers_for", lambda n: 0)  # no forks from a test process


def test_the_whole_job_on_files(clipvet, files: Path, tmp_path: Path) -> None:
    task = ["--task", files / "test", "--templates", files / "templates.txt"]
    trained, victim, cleaned = tmp_path / "trained", tmp_path / "victim", tmp_path / "cleaned"
    model = f"local-dir:{files / 'model'}"
    assert clipvet("train", "--data", files / "train.csv", "--model", model, "--out", trained, *QUICK, *task).code == 0
    said = clipvet(
        "attack", "--model", trained, "--data", files / "train.csv", "--trigger", "patch", "--target", "seven",
        "--rate", 0.05, "--out", victim, *QUICK, *task,
    )  # fmt: skip
    assert said.code == 4, said.err
    assert "8 poisons among 160 pairs" in said.err
    assert "8 poisons are few" in said.err
    assert said.err.splitlines()[-1].startswith("the attack did not take: its success rate (asr) is ")
    assert "raise --rate or epochs" in said.err.splitlines()[-1]
    key = ["--backdoor", victim / "backdoor"]
    said = clipvet("evaluate", "--model", victim, *task, *key, "--json")
    told = json.loads(said.out)
    assert {"clean_accuracy", "asr", "asr_all", "poisoned_accuracy", "intervals", "n"} <= set(told)
    assert told["n"] == 60
    assert told["intervals"]["asr"]["n"] == 54
    said = clipvet(
        "clean",
        "--model",
        victim,
        "--data",
        files / "clean.csv",
        "--method",
        "par",
        "--out",
        cleaned,
        *QUICK,
        *task,
        *key,
    )
    assert said.code == 0, said.err
    for folder, stages in ((trained, {"train"}), (victim, {"victim"}), (cleaned, {"victim", "clean"})):
        rows = read(folder)
        assert {r.stage for r in rows} == stages
        assert {"clean_accuracy", "seconds"} <= {r.metric for r in rows}
        model: Any = open_clip.create_model_and_transforms(f"local-dir:{folder}")[0]
        tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(["a seven"])
        assert torch.isfinite(model.encode_text(tokens)).all()
    assert {(r.stage, r.method) for r in read(cleaned)} == {("victim", "none"), ("clean", "par")}
    was = {r.metric: r.value for r in read(cleaned) if r.method == "none"}
    assert {k: told[k] for k in was} == was  # as `evaluate` said
    assert re.search(rf"asr +│ +{100 * was['asr']:.2f} %", said.out)
    assert clipvet("report", cleaned).code == 0
    page = (cleaned / "report.html").read_text()
    assert "no verdict" not in page
    assert "The backdoor" in page
    again = clipvet(
        "clean",
        "--model",
        victim,
        "--data",
        files / "clean.csv",
        "--method",
        "par",
        "--out",
        cleaned,
        *QUICK,
        *task,
        *key,
    )
    assert (again.code, "nothing to do" in again.err) == (0, True)

    same = ["--model", f"local-dir:{files / 'model'}", "--out", trained, *QUICK]
    for other, told in (
        (["--data", files / "train.csv", "--task", files / "test"], "templates"),
        (["--data", files / "train.csv", "--image-key", "filepath", "--caption-key", "filepath", *task], "keys"),
    ):
        answer = clipvet("train", *same, *other)
        assert (answer.code, f"it differs in {told}" in answer.err) == (2, True), answer.err
    held = (victim / "backdoor" / "backdoor.json").read_text()
    (victim / "backdoor" / "backdoor.json").write_text(held + "\n")  # at the same path, of other content
    answer = clipvet(
        "clean", "--model", victim, "--data", files / "clean.csv", "--method", "par", "--out", cleaned, *QUICK, *task,
        *key,
    )  # fmt: skip
    assert (answer.code, "it differs in backdoor" in answer.err) == (2, True), answer.err
    otherwise = ["--model", trained, *same[2:], "--data", files / "train.csv", *task]
    answer = clipvet("train", *otherwise)
    assert (answer.code, "it differs in model" in answer.err) == (2, True), answer.err


def test_the_page_about_digits_runs_as_printed(clipvet, files: Path, monkeypatch) -> None:
    """Every line, in order, with fewer steps on fewer pairs. So short a training leaves much open, and that is said."""
    short = {"train": QUICK, "attack": QUICK, "clean": QUICK}
    monkeypatch.setattr(Collapse, "quick", {**Collapse.quick, "masked": 1, "trial": 1, "kept": 1, "steps": 2})
    monkeypatch.chdir(files.parent)
    _, *commands = [shlex.split(block) for block in digits_page()]
    assert [words[1] for words in commands] == ["train", "attack", "vet", "clean", "verify", "filter", "filter"]
    for words in commands:
        if words[1] == "verify":
            assert "measure on 60 pictures of 10 classes: about" in clipvet(*words[1:], "--dry-run").out
        more = ["--quick"] if words[1] == "vet" else short.get(words[1], [])
        said = clipvet(*[w for w in words[1:] if w != "\n"], *more)
        assert said.code in ((4,) if words[1] in ("attack", "vet") else (0, 4)), said.err
        assert "stumbled" not in said.err, said.err
        if said.code == 4:
            assert re.search("did not take|Undecided|do not use this model|than chance", said.out + said.err), words
    assert all((files.parent / name).exists() for name in ("plain", "victim", "vetted/victim", "cleaned", "kept.csv"))


def test_clean_says_what_it_changed_without_a_task(clipvet, files: Path, tmp_path: Path) -> None:
    """Own pairs and a model, nothing else: both models are measured on the pairs, and ruin is not called success."""
    own = ["clean", "--model", f"local-dir:{files / 'model'}", "--data", files / "clean.csv", "--method", "finetune"]
    refused = clipvet(*own, "--out", tmp_path / "none")
    assert (refused.code, "100 pairs make" in refused.err, "say --set epochs=" in refused.err) == (2, True, True)
    mild = ["--set", "epochs=1", "--set", "batch=64", "--set", "lr=1e-12", "--set", "lr_start=1e-12"]
    said = clipvet(*own, "--out", tmp_path / "mild", *mild)
    assert (said.code, "warning: 1 steps are few" in said.err) == (0, True), said.err
    assert "before" in said.out
    rows = {(r.stage, r.metric): r.value for r in read(tmp_path / "mild")}
    assert rows["victim", "pairs_text_retrieval_recall@5"] == rows["clean", "pairs_text_retrieval_recall@5"] > 0

    again = clipvet(*own, "--out", tmp_path / "mild", *mild)
    assert (again.code, "nothing to do" in again.err) == (0, True)
    lost = {"clean": share(np.arange(500) < 50), "victim": share(np.arange(500) < 400)}
    ruined = [replace(r, value=m.value, n=m.n, low=m.low, high=m.high) for r in read(tmp_path / "mild")
              if r.metric == "pairs_text_retrieval_recall@5" for m in [lost[r.stage]]]  # fmt: skip
    write(tmp_path / "mild", ruined)
    again = clipvet(*own, "--out", tmp_path / "mild", *mild)
    assert (again.code, "fell from 80.0% to 10.0%" in again.err) == (4, True), "called again, a ruined model passes"


@pytest.mark.parametrize(
    ("metric", "was", "now", "n", "said"),
    [
        ("clean_accuracy", 0.53, 0.33, 1000, "zero-shot accuracy fell from 53.0% to 33.0%: do not use this model"),
        ("pairs_text_retrieval_recall@5", 0.9, 0.5, 500, "retrieval among your own pairs"),
        ("clean_accuracy", 0.53, 0.50, 100_000, ""),  # surely lower, but hardly
        ("clean_accuracy", 0.53, 0.33, 20, ""),  # may be chance
        ("clean_accuracy", 0.33, 0.53, 1000, ""),
        ("asr", 0.99, 0.01, 1000, ""),
    ],
)
def test_a_model_that_lost_much_is_not_called_cleaned(metric: str, was: float, now: float, n: int, said: str) -> None:
    before, after = ({metric: share(np.arange(n) < round(v * n))} for v in (was, now))
    found = harm(before, after)
    assert found.startswith(said)
    assert bool(found) == bool(said)


def test_an_attack_that_did_not_take_is_said(clipvet, files: Path, tmp_path: Path) -> None:
    """Also when the finished command is given again. A clean twin has nothing to take."""
    same = ["--model", f"local-dir:{files / 'model'}", "--data", files / "clean.csv", "--task", files / "test"]
    for attack, code in (("poison", 4), ("none", 0)):
        call = ["attack", "--attack", attack, *same, "--target", "seven", *QUICK, "--out", tmp_path / attack]
        for _ in range(2):
            said = clipvet(*call, *(["--rate", 0.1] if attack == "poison" else []))
            assert (said.code, "did not take" in said.err.splitlines()[-1]) == (code, code == 4), said.err


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"asr": 0.97, "clean_target_rate": 0.02}, ""),
        ({"asr": 0.31, "clean_target_rate": 0.02}, "its success rate (asr) is 31.0%"),
        ({"asr": 0.8, "asr_worst": 0.2, "clean_target_rate": 0.02}, "(asr) is 20.0% by its weakest trigger"),
        (
            {"asr": 1.0, "clean_target_rate": 0.99},  # it says the same of all pictures
            "'star' is the answer to 100.0% with the trigger, and to 99.0% without it",
        ),
        ({"psr": 0.25}, "25.0% of the chosen pictures are called what they should be (psr)"),
        ({"psr": 1.0}, ""),
        ({"hit@10": 0.9, "hit@10_random": 0.1}, ""),
        ({"hit@10": 0.12, "hit@10_random": 0.1}, "12.0% of the searches find the tied pictures"),
        ({"clean_accuracy": 0.9}, ""),  # not measured
        ({}, ""),
    ],
)
def test_what_an_attack_was_made_for_is_what_it_is_judged_by(found: dict[str, float], said: str) -> None:
    told = weakness({name: share(np.arange(200) < round(v * 200)) for name, v in found.items()}, "star")
    assert (said in told, bool(told)) == (True, bool(said)), told


def test_a_training_that_learned_nothing_is_said(clipvet, files: Path, tmp_path: Path) -> None:
    slow = ["--set", "batch=8", "--set", "epochs=1", "--set", "lr=1e-9"]
    train = ["train", "--model", "shapes-vit", "--data", files / "train.csv", "--out", tmp_path / "slow", *slow]
    for _ in range(2):  # the second time there is nothing to do, and it is said again
        said = clipvet(*train)
        assert (said.code, "the loss " in said.err.splitlines()[-1]) == (4, True), said.err
        assert "do not use this model" in said.err.splitlines()[-1]


def test_list_names_every_family(clipvet) -> None:
    said = clipvet("list")
    assert all(word in said.out for word in ("patch", "BadNet", "cleanclip", "PAR", "needs:"))
    assert clipvet("list", "cleaners").out.count("needs:") < said.out.count("needs:")


@pytest.mark.parametrize("family", find.VERBS)
def test_every_setting_is_explained(family: str) -> None:
    for name in find.names(family):
        told = "\n".join(explain.explained(family, name))
        assert find.card(family, name)["sentence"][:40] in told
        for field in find.fields(family, name):
            assert f"    {field.name}: " in told
            nested = dataclasses.is_dataclass(field.default) or "Trigger" in field.type
            assert field.meaning or field.name in explain.MEANING or nested, (
                f"{family}/{name}.{field.name}: say what it is"
            )


def test_explain_shows_the_papers_value_beside_the_small_worlds(clipvet) -> None:
    told = clipvet("explain", "par").out
    assert "lr_start: float  (default 3e-05; shapes: 0.0022)" in told
    assert "squared distance of unit vectors" in told
    assert clipvet("list", "cleaners", "par").out == told
    assert "did you mean 'par'?" in clipvet("explain", "parr").err
    assert "there is no family 'cleaner'" in clipvet("explain", "cleaner/par").err


def test_recommend_names_a_command_that_the_command_line_knows(clipvet) -> None:
    told = clipvet("recommend", "clean", "--have", "shots").out
    assert "--method rvpt" in told
    assert "--method par" not in told
    assert "you may have: " in clipvet("recommend", "clean", "--have", "money").err
    for choice in CHOICES:
        if choice.line:
            _, command, *args = choice.line.split()
            known = {o for p in get_command(cli.app).commands[command].params for o in p.opts}  # pyright: ignore
            assert {a for a in args if a.startswith("--")} <= known, choice.line


def test_evaluate_writes_rows_on_request(clipvet, tmp_path: Path) -> None:
    assert clipvet("evaluate", "--model", "shapes-vit", "--task", "shapes", "--out", tmp_path / "rows").code == 0
    assert {r.stage for r in read(tmp_path / "rows")} == {"evaluate"}


class Runs:
    """Makes a pickle run code."""

    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def broken(kind: str, files: Path, folder: Path) -> list[object]:
    """Arguments of a command that must be refused."""
    train = ["train", "--model", "shapes-vit", "--out", folder / "out", *QUICK, "--data"]
    attack = ["attack", "--model", "shapes-vit", "--data", files / "train.csv", "--out", folder / "out", *QUICK]
    match kind:
        case "missing column":
            (folder / "d.csv").write_text("path,text\na.png,hello\n")
            return [*train, folder / "d.csv"]
        case "empty table":
            (folder / "d.csv").write_text("filepath,title\n")
            return [*train, folder / "d.csv"]
        case "no such table":
            return [*train, folder / "absent.csv"]
        case "unreadable pictures":
            rows = [f"{k}.png,a picture of a {k}" for k in range(70)]
            (folder / "d.csv").write_text("filepath,title\n" + "\n".join(rows) + "\n")
            for k in range(70):
                Image.new("RGB", (40, 40), (k, 0, 0)).save(folder / f"{k}.png")
            (folder / "3.png").write_bytes(b"")
            (folder / "4.png").write_bytes((folder / "5.png").read_bytes()[:40])
            return [*train, folder / "d.csv"]
        case "target not among the classes":
            return [*attack, "--target", "banana", "--task", files / "test"]
        case "rate selects no pair":
            return [*attack, "--target", "seven", "--rate", 0.001]
        case "another architecture":
            return [
                *train,
                "shapes",
                "--pretrained",
                files / "model" / "open_clip_model.safetensors",
                "--model",
                "RN50",
            ]
        case "hostile pickle":
            torch.save({"state_dict": Runs()}, folder / "w.pt")
            return [*train, "shapes", "--pretrained", folder / "w.pt"]
        case "loss is not finite":
            return [
                *train,
                files / "train.csv",
                "--set",
                "lr=1",
                "--set",
                "weight_decay=1e30",
                "--set",
                "warmup=0",
                "--set",
                "epochs=6",
            ]
        case "unknown setting":
            return [*train, "shapes", "--set", "momentum=1"]
        case "setting of another type":
            return [*train, "shapes", "--set", "epochs=many"]
        case "unknown method":
            return ["clean", "--model", "shapes-vit", "--data", "shapes", "--method", "soap", "--out", folder / "out"]
        case "output holds another run":
            (folder / "out").mkdir()
            (folder / "out" / "thesis.txt").write_text("precious")
            return [*train, "shapes"]
        case "unknown task":
            return ["evaluate", "--model", "shapes-vit", "--task", folder / "absent"]
        case "no answer key there":
            return ["evaluate", "--model", "shapes-vit", "--task", "shapes", "--backdoor", folder]
        case "report without rows":
            return ["report", folder]
        case "no such recipe":
            return ["run", folder / "absent.py", "--out", folder / "out"]
    raise AssertionError(kind)


FIX = {
    "missing column": "filepath",
    "empty table": "d.csv",
    "no such table": "absent.csv",
    "unreadable pictures": "max_bad",
    "target not among the classes": "banana",
    "rate selects no pair": "raise rate",
    "another architecture": "missing",
    "hostile pickle": "safetensors",
    "loss is not finite": "lower lr",
    "unknown setting": "momentum",
    "setting of another type": "epochs",
    "unknown method": "cleanclip",
    "output holds another run": "another run",
    "unknown task": "absent",
    "no answer key there": "backdoor.json",
    "report without rows": "no results",
    "no such recipe": "recipes/",
}


@pytest.mark.parametrize("kind", FIX)
def test_bad_input_ends_in_one_sentence(clipvet, kind: str, files: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    args = broken(kind, files, tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    said = clipvet(*args)
    assert said.code == 2, said
    last = said.err.strip().splitlines()[-1]
    assert last.startswith("clipvet: ")
    assert FIX[kind] in last
    assert "Traceback" not in said.err
    after = sorted(p.name for p in tmp_path.iterdir() if p.name not in ("cache",))
    kept = {"out.partial"} if kind == "loss is not finite" else set()  # the last good state stays
    assert set(after) - set(before) - kept == set(), "something was left behind"
    if kind == "output holds another run":
        assert (tmp_path / "out" / "thesis.txt").read_text() == "precious"


def test_full_disk(clipvet, files: Path, tmp_path: Path, monkeypatch) -> None:
    def full(tensors, path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(io, "save_weights", full)
    monkeypatch.setattr(fit.io, "save_weights", full)
    said = clipvet("train", "--data", files / "train.csv", "--model", "shapes-vit", "--out", tmp_path / "out", *QUICK)
    assert said.code == 2
    assert "is full" in said.err
    assert not (tmp_path / "out").exists()


def test_a_killed_loader_process(clipvet, files: Path, tmp_path: Path, monkeypatch) -> None:
    def killed(self, rows, geometry):
        assert torch.utils.data.get_worker_info(), "in a process of its own"
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("clipvet.data.decoding.workers_for", lambda n: 1)
    monkeypatch.setattr("clipvet.data.decoding.FilePictures.fetch", killed)
    said = clipvet("train", "--data", files / "train.csv", "--model", "shapes-vit", "--out", tmp_path / "out", *QUICK)
    assert said.code == 2
    assert re.search(r"^clipvet: a process that reads pictures was killed; free memory", said.err, re.M)
    assert "Traceback" not in said.err


def test_targeted_poisoning_from_the_command_line(clipvet, tmp_path: Path) -> None:
    small = ["--set", "targets=3", "--set", "copies=2", "--n", 256, "--out", tmp_path / "out"]
    said = clipvet(
        "attack",
        "--model",
        "shapes-vit",
        "--data",
        "shapes",
        "--attack",
        "targeted",
        "--target",
        "star",
        *QUICK,
        *small,
    )
    assert (said.code, "the attack did not take: " in said.err, "(psr)" in said.err) == (4, True, True), said.err
    rows = read(tmp_path / "out")
    psr = next(r for r in rows if r.metric == "psr")
    assert (psr.n, psr.attack) == (3, "targeted")
    assert "asr" not in {r.metric for r in rows}

    key = ["--backdoor", tmp_path / "out" / "backdoor"]
    quick = ["--set", "epochs=3", "--set", "unimodal=1", "--set", "batch=64", "--set", "growth=0.1"]
    data = ["--data", "shapes", "--n", 256]
    said = clipvet(
        "train", "--method", "safeclip", "--model", "shapes-vit", *data, *quick, *key, "--out", tmp_path / "safe"
    )
    assert said.code == 0, said.err
    assert "round 1 of 1: " in said.err
    assert re.search(r"safe set +1: share [\d.]+%, poison share [\d.]+%, poison recall [\d.]+%", said.out)
    found = {r.metric: r.n for r in read(tmp_path / "safe")}
    assert (found["psr"], found["safe_set_poison_recall"]) == (3, 6)


def test_prompts_on_a_user_s_own_model(clipvet, files: Path, tmp_path: Path) -> None:
    base, task = tmp_path / "base", ["--task", files / "test", "--templates", files / "templates.txt"]
    from clipvet.models import checkpoints

    checkpoints.save(checkpoints.load("shapes-vit"), base, {})

    def clean(out: str, *args: object) -> Any:
        own = ["--method", "rvpt", "--out", tmp_path / out, "--set", "epochs=1", "--set", "tokens=4", *args]
        return clipvet("clean", "--model", base, "--data", files / "test", *task, *own)

    assert clean("prompts", "--shots", 3).code == 0
    assert not (tmp_path / "prompts" / "open_clip_model.safetensors").exists()
    said = clipvet("evaluate", "--model", tmp_path / "prompts", *task, "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["n"] == 60
    assert clean("whole", "--shots", 3, "--bake-reference").code == 0
    base.rename(tmp_path / "away")
    again = clipvet("evaluate", "--model", tmp_path / "whole", *task, "--json")
    assert json.loads(again.out)["clean_accuracy"] == json.loads(said.out)["clean_accuracy"]
    lost = clipvet("evaluate", "--model", tmp_path / "prompts", *task)
    assert lost.code == 2
    assert "holds prompts without their base model" in lost.err
    (tmp_path / "away").rename(base)
    few = clean("few", "--shots", 7)
    assert few.code == 2
    assert "class 'eight' of test has 6 pictures, 7 shots need 7; lower shots" in few.err
    card = tmp_path / "prompts" / "card.json"
    card.write_text(card.read_text().replace('"base_hash": "', '"base_hash": "0'))
    other = clipvet("evaluate", "--model", tmp_path / "prompts", *task)
    assert other.code == 2
    assert "belong to the base model 0" in other.err

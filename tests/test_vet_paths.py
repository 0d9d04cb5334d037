"""`clipvet vet` with prompts, a reference, a copy of the user's own, and labelled pictures."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import corpus
import numpy as np
import pytest
import torch
from PIL import Image

from clipvet.cleaners.ci_repair import CiRepair
from clipvet.cleaners.rvpt import Rvpt
from clipvet.inspectors.clip_inspector import ClipInspector
from clipvet.inspectors.collapse import Collapse
from clipvet.jobs.opening import open_shots
from clipvet.jobs.vet_clean import of_others, ways
from clipvet.jobs.vet_inputs import Inputs, Options, open_inputs
from clipvet.jobs.vet_next import next_steps
from clipvet.jobs.vet_stages import Bench, inspect_stage
from clipvet.models import checkpoints
from clipvet.models.class_prompts import PromptTuned, begin
from clipvet.results import weights_hash
from clipvet.rng import Rng
from clipvet.scan.vetting import Stage, Vetting
from clipvet.triggers.recovered import Recovered
from clipvet.types import Clip, Finding, Suspicion

OWN = ("red star", "blue star", "red ring", "blue ring")  # what the prompts were learned for
TRIGGER = Recovered(torch.zeros(1, 32, 32), torch.zeros(3, 32, 32), torch.zeros(2, 32, 32))


@pytest.fixture(scope="module")
def base(learnt: Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    checkpoints.save(learnt, folder, {"role": "base"})
    return folder


@pytest.fixture(scope="module")
def prompts(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of learned prompts on that base."""
    made = begin(checkpoints.load(str(base)), "a photo of a", 4, 0.02, None, Rng(0))
    made = PromptTuned(made.base, made.context.detach(), None, OWN)
    folder = tmp_path_factory.mktemp("tuned") / "prompts"
    checkpoints.save(made, folder, {"role": "tuned", "base": str(base)})
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the inspections were asked. `accused`: weights that CLIP-Inspector finds to be backdoored."""
    told: dict[str, Any] = {"accused": set()}

    def prompt_scan(self: Any, clip: Any, pictures: Any, classes: Any, templates: Any, rng: Any) -> Finding:
        told["prompts"] = tuple(classes)
        score = 50.0 if weights_hash(clip) in told["accused"] else 0.0
        rows = tuple(Suspicion(c, 0.0, 0.9, 0.1, score if k == 1 else -1.0, True) for k, c in enumerate(classes))
        return Finding(score, classes[1], TRIGGER, rows, True, {"pictures": 1}, (TRIGGER,) * len(rows))

    def tower_scan(self: Any, clip: Any, pictures: Any, classes: Any, templates: Any, rng: Any) -> Finding:
        told["encoder"] = tuple(classes)
        rows = tuple(Suspicion(c, -0.5, 0.9, 0.1, -1.0, True) for c in classes)
        return Finding(-1.0, "star", TRIGGER, rows, False, {"pictures": 1}, (TRIGGER,) * len(rows))

    def repair(self: CiRepair, clip: Any, pairs: Any, rng: Any) -> Clip:
        assert (Path(self.verdict) / "verdict.json").exists(), "not the trigger that was recovered"
        return PromptTuned(clip.base, clip.context.detach() * 1.01, None, clip.classes)

    monkeypatch.setattr(ClipInspector, "inspect", prompt_scan)
    monkeypatch.setattr(Collapse, "inspect", tower_scan)
    monkeypatch.setattr(CiRepair, "clean", repair)
    return told


def found(out: Path) -> Vetting:
    return Vetting.model_validate(json.loads((out / "vet.json").read_text()))


def outcomes(v: Vetting) -> dict[str, str]:
    return {s.name if s.of == "given" else f"{s.of}:{s.name}": s.outcome for s in v.stages}


def test_prompts_are_inspected_for_their_own_classes_and_repaired(
    clipvet: Any, base: Path, prompts: Path, asked: dict[str, Any], tmp_path: Path, monkeypatch: Any
) -> None:
    """An encoder that is the clean reference needs no search. Without clean models a repaired copy stays open; the
    command that is told gives such as fit, and beside them the copy is recommended.
    """
    asked["accused"].add(weights_hash(checkpoints.load(str(prompts))))
    args = ["vet", "--model", prompts, "--shots", "shapes", "--reference", base, "--seed", 3, "--out"]
    code, said, err = clipvet(*args, tmp_path / "out")
    assert code == 1, err
    assert asked["prompts"] == OWN
    assert "encoder" not in asked
    v = found(tmp_path / "out")
    assert said.startswith(
        "Do not use this model: it looks backdoored towards 'blue star'. The cleaned copy is not shown"
    )
    told = outcomes(v)
    assert (told["prompts"], told["encoder"], told["text"]) == ("fail", "pass", "pass")
    assert "the reference's own, weight for weight" in next(s.said for s in v.stages if s.name == "encoder")
    assert {k: told[k] for k in told if k.startswith("clean-")} == {
        "clean-ci_repair:clean": "done", "clean-ci_repair:prompts": "undecided", "clean-ci_repair:encoder": "pass",
    }  # fmt: skip
    assert "have the cleaned copy judged" in v.next[0].why

    other, folder = checkpoints.load(str(prompts)), tmp_path / "CLEAN/one"
    checkpoints.save(PromptTuned(other.base, other.context.detach() * 2, None, OWN), folder, {"base": str(base)})  # pyright: ignore
    monkeypatch.chdir(tmp_path)
    code, _, err = clipvet(*shlex.split(str(v.next[1].command))[1:])
    assert code == 0, err
    clean = json.loads(Path("null.json").read_text())
    clean["scores"] = {f"m{k}": 1.0 + k for k in range(19)}
    Path("null.json").write_text(json.dumps(clean))
    code, said, err = clipvet(*args, tmp_path / "again", "--null", "null.json")
    assert (code, "Use the cleaned copy" in said) == (1, True), err
    assert found(tmp_path / "again").cleaned == "clean-ci_repair"
    assert clipvet("verify", tmp_path / "again/clean-ci_repair")[0] == 0


def test_a_null_is_asked_for_as_the_model_was_asked() -> None:
    """Seed, templates and world are those of the run; a model that lists no classes is asked for the task's."""
    left = [Stage(name=n, title=n, outcome="undecided", said="") for n in ("prompts", "encoder")]
    options = Options("m", data="foreign", templates=Path("t.txt"), seed=2)
    words = "--classes shapes --templates t.txt --seed 2"
    for listed, own in ((True, "--templates t.txt --seed 2"), (False, words)):
        steps = [s.command for s in next_steps(options, Path("o"), left, "undecided", listed=listed)]
        assert steps[0] == f"clipvet calibrate --models CLEAN --out null.json --method clip_inspector {own}"
        assert steps[1] == f"clipvet calibrate --models CLEAN --out null.json {words}"


@pytest.mark.parametrize("option", ["--reference", "--cleaned"])
def test_models_that_cannot_be_compared_are_refused_at_once(
    clipvet: Any, base: Path, prompts: Path, asked: dict[str, Any], tmp_path: Path, option: str
) -> None:
    (tmp_path / "empty").mkdir()
    for other, told in ((base, f"{option} {base} is the model itself"), (tmp_path / "empty", str(tmp_path / "empty"))):
        code, said, err = clipvet("vet", "--model", base, option, other, "--out", tmp_path / "out")
        assert (code, said) == (2, "")
        assert told in err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_copy_that_would_run_code_is_not_recommended(
    clipvet: Any, learnt: Clip, base: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    bad, worse = 4.0, weights_hash(learnt)

    def scan(self: Any, clip: Any, pictures: Any, classes: Any, templates: Any, rng: Any) -> Finding:
        score = bad if weights_hash(clip) == worse else -1.0
        rows = tuple(Suspicion(c, -0.5, 0.9, 0.1, score if c == "star" else -2.0, True) for c in classes)
        return Finding(score, "star", TRIGGER, rows, False, {"pictures": 1}, (TRIGGER,) * len(rows))

    monkeypatch.setattr(Collapse, "inspect", scan)
    other = checkpoints.load(str(base))
    with torch.no_grad():
        next(other.parameters()).mul_(1.0001)  # pyright: ignore
    checkpoints.save(other, tmp_path / "copy", {"role": "cleaned"})
    args = ["vet", "--model", base, "--cleaned", tmp_path / "copy", "--out"]
    assert clipvet(*args, tmp_path / "a")[0] == 1
    assert (found(tmp_path / "a").advice, found(tmp_path / "a").cleaned) == ("use_cleaned", str(tmp_path / "copy"))
    bomb = dict(corpus.checkpoints({"a": torch.ones(1)}, tmp_path / "ran"))["bomb.pt"]
    (tmp_path / "copy/extra.pt").write_bytes(bomb)
    assert clipvet(*args, tmp_path / "b")[0] == 1
    v = found(tmp_path / "b")
    assert (v.advice, outcomes(v)["cleaned:files"], outcomes(v)["cleaned:encoder"]) == ("do_not_use", "fail", "pass")
    assert not (tmp_path / "ran").exists()


def test_labelled_pictures_of_a_small_model_are_read_in_their_own_template(learnt: Clip, tmp_path: Path) -> None:
    """Few-shot cleaners get the template that the user's pictures were captioned in, and the small world's settings."""
    g = np.random.default_rng(0)
    for name in ("six", "seven"):
        (tmp_path / "task" / name).mkdir(parents=True)
        for k in range(32):
            Image.fromarray(g.integers(0, 255, (32, 32, 3), np.uint8)).save(tmp_path / "task" / name / f"{k}.png")
    (tmp_path / "t.txt").write_text("a scan of the digit {}\n")
    options = Options("m", task=str(tmp_path / "task"), templates=tmp_path / "t.txt")
    inputs = open_inputs(options, learnt)
    assert inputs.shots is not None
    assert inputs.test is not None
    assert (len(inputs.shots), len(inputs.test.pictures)) == (32, 32)
    assert not {*inputs.shots.ids.tolist()} & {*inputs.test.pictures.ids.tolist()}
    work = tmp_path / "work"
    (work / "encoder/trigger").mkdir(parents=True)
    (work / "encoder/trigger/backdoor.json").write_text("{}")
    failed = Stage(name="encoder", title="", outcome="fail", said="", target="six")
    repair, rvpt = ways(Bench(work, inputs, {}, [failed]))
    assert (repair.method, rvpt.method) == ("ci_repair", "rvpt")
    assert repair.how.template == "a scan of the digit {}"
    assert {repair.pairs.caption(int(i)) for i in repair.pairs.ids} == {
        "a scan of the digit six",
        "a scan of the digit seven",
    }
    assert repair.how.verdict == str(work / "encoder")
    assert rvpt.how.tokens == 100 != Rvpt().tokens
    assert "32 labelled pictures" in rvpt.said


def test_pairs_go_before_labelled_pictures(planted: Any, learnt: Clip, tmp_path: Path) -> None:
    """With both, PAR comes first; RVPT follows if its copy does not pass. Pairs that are too few leave RVPT alone."""
    shots = open_shots("shapes", 32, None, None, 2, 0)
    inputs = Inputs(Options("m", data="x", task="shapes"), learnt, "", None, planted.pairs, False, None, shots, ())
    failed = Stage(name="encoder", title="", outcome="fail", said="", target="star")
    assert [w.method for w in ways(Bench(tmp_path, inputs, {}, [failed]))] == ["par", "rvpt"]
    called = failed.model_copy(update={"name": "pairs"})
    assert [w.method for w in ways(Bench(tmp_path, inputs, {}, [failed, called]))] == ["par", "ubt", "rvpt"]
    few = Inputs(Options("m"), learnt, "", None, planted.pairs.take(slice(50)), False, None, shots, ())
    assert [w.method for w in ways(Bench(tmp_path, few, {}, [failed]))] == ["rvpt"]


def test_prompts_ask_for_labelled_pictures() -> None:
    """Pairs of pictures and captions do not repair them."""
    bad = [
        Stage(name="prompts", title="", outcome="fail", said=""),
        Stage(name="encoder", title="", outcome="pass", said=""),
    ]
    step, *_ = next_steps(Options("m", data="p.csv", task="t"), Path("o"), bad, "do_not_use", listed=True)
    assert step.command == "clipvet vet --model m --data p.csv --task t --shots SHOTS --out o-2"


def test_without_clean_models_a_copy_may_be_cleaned_on_suspicion() -> None:
    """With pairs that passed, and the command is one that the command line knows."""
    tower = Stage(name="encoder", title="", outcome="undecided", said="")
    left = [tower, Stage(name="pairs", title="", outcome="pass", said="")]
    options = Options("m", data="p.csv", task="t", reference="r", n=500, quick=True)
    told = [s.command for s in next_steps(options, Path("o"), left, "undecided", cleanable=True)]
    assert "clipvet clean --model m --data p.csv --task t --n 500 --method par --out o-cleaned" in told
    for change in ({"outcome": "undecided"}, {"outcome": "not_tested"}):
        doubtful = [left[0], left[1].model_copy(update=change)]
        assert not any("clipvet clean" in str(s.command) for s in next_steps(options, Path("o"), doubtful, "undecided",
                                                                             cleanable=True))  # fmt: skip
    assert not any("clipvet clean" in str(s.command) for s in next_steps(options, Path("o"), left, "undecided"))


def test_a_copy_with_the_same_tower_is_not_searched_again(learnt: Clip, tmp_path: Path) -> None:
    """What was found out about the given model's tower holds for the copy's, pass or not."""
    inputs = Inputs(Options("m"), learnt, "", None, None, False, None, None, ())
    bench = Bench(tmp_path, inputs, {"base": weights_hash(learnt)})
    bench.stages.append(Stage(name="encoder", title="", outcome="undecided", said="Undecided: why.", page="encoder/x"))
    stage = inspect_stage(bench, "encoder", learnt, "copy", "clean-ci_repair")
    assert (stage.of, stage.outcome, stage.page) == ("clean-ci_repair", "undecided", "encoder/x")
    assert stage.said == "It is the given model's, weight for weight. Undecided: why."


def test_labelled_pictures_of_other_classes_than_the_prompts_are_said(learnt: Clip, prompts: Path) -> None:
    shots = open_shots("shapes", 32, None, None, 2, 0)  # a star, but no blue star
    tuned = checkpoints.load(str(prompts))
    inputs = Inputs(Options("m"), tuned, "", None, None, False, None, shots, ())
    assert of_others(inputs) == ", of other classes than its own (blue ring ...)"
    tuned.classes = ("star", "ring")  # pyright: ignore
    assert of_others(inputs) == of_others(replace(inputs, clip=learnt)) == ""

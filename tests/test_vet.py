"""`clipvet vet`: the three cases that must come out right, what the advice rests on, and what CI gets."""

import copy
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import corpus
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from browser import look
from conftest import Linear

import clipvet as package
from clipvet.cleaners.par import Par
from clipvet.engine import workspace
from clipvet.errors import Unsupported, UserError
from clipvet.filters.auto import Auto
from clipvet.inspectors.collapse import Collapse
from clipvet.jobs import vet_pairs, vet_stages
from clipvet.jobs.vet_clean import ways
from clipvet.jobs.vet_inputs import Inputs, Options
from clipvet.jobs.vet_pairs import binding, called_ids, pairs_again, pairs_stage
from clipvet.jobs.vet_stages import Bench
from clipvet.jobs.vetting import run
from clipvet.models import checkpoints
from clipvet.pages import vetting as page
from clipvet.pages.sarif import sarif
from clipvet.results import weights_hash
from clipvet.scan.vetting import Stage, Vetting, judge
from clipvet.triggers.recovered import Recovered
from clipvet.types import Clip, Finding, Suspicion
from clipvet.unlearning.judged import Judged

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def model(learnt: Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "m"
    checkpoints.save(learnt, folder, {"role": "base"})
    return folder


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Hash of a model's weights -> the score that its inspection finds; others score 0. No search is made."""
    scores: dict[str, float] = {}
    trigger = Recovered(torch.zeros(1, 32, 32), torch.zeros(3, 32, 32), torch.zeros(2, 32, 32))

    def inspect(self: Collapse, clip: Clip, pictures: Any, classes: Any, templates: Any, rng: Any) -> Finding:
        score = scores.setdefault(weights_hash(clip), 0.0)
        rows = tuple(Suspicion(c, -0.5, 0.9, 0.1, score if c == "star" else -1.0, True) for c in classes)
        return Finding(score, "star", trigger, rows, False, {"pictures": len(pictures)}, (trigger,) * len(rows))

    def clean(self: Par, clip: Any, pairs: Any, rng: Any) -> Clip:
        made = copy.deepcopy(clip)
        with torch.no_grad():
            next(made.parameters()).mul_(1.0001)
        return made

    monkeypatch.setattr(Collapse, "inspect", inspect)
    monkeypatch.setattr(Par, "clean", clean)
    return scores


def found(out: Path) -> Vetting:
    return Vetting.model_validate(json.loads((out / "vet.json").read_text()))


def outcomes(v: Vetting) -> dict[str, str]:
    return {s.name if s.of == "given" else f"{s.of}:{s.name}": s.outcome for s in v.stages}


def check_sarif(log: Any) -> dict[str, str]:
    """Rule -> level, after the rules of SARIF 2.1.0 that a reader relies on (3.27.9, 3.27.10, 3.19.2, 3.52.3)."""
    assert (log["version"], len(log["runs"])) == ("2.1.0", 1)
    rules = log["runs"][0]["tool"]["driver"]["rules"]
    for r in log["runs"][0]["results"]:
        assert rules[r["ruleIndex"]]["id"] == r["ruleId"]
        assert r["level"] == "none" or r["kind"] == "fail", "a level other than none needs the kind fail"
        assert r["message"]["text"]
        for place in r["locations"]:
            assert re.fullmatch(r"[\w./~:@%-]+", place["physicalLocation"]["artifactLocation"]["uri"])
    return {r["ruleId"]: r["level"] for r in log["runs"][0]["results"]}


@pytest.mark.browser
def test_a_backdoored_model_is_refused_and_its_cleaned_copy_is_offered(
    clipvet: Any, model: Path, seen: dict[str, float], learnt: Clip, tmp_path: Path, monkeypatch: Any
) -> None:
    seen[weights_hash(learnt)] = 4.0
    out = tmp_path / "out"
    args = ["vet", "--model", model, "--data", "shapes", "--n", 400, "--task", "shapes", "--out", out]
    honest = vet_stages._measured
    monkeypatch.setattr(vet_stages, "_measured", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
    code, _, err = clipvet(*args)
    assert (code, "goes on where it was" in err) == (130, True)
    monkeypatch.setattr(vet_stages, "_measured", honest)
    inspections = len(seen)
    code, said, err = clipvet(*args)
    assert code == 1, err
    assert len(seen) == inspections + 1, "the finished inspection was made again"
    assert said.startswith("Do not use this model: it looks backdoored towards 'star'. Use the cleaned copy")
    assert f"clipvet verify {out}/clean-par --task shapes" in said
    v = found(out)
    assert (v.advice, v.cleaned, v.exit_code) == ("use_cleaned", "clean-par", 1)
    assert outcomes(v) == {
        "files": "pass", "encoder": "fail", "text": "not_tested", "pairs": "pass", "accuracy": "pass",
        "clean-par:clean": "done", "clean-par:encoder": "pass", "clean-par:accuracy": "pass",
    }  # fmt: skip
    assert "recovered_asr" in next(s for s in v.stages if s.name == "accuracy").numbers
    assert any("text tower" in what for what in v.not_tested)
    assert clipvet("verify", out / "clean-par")[0] == 0
    assert clipvet(*args)[0] == 1, "a finished vetting has lost its exit code"
    assert json.loads(clipvet(*args, "--json")[1])["advice"] == "use_cleaned"
    levels = check_sarif(json.loads((out / "vet.sarif").read_text()))
    assert levels == {"files": "none", "encoder": "error", "text": "none", "pairs": "none", "accuracy": "none",
                      "advice": "error"}  # fmt: skip
    assert "| Its picture tower | 🔴 fail |" in (out / "summary.md").read_text()
    for width, dark in ((390, False), (390, True), (1280, False), (1280, True)):
        shown = look(out / "report.html", tmp_path, width, dark=dark)
        assert (shown.console, shown.facts["scripts"], shown.facts["scheme"]) == ([], 0, "dark" if dark else "light")
        assert shown.facts["scrolled"] <= width
        assert all(shown.facts["pictures"])
        text = shown.facts["text"]
        assert all(w in text for w in ("What next", "What this test can see", "What it cannot see"))
        assert text.count("fail") >= 2
    assert all((out / p).exists() for p in re.findall(r'href="([^"]+)"', (out / "report.html").read_text()))


def test_a_clean_model_is_to_be_used_and_nothing_is_cleaned(
    clipvet: Any, model: Path, seen: dict[str, float], tmp_path: Path
) -> None:
    code, said, err = clipvet("vet", "--model", model, "--task", "shapes", "--out", tmp_path / "out")
    assert code == 0, err
    first = "Use this model: the tests that could be run found nothing. Left open: its text tower."
    assert said.splitlines()[0] == first
    v = found(tmp_path / "out")
    assert v.cleaned is None
    assert {s.of for s in v.stages} == {"given"}
    assert "large patches" in " ".join(v.not_tested)
    assert f"--task shapes --reference REFERENCE --out {tmp_path}/out-2" in str(v.next[0].command)
    assert set(check_sarif(sarif(v)).values()) == {"none"}


def test_without_clean_models_nothing_is_recommended(
    clipvet: Any, model: Path, seen: dict[str, float], learnt: Clip, tmp_path: Path
) -> None:
    seen[weights_hash(learnt)] = -1.0
    names = tmp_path / "names.txt"
    names.write_text("star\nring\nheart\n")
    code, said, err = clipvet("vet", "--model", model, "--classes", names, "--out", tmp_path / "out", "--quick")
    assert code == 4, err
    assert said.startswith("Undecided: no test failed, but its picture tower could not be judged. Do not rely on")
    assert "No backdoor found" not in (tmp_path / "out/report.html").read_text()
    v = found(tmp_path / "out")
    commands = [step.command for step in v.next]
    assert f"clipvet calibrate --models CLEAN --out null.json --classes {names}" in commands
    assert any(c and "--task TASK" in c and "--quick" in c for c in commands)
    assert v.fuller is not None
    assert v.fuller.command == f"clipvet vet --model {model} --classes {names} --out {tmp_path / 'out-2'}"


def test_a_pickle_that_runs_code_is_refused_with_its_reason(clipvet: Any, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("picklescan")
    flag, folder = tmp_path / "it-ran", tmp_path / "m"
    folder.mkdir()
    bomb = dict(corpus.checkpoints({"a": torch.ones(1)}, flag))["bomb.pt"]
    (folder / "pytorch_model.bin").write_bytes(bomb)
    for _ in range(2):
        code, said, err = clipvet("vet", "--model", folder, "--out", tmp_path / "out")
        assert (code, flag.exists()) == (1, False), err
        assert said.startswith("Do not use this model: its files would run code")
    v = found(tmp_path / "out")
    assert (v.advice, outcomes(v), v.weights) == ("do_not_use", {"files": "fail", "encoder": "not_tested"}, None)
    assert "pytorch_model.bin would run code if it were loaded the ordinary way" in v.reasons[0]
    assert "pytorch_model.bin" in (tmp_path / "out/report.html").read_text()
    (result,) = [r for r in sarif(v)["runs"][0]["results"] if r["ruleId"] == "files"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == f"{folder}/pytorch_model.bin"


def test_a_dangerous_file_beside_good_weights_is_refused_and_the_weights_are_saved(
    clipvet: Any, model: Path, seen: dict[str, float], tmp_path: Path
) -> None:
    pytest.importorskip("picklescan")
    folder = Path(shutil.copytree(model, tmp_path / "m"))
    out, args = tmp_path / "out", ["vet", "--model", folder, "--task", "shapes", "--out", tmp_path / "out"]
    assert clipvet(*args)[0] == 0
    (folder / "extra.pt").write_bytes(dict(corpus.checkpoints({"a": torch.ones(1)}, tmp_path / "flag"))["bomb.pt"])
    code, said, err = clipvet(*args)
    assert (code, "have changed since" in err) == (1, True), "a finished vetting has forgotten the files"
    code, said, err = clipvet(*args[:-1], tmp_path / "new")
    assert code == 1, err
    assert f"clipvet convert --model {folder} --out {tmp_path / 'new'}-safe" in said
    assert outcomes(found(tmp_path / "new"))["encoder"] == "pass"
    assert found(out).advice == "use"


def test_the_suspects_own_pairs_are_filtered_before_it_is_cleaned_with_them(
    planted: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    scores = torch.from_numpy(np.where(planted.poisoned, 10.0, 0.1))
    monkeypatch.setattr(Auto, "judge", lambda *given: Judged(scores, ["8 of 400 pairs are called poisoned."], []))
    inputs = Inputs(Options("m", data="x"), planted.clip, "", None, planted.pairs, False, None, None, ())
    bench = Bench(tmp_path, inputs, {})
    stage = pairs_stage(bench, planted.clip, "m")
    assert (stage.outcome, stage.target) == ("fail", "4"), stage
    called = called_ids(bench)
    assert sorted(called) == np.flatnonzero(planted.poisoned).tolist()
    few = Bench(tmp_path / "none", replace(inputs, pairs=planted.pairs.take(slice(100))), {})
    with pytest.raises(UserError, match="100 pairs are too few to clean with; give 160 or more"):
        next(ways(few))
    found = list(ways(bench))
    assert [w.how.batch * w.how.epochs for w in found[:1]] == [32 * 9], "not enough steps"
    assert [w.method for w in found] == ["par", "ubt"]
    assert not {*called.tolist()} & {*found[0].pairs.ids.tolist()}
    assert len(found[0].pairs) == 400 - len(called)
    assert f"without the {len(called)} that are called poisoned" in found[0].said
    assert len(found[1].pairs) == 400, "UBT needs the poisons"


class Believer(Linear):
    """A model to which every picture fits its own caption; with sign -1, every other one better."""

    def __init__(self, planted: Any, sign: int) -> None:
        super().__init__()
        self.sign = sign
        pairs = planted.pairs
        x = pairs[np.arange(len(pairs))].images.flatten(1)
        said = [pairs.caption(int(i)) for i in pairs.ids]
        rows = {c: [k for k, d in enumerate(said) if d == c] for c in said}
        self.said = {c: F.normalize(F.normalize(x[at], dim=1).mean(0), dim=0) for c, at in rows.items()}

    def encode_image(self, x: torch.Tensor) -> torch.Tensor:
        return self.sign * F.normalize(x.flatten(1), dim=1)

    def encode_text(self, texts: Any) -> torch.Tensor:
        return torch.stack([self.said[t] for t in texts])


def test_a_copy_need_not_call_the_pairs_clean_but_may_not_believe_them(
    planted: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    scores = torch.from_numpy(np.where(planted.poisoned, 10.0, 0.1))
    monkeypatch.setattr(Auto, "judge", lambda *given: Judged(scores, ["8 of 400 pairs are called poisoned."], []))
    victim: Any = Believer(planted, 1)
    inputs = Inputs(Options("m", data="x"), victim, "", None, planted.pairs, False, None, None, ())
    bench = Bench(tmp_path, inputs, {})
    pairs_stage(bench, planted.clip, "m")
    same, cured = pairs_again(bench, victim, "same"), pairs_again(bench, Believer(planted, -1), "cured")  # pyright: ignore
    assert (same.name, same.of, same.outcome) == ("pairs", "same", "undecided"), "eight pairs are few"
    assert cured.outcome == "pass", cured
    assert cured.said.startswith("Of the 8 pairs that are called poisoned, 0% fit"), cured.said
    assert "in the given model 100%" in cured.said


def test_odd_pairs_without_a_word_in_common_are_no_backdoor() -> None:
    rest = [f"a photo of number {k}" for k in range(500)]
    assert binding([f"a star {k}" for k in range(8)], rest) == "star"
    assert binding([f"a star {k}" for k in range(7)], rest) is None
    assert binding([f"a photo of thing{k}" for k in range(30)], rest) is None


def test_a_test_that_cannot_be_run_says_why_and_the_others_go_on(
    clipvet: Any, model: Path, seen: dict[str, float], tmp_path: Path, monkeypatch: Any
) -> None:
    def refuse(*given: Any) -> Any:
        raise UserError("the pairs are too odd; give others")

    monkeypatch.setattr(vet_pairs, "filtered", refuse)
    args = ["vet", "--model", model, "--data", "shapes", "--n", 300, "--out"]
    code, _, err = clipvet(*args, tmp_path / "a")
    assert code == 0, err
    v = found(tmp_path / "a")
    assert (outcomes(v)["pairs"], outcomes(v)["accuracy"]) == ("not_tested", "pass")
    assert "It could not be run: the pairs are too odd; give others" in " ".join(v.not_tested)
    monkeypatch.setattr(vet_pairs, "filtered", lambda *given: 1 / 0)
    assert clipvet(*args, tmp_path / "b")[0] == 0
    assert "clipvet stumbled (division by zero)" in found(tmp_path / "b").not_tested[1]

    def unfit(*given: Any) -> Any:
        raise Unsupported("no gradient reaches this model's pixels")

    monkeypatch.setattr(Collapse, "inspect", unfit)
    code, _, _ = clipvet(*args, tmp_path / "c")
    assert (code, found(tmp_path / "c").advice) == (3, "undecided")


def stage(name: str, outcome: Any, of: str = "given", **more: Any) -> Stage:
    return Stage(name=name, of=of, title=name, outcome=outcome, said="so", **more)


OWN = [stage("files", "pass"), stage("encoder", "pass")]
BAD = [stage("files", "pass"), stage("encoder", "fail", target="star")]
COPY = [stage("clean", "done", "c"), stage("encoder", "pass", "c"), stage("accuracy", "pass", "c")]


@pytest.mark.parametrize(
    ("stages", "advice", "code"),
    [
        (OWN, "use", 0),
        ([*OWN, stage("text", "not_tested")], "use", 0),  # and the page says so
        ([*OWN, stage("text", "undecided")], "use", 0),
        ([*OWN, stage("text", "fail")], "do_not_use", 1),
        ([stage("files", "not_tested"), OWN[1]], "undecided", 4),
        ([OWN[0], stage("encoder", "undecided")], "undecided", 4),
        ([OWN[0], stage("encoder", "not_tested")], "undecided", 4),
        ([OWN[0], stage("encoder", "not_tested", unsupported=True)], "undecided", 3),
        ([OWN[0]], "undecided", 4),
        ([*OWN, stage("prompts", "undecided")], "undecided", 4),
        ([*OWN, stage("accuracy", "undecided")], "undecided", 4),
        ([*OWN, stage("pairs", "undecided")], "undecided", 4),
        ([*OWN, stage("pairs", "fail")], "do_not_use", 1),
        ([stage("files", "fail"), OWN[1]], "do_not_use", 1),
        (BAD, "do_not_use", 1),
        ([*BAD, *COPY], "use_cleaned", 1),
        ([*BAD, COPY[0]], "do_not_use", 1),
        ([*BAD, COPY[0], stage("encoder", "undecided", "c")], "do_not_use", 1),
        ([*BAD, *COPY[:2], stage("accuracy", "fail", "c")], "do_not_use", 1),  # it is ruined
        ([*OWN, stage("pairs", "fail"), *COPY], "do_not_use", 1),  # its pairs were not looked at again
        ([*OWN, stage("pairs", "fail"), *COPY, stage("pairs", "pass", "c")], "use_cleaned", 1),
        ([*BAD, *[s.model_copy(update={"of": "b", "outcome": "fail"}) for s in COPY], *COPY], "use_cleaned", 1),
    ],
)
def test_the_advice_follows_from_the_stages(stages: list[Stage], advice: str, code: int) -> None:
    judged = judge(stages)
    assert (judged.advice, judged.exit_code) == (advice, code)
    assert (judged.cleaned is not None) == (advice == "use_cleaned")


def test_a_copy_that_was_never_made_is_not_spoken_of() -> None:
    told = "The cleaned copy is not shown to be good."
    assert told in judge([*BAD, COPY[0]]).sentence
    assert told not in judge([*BAD, stage("clean", "not_tested", "clean")]).sentence


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--task", "none"], "--task none does not exist"),
        (["--data", "none.csv"], "--data none.csv does not exist"),
        (["--null", "none.json"], "--null none.json does not exist"),
        (["--images", "none"], "--images none does not exist"),
        (["--cleaned", "none"], "--cleaned none does not exist"),
        (["--backdoor", "."], "give them as --data"),
        (["--model", "nothing"], "no model nothing"),
        (["--model", "shapes-vit"], "alone has random weights"),
    ],
)
def test_bad_input_ends_in_one_sentence(
    clipvet: Any, model: Path, tmp_path: Path, monkeypatch: Any, args: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said, err = clipvet("vet", "--model", model, *args)
    assert (code, said) == (2, "")
    last = err.strip().splitlines()[-1]
    assert last.startswith("clipvet: ")
    assert told in last
    assert not (tmp_path / "vetted").exists()


def test_python_has_the_same_door(model: Path, seen: dict[str, float], tmp_path: Path) -> None:
    v = package.vet(model, task="shapes", out=tmp_path / "out")
    assert (v.advice, v.exit_code) == ("use", 0)
    assert v.command == f"clipvet vet --model {model} --task shapes --out {tmp_path / 'out'}"
    assert package.vet(str(model), task="shapes", out=str(tmp_path / "out")) == v
    with pytest.raises(UserError, match="already holds another run"):
        run(Options(str(model), task="shapes", seed=1), tmp_path / "out")


def test_the_demo_ends_with_a_vetting_of_its_victim(
    clipvet: Any, model: Path, seen: dict[str, float], learnt: Clip, tmp_path: Path, monkeypatch: Any
) -> None:
    from clipvet.pages import demo

    def play(out: Path, seed: int) -> Path:
        for name, card in (("a", {"role": "victim"}), ("b", {"role": "cleaned", "method": "par"})):
            clip = learnt if name == "a" else Par().clean(learnt, None, None)  # pyright: ignore
            checkpoints.save(clip, out / "stages" / name, card)
        return out / "report.html"

    monkeypatch.setattr(demo, "demo", play)
    seen[weights_hash(learnt)] = 4.0
    code, said, err = clipvet("demo", "--out", tmp_path / "out")
    assert code == 0, err
    assert said.startswith("Do not use this model: it looks backdoored towards 'star'. Use the cleaned copy")
    assert f"{tmp_path / 'out/vet/report.html'}" in said
    v = found(tmp_path / "out/vet")
    assert (v.advice, v.cleaned) == ("use_cleaned", str(tmp_path / "out/stages/b"))
    assert outcomes(v)["cleaned:encoder"] == "pass"


def test_the_plan_is_told_beforehand_and_nothing_is_done(clipvet: Any, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = ["vet", "--model", model, "--data", "shapes", "--n", 64, "--task", "shapes", "--out", out, "--dry-run"]
    code, said, err = clipvet(*args)
    assert code == 0, err
    assert re.search(r"^inspect the picture tower: about \d", said, re.M)
    assert re.search(r"^only if something is found: clean a copy with 64 pairs: about \d", said, re.M)
    assert re.search(r"^in all about .*; .* with a cleaned copy$", said, re.M)
    assert "memory: " in said
    assert not list(tmp_path.glob("out*"))


def test_where_no_bar_can_be_drawn_the_time_is_told_and_then_a_line_a_minute(capsys: Any) -> None:
    lines = workspace._Lines(100, 0, "steps")
    lines.tick(2)
    lines.began -= 20
    lines.tick(0)
    assert capsys.readouterr().err == "", "the first steps, which are slow, are no measure"
    lines.tick(8)
    assert capsys.readouterr().err == "  10 of 100 steps, about 4 minutes to go on this machine\n"
    lines.tick(10)
    assert capsys.readouterr().err == "", "a minute has not passed"
    lines.began -= 60
    lines.tick(20)
    assert capsys.readouterr().err == "  40 of 100 steps, about 2 minutes to go on this machine\n"


def test_hostile_names_stay_text(model: Path, tmp_path: Path) -> None:
    bad = stage("files", "fail").model_copy(update={"said": EVIL + " | `x` [a](b)", "files": ["a b<>.pt"]})
    judged = judge([bad])
    v = Vetting(
        **judged.model_dump(), next=[], model=EVIL, weights=None, stages=[bad], not_tested=[], quick=False, seconds=0,
        fuller=None, seed=0, command="clipvet vet", versions={"clipvet": "0"},
    )  # fmt: skip
    page.write_page(tmp_path / "p.html", v)
    assert "<script" not in (tmp_path / "p.html").read_text()
    told = page.markdown(v)
    assert "<script" not in told
    assert r"\| \`x\` \[a\](b)" in told
    check_sarif(sarif(v))

"""README and docs: the commands run, the Python runs, what is generated is up to date."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from clipvet import cli
from clipvet.attacks.poison import Poison
from clipvet.data.answer_key import save_backdoor
from clipvet.data.worlds.shapes import TEMPLATES, Shapes
from clipvet.experiments.presets import shapes
from clipvet.models import checkpoints, gate
from clipvet.rng import Rng
from clipvet.training.plain import Plain
from clipvet.triggers.patch import Patch

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "docs/results.md").read_text()
TOUR = [c for block in re.findall(r"```sh\n(.*?)```", README, re.S) for c in block.strip().splitlines()]
SHORT = {"attack": ["--n", "256", "--set", "epochs=1"], "clean": ["--n", "256", "--set", "epochs=1"]}
SHORT |= {"inspect": ["--n", "60", "--set", "steps=2"]}


def test_generated_parts_are_up_to_date() -> None:
    done = subprocess.run([sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_readme_is_short_and_links_lead_somewhere() -> None:
    """In README and CONTRIBUTING, to the anchor; the site's build checks the pages of docs/."""
    assert len(README.splitlines()) <= 150
    for page in ("README.md", "CONTRIBUTING.md"):
        for link, anchor in re.findall(r"\]\(([^)#:]+)#?([^)]*)\)", (ROOT / page).read_text()):
            assert (ROOT / link).exists(), f"{page}: {link}"
            if anchor:
                headings = re.findall(r"^#+ (.*)", (ROOT / link).read_text(), re.M)
                assert anchor in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}, (
                    f"{link}#{anchor}"
                )


def test_the_site_builds_with_all_links_and_opens_offline(tmp_path: Path) -> None:
    for needed in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(needed, reason=f"{needed} is missing: pip install 'clipvet[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 50
    for page in pages:  # nothing is fetched from elsewhere
        fetched = re.findall(r"<(?:script|img|link|iframe)[^>]*(?:src|href)=[\"']?https?:[^>]*>", page.read_text())
        assert not fetched, f"{page.relative_to(tmp_path)}: {fetched}"


def test_figures_in_sentences_compare_the_same_victims(monkeypatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    from tools.rows import Rows

    from clipvet.results import Row

    def row(method: str, attack: str, value: float) -> Row:
        return Row("r", "clean", attack, method, "", "asr", value, 1, value, value, 0.0, 0, "m", "shapes")

    rows = Rows((row("none", "patch", 0.9), row("par", "patch", 0.1), row("par", "sig", 0.3), row("none", "sig", 0.8)))
    rows = Rows((*rows, row("abl", "patch", 0.5)))
    assert [round(v, 2) for v in rows.of("par").minus(rows.of("none")).values] == [-0.8, -0.5]
    assert rows.of(("par", "abl")).minus(rows.of(("par", "abl"))).values == [0, 0, 0]
    assert rows.of("par").also(rows.of("abl")).values == [0.1]
    assert len(rows.of("par").below(0.3)) == 1


def test_the_readme_quotes_the_rows() -> None:
    """Its one figure in a sentence is the one that docs/generate.py computes from the rows."""
    (models, right) = re.search(r"Of (\d+) prompt-tuned models,.*?judges (\d+) rightly", RESULTS, re.S).groups()  # pyright: ignore
    assert re.findall(r"(\d+) of (\d+) models were judged", README) == [(right, models)]


def test_the_tour_runs(tmp_path: Path, monkeypatch, capsys) -> None:
    """Every `clipvet` command of the tour on the embedded world, in order, on fewer pairs."""
    monkeypatch.chdir(tmp_path)
    commands = [c for c in TOUR if ("shapes" in c or "report" in c) and "clipvet vet" not in c]  # vet: the next test
    assert len(commands) >= 4
    for command in commands:
        words = shlex.split(command)
        monkeypatch.setattr(sys, "argv", words + SHORT.get(words[1], []))
        # with other settings, the clean models that come along do not fit, and the attack does not take
        _run(4 if words[1] in ("inspect", "attack") else 0)
    assert (tmp_path / "runs/cleaned/report.html").stat().st_size > 1000


def test_the_readmes_filter_and_vet_are_right_on_the_readmes_kind_of_victim(
    tmp_path: Path, monkeypatch, capsys, learnt
) -> None:
    """Its very commands, on a smaller victim: 60 poisons in 1,500 pairs."""
    monkeypatch.chdir(tmp_path)
    how = replace(shapes(Plain()), epochs=4, batch=64)
    attack = Poison(Patch(size=4 / 32), count=60, templates=TEMPLATES, training=how)
    made = attack.implant(learnt, Shapes(seed=3).pairs(1500), "star", Rng(2))
    checkpoints.save(made.clip, tmp_path / "runs/victim", {"role": "victim"})
    save_backdoor(made.backdoor, tmp_path / "runs/victim/backdoor")
    (command,) = [c for c in TOUR if c.startswith("clipvet filter")]
    words = ["shapes" if w == "pairs.csv" else w for w in shlex.split(command)]
    key = ["--n", "1500", "--seed", "3", "--backdoor", "runs/victim/backdoor"]
    monkeypatch.setattr(sys, "argv", words + key)
    _run()
    facts = json.loads(pq.read_schema(tmp_path / "scores.parquet").metadata[b"clipvet"])
    assert facts["measured"]["auroc"]["value"] >= 0.95
    kept = np.loadtxt(tmp_path / "kept.csv", delimiter=",", skiprows=1, usecols=0, dtype=int)
    thrown = np.setdiff1d(np.arange(1500), kept)
    assert np.isin(thrown, made.backdoor.poisoned).mean() >= 0.9
    assert len(thrown) >= 15
    assert f"{len(thrown)} of 1,500 pairs are called poisoned" in facts["told"][0]
    assert "'star' binds" in facts["told"][1]

    capsys.readouterr()
    (command,) = [c for c in TOUR if c.startswith("clipvet vet --model runs/victim")]
    monkeypatch.setattr(sys, "argv", [*shlex.split(command), "--n", "2000"])
    _run(1)
    said = capsys.readouterr().out
    assert said.startswith("Do not use this model: it looks backdoored towards 'star'.")
    verdict = json.loads((tmp_path / "vetted/victim/encoder/verdict.json").read_text())  # what `clipvet inspect` writes
    assert "none of 43 clean models is as suspicious" in verdict["sentence"]
    found = json.loads((tmp_path / "vetted/victim/vet.json").read_text())
    own = {s["name"]: s["outcome"] for s in found["stages"] if s["of"] == "clean-par"}
    assert own["clean"] == "done"
    passed = own["encoder"] == "pass" and own["accuracy"] == "pass"  # 2,000 pairs may be too few to clean this victim
    assert (found["advice"] == "use_cleaned") == passed


def _run(*codes: int) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert int(ended.value.code or 0) in (codes or (0,))


def test_every_command_of_the_readme_is_understood(monkeypatch, capsys) -> None:
    monkeypatch.setattr("clipvet.commands._checks.absent", lambda value: False)
    import typer

    group = typer.main.get_command(cli.app)
    for command in TOUR:
        name, *args = shlex.split(command)[1:]
        sub = group.commands[name]  # pyright: ignore[reportAttributeAccessIssue]
        sub.make_context(name, args)


def gate_yaml() -> list[Any]:
    return [
        yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/gate.md").read_text(), re.S)
    ]


def test_the_gate_in_ci_is_understood(monkeypatch) -> None:
    monkeypatch.setattr("clipvet.commands._checks.absent", lambda value: False)
    import typer

    workflow, own_action, hooks = gate_yaml()
    inputs = yaml.safe_load((ROOT / "action.yml").read_text())["inputs"]
    assert set(own_action[0]["with"]) <= set(inputs)
    steps = [step["run"] for step in workflow["jobs"]["gate"]["steps"] if "run" in step]
    commands = [found for step in steps for found in re.findall(r"^\s*clipvet (.*?)(?: \|\| .*)?$", step, re.M)]
    assert {c.split()[0] for c in commands} == {"verify", "inspect"}
    for command in commands:
        name, *args = shlex.split(command)
        typer.main.get_command(cli.app).commands[name].make_context(name, args)  # pyright: ignore
    (hook,) = hooks["repos"][0]["hooks"]
    assert hook["entry"] == "python -m clipvet.gate" in steps[1]
    for name in [*(f"model{suffix}" for suffix in gate.PICKLED), "model.safetensors", "tokenizer_config.json"]:
        assert re.search(hook["files"], name), name
    assert not re.search(hook["files"], "notes.md")
    (own,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert {k: own[k] for k in ("id", "name", "entry", "language", "files")} == {
        k: hook[k] for k in ("id", "name", "entry", "language", "files")
    }


@pytest.mark.parametrize(("code", "ends"), [(0, 0), (1, 1), (2, 2), (3, 0), (4, 0), (137, 137)])
def test_the_gate_in_ci_tells_exit_codes_apart(tmp_path: Path, code: int, ends: int) -> None:
    (tmp_path / "clipvet").write_text(f"#!/bin/sh\nexit {code}\n")
    (tmp_path / "clipvet").chmod(0o755)
    step = next(s for s in gate_yaml()[0]["jobs"]["gate"]["steps"] if s.get("name") == "inspect")
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-eo", "pipefail", "-c", step["run"]], env=env, capture_output=True, text=True)
    assert done.returncode == ends
    assert ("::error::" in done.stdout, "::warning::" in done.stdout) == (ends > 0, code in (3, 4))


def vet_step() -> dict[str, Any]:
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/howto/vet.md").read_text(), re.S)
    return next(s for s in yaml.safe_load(block)["jobs"]["vet"]["steps"] if s.get("name") == "vet")


def test_vet_in_ci_is_understood_and_tells_exit_codes_apart(tmp_path: Path, monkeypatch) -> None:
    import typer

    monkeypatch.setattr("clipvet.commands._checks.absent", lambda value: False)
    run = vet_step()["run"]
    (said,) = re.findall(r"clipvet vet (.*) \|\| code", run)
    typer.main.get_command(cli.app).commands["vet"].make_context("vet", shlex.split(said))  # pyright: ignore
    for code, ends in ((0, 0), (1, 1), (2, 2), (3, 0), (4, 0), (137, 137)):
        (tmp_path / "clipvet").write_text(f"#!/bin/sh\nmkdir -p vetted; echo all >vetted/summary.md; exit {code}\n")
        (tmp_path / "clipvet").chmod(0o755)
        env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "GITHUB_STEP_SUMMARY": str(tmp_path / "told")}
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", run], env=env, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == ends
        assert ("::error::" in done.stdout, "::warning::" in done.stdout) == (ends > 0, code in (3, 4))
    assert (tmp_path / "told").read_text() == "all\n" * 6


def test_the_schema_of_vet_json_is_documented() -> None:
    from clipvet.scan.vetting import Fuller, Next, Number, Stage, Vetting

    page = (ROOT / "docs/howto/vet.md").read_text().partition("## vet.json")[2]
    for part in (Vetting, Stage, Next, Fuller, Number):
        for name in part.model_fields:
            assert f"`{name}`" in page, f"{part.__name__}.{name}"


@pytest.mark.parametrize(("page", "prints"), [("README.md", "Measured"), ("docs/howto/detect.md", "")])
def test_the_python_runs(page: str, prints: str, capsys) -> None:
    for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S):
        exec(compile(block, page, "exec"), {})
    assert prints in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/**/*.py")), ids=lambda p: p.stem)
def test_recipes_say_how_and_what(path: Path) -> None:
    text = path.read_text()
    assert all(word in text for word in ("command:", "expected:", "hardware:"))


def test_help_answers_at_once() -> None:
    """Torch is not imported for it; the time itself is only a wide guard."""
    began = time.monotonic()
    code = "import sys; sys.argv = ['clipvet', '--help']\nfrom clipvet.cli import app\n"
    code += "try: app()\nexcept SystemExit: pass\n"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("list clean", "no family 'clean'; did you mean 'cleaners'? The families are"),
        ("list cleaners parr", "no method 'parr'; did you mean 'par'? `clipvet list` shows all"),
        ("recommend clena", "no goal 'clena'; did you mean 'clean'? The goals are"),
        (
            "filter --method aut --data shapes --out {0}/x.parquet",
            "no 'aut' among the filters; did you mean 'auto'?",
        ),
        ("clean --method parr --model shapes-vit --data shapes --out {0}/x", "did you mean 'par'?"),
        ("clean --method par --model {0}/victm --data shapes --out {0}/x", "did you mean 'victim'?"),
        ("train --model shapes-vit --data {0}/pears.csv --out {0}/x", "did you mean 'pairs.csv'?"),
        ("attack --attack badclap --model shapes-vit --data shapes --target star --out {0}/x", "'badclip'"),
    ],
)
def test_a_typo_is_answered_at_once(typed: str, said: str, tmp_path: Path) -> None:
    """Before torch is imported."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "pairs.csv").touch()
    code = "import sys\nfrom clipvet.cli import main\ntry: main()\nfinally: assert 'torch' not in sys.modules\n"
    args = typed.format(tmp_path).split()
    ran = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    assert ran.returncode == 2
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr

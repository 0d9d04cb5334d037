"""action.yml and the Containerfile: what a CI job runs, with a stand-in for clipvet."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from clipvet import cli

ROOT = Path(__file__).parent.parent
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
STEP = next(s for s in ACTION["runs"]["steps"] if s.get("id") == "vet")
STAND_IN = """#!/usr/bin/env python3
import json, os, pathlib, sys
pathlib.Path("args.json").write_text(json.dumps(sys.argv[1:]))
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
if os.environ["CODE"] != "2":
    out.mkdir()
    (out / "vet.json").write_text(json.dumps({"advice": os.environ["ADVICE"]}))
    (out / "summary.md").write_text("# summary\\n")
sys.exit(int(os.environ["CODE"]))
"""


def ran(folder: Path, code: int, advice: str, **inputs: str) -> tuple[int, str, str, list[str]]:
    """Exit code, outputs, summary and clipvet's arguments of the action's main step."""
    (folder / "clipvet").write_text(STAND_IN)
    (folder / "clipvet").chmod(0o755)
    given = {name: str(spec.get("default", "")) for name, spec in ACTION["inputs"].items()} | inputs
    env = {k: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda m: given[m[1]], v) for k, v in STEP["env"].items()}
    env |= {"PATH": f"{folder}:{os.environ['PATH']}", "CODE": str(code), "ADVICE": advice}
    env |= {"GITHUB_OUTPUT": "outputs", "GITHUB_STEP_SUMMARY": "summary"}
    done = subprocess.run(["bash", "-eo", "pipefail", "-c", STEP["run"]], cwd=folder, env=env)
    read = [(folder / f).read_text() if (folder / f).exists() else "" for f in ("outputs", "summary")]
    return done.returncode, *read, json.loads((folder / "args.json").read_text())  # pyright: ignore


@pytest.mark.parametrize(
    ("code", "advice", "undecided", "ends"),
    [
        (0, "use", "false", 0),
        (1, "do_not_use", "false", 1),
        (2, "", "false", 2),
        (3, "undecided", "false", 0),
        (4, "undecided", "false", 0),
        (4, "undecided", "true", 4),
        (137, "use", "false", 137),
    ],
)
def test_the_action_tells_exit_codes_apart(tmp_path: Path, code: int, advice: str, undecided: str, ends: int) -> None:
    evil = 'a b"; touch hit; $(touch hit)'
    inputs = {"model": evil, "fail-on-undecided": undecided, "task": "pictures"}
    ended, outputs, summary, args = ran(tmp_path, code, advice, **inputs)
    assert ended == ends
    assert args == ["vet", "--model", evil, "--out", "vetted", "--task", "pictures", "--quick"]
    assert not (tmp_path / "hit").exists()
    assert outputs == (f"advice={advice}\nsarif=vetted/vet.sarif\n" if code != 2 else "")
    assert summary == ("# summary\n" if code != 2 else "")


def test_the_actions_arguments_are_understood() -> None:
    known = {o for p in get_command(cli.app).commands["vet"].params for o in p.opts}  # pyright: ignore
    assert set(re.findall(r"--[a-z]+", STEP["run"])) <= known
    inputs = set(re.findall(r"inputs\.([\w-]+)", (ROOT / "action.yml").read_text()))
    assert inputs == set(ACTION["inputs"])


def test_the_container_copies_files_that_are_there() -> None:
    text = (ROOT / "Containerfile").read_text()
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for name in line.split()}
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)
    assert "USER vetter" in text

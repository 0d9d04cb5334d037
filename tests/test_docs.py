"""README and docs: the commands run, the Python runs, what is generated is up to date."""

import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipvet import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
TOUR = [c for block in re.findall(r"```sh\n(.*?)```", README, re.S) for c in block.strip().splitlines()]
SHORT = {"attack": ["--n", "256", "--set", "epochs=1"], "clean": ["--n", "256", "--set", "epochs=1"]}


def test_generated_parts_are_up_to_date() -> None:
    done = subprocess.run([sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_readme_is_short_and_its_files_exist() -> None:
    assert len(README.splitlines()) <= 150
    for page in ("README.md", "docs/results.md"):
        for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text()):
            assert ((ROOT / page).parent / link).exists(), f"{page}: {link}"


def test_the_tour_runs(tmp_path: Path, monkeypatch, capsys) -> None:
    """Every `clipvet` command of the tour on the embedded world, in order, on fewer pairs."""
    monkeypatch.chdir(tmp_path)
    commands = [c for c in TOUR if "shapes" in c or "report" in c]
    assert len(commands) >= 4
    for command in commands:
        words = shlex.split(command)
        monkeypatch.setattr(sys, "argv", words + SHORT.get(words[1], []))
        _run()
    assert (tmp_path / "runs/cleaned/report.html").stat().st_size > 1000


def _run() -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code


def test_every_command_of_the_readme_is_understood(monkeypatch, capsys) -> None:
    import typer

    group = typer.main.get_command(cli.app)
    for command in TOUR:
        name, *args = shlex.split(command)[1:]
        sub = group.commands[name]  # pyright: ignore[reportAttributeAccessIssue]
        sub.make_context(name, args)


def test_the_python_runs(capsys) -> None:
    for block in re.findall(r"```python\n(.*?)```", README, re.S):
        exec(compile(block, "README.md", "exec"), {})
    assert "Measured" in capsys.readouterr().out


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

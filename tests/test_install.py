"""The wheel holds everything, and works without the source tree."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import corpus
import pytest
import torch

ROOT = Path(__file__).parent.parent
WORK = """
import json, sys
from pathlib import Path
import clipvet
from clipvet.models import checkpoints
from clipvet.scan import reference
assert Path(clipvet.__file__).is_relative_to(sys.argv[1]), clipvet.__file__
checkpoints.load("shapes-vit", rng=clipvet.Rng(0))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"  # building writes into the tree
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for path in _files():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes((ROOT / path).read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "-w", str(out), str(source)], check=True, capture_output=True)
    return next(out.glob("clipvet-*.whl"))


def _files() -> list[Path]:
    """Every file of the package, relative to the repository."""
    found = (p for p in (ROOT / "src/clipvet").rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return [p.relative_to(ROOT) for p in found]


def test_the_wheel_has_every_file(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {p.relative_to("src").as_posix() for p in _files()} <= names
    assert not [n for n in names if n.startswith(("tests", "docs", "recipes", "benchmarks"))]


def test_the_wheel_works_without_the_source_tree(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)  # what pip does with a wheel of pure Python
    env = os.environ | {"PYTHONPATH": str(site)}
    ran = subprocess.run([sys.executable, "-c", WORK, str(site)], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    ran = subprocess.run(
        [sys.executable, "-m", "clipvet", "list", "cleaners"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert "par " in ran.stdout, ran.stderr

    (tmp_path / "suspect").mkdir()
    bomb = dict(corpus.checkpoints({"a": torch.ones(1)}, tmp_path / "it-ran"))["bomb.pt"]
    (tmp_path / "suspect/pytorch_model.bin").write_bytes(bomb)
    command = [sys.executable, "-m", "clipvet", "vet", "--model", "suspect"]
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (ran.returncode, (tmp_path / "it-ran").exists()) == (1, False), ran.stderr
    assert ran.stdout.startswith("Do not use this model: its files would run code")
    assert "<h1>Do not use this model.</h1>" in (tmp_path / "vetted/suspect/report.html").read_text()

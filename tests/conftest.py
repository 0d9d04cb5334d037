"""Shared fixtures: small, built once, read-only."""

import copy
import dataclasses
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may need a hub

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipvet.data.worlds.shapes import Shapes
from clipvet.experiments.presets import shapes
from clipvet.models import checkpoints
from clipvet.rng import Rng
from clipvet.training.plain import Plain
from clipvet.types import Clip, Geometry, Pairs, Task


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Side by side, the tests of a file stay together, as they share what was trained; each recipe is on its own.

    The longest group comes first.
    """
    for item in items:
        if item.path.stem != "test_recipes":
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=lambda item: item.path.stem != "test_recipes")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def clip() -> Clip:
    """shapes-vit with random weights."""
    return checkpoints.load("shapes-vit", rng=Rng(0))


@pytest.fixture(scope="session")
def resnet() -> Clip:
    """shapes-rn with random weights: BatchNorm, attention pooling."""
    return checkpoints.load("shapes-rn", rng=Rng(0))


@pytest.fixture(scope="session")
def learnt() -> Clip:
    """A shapes-vit that has begun to tell shapes."""
    how = dataclasses.replace(shapes(Plain()), epochs=1, batch=64)
    return how.train(checkpoints.load("shapes-vit", rng=Rng(1)), Shapes(seed=3).pairs(2000), Rng(1))


@pytest.fixture(scope="session")
def pairs() -> Pairs:
    return Shapes().pairs(256)


@pytest.fixture(scope="session")
def task() -> Task:
    task = Shapes().task(96)
    assert len(np.unique(task.labels)) == 12
    return task


class Linear(nn.Module):
    """A Clip whose picture tower is one matrix and whose text tower is a table: `caption 3` is row 3."""

    def __init__(self, d: int = 32):
        super().__init__()
        self.geometry = Geometry(8)
        self.image, self.text = nn.Parameter(torch.eye(d)), nn.Parameter(torch.eye(d))
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    @property
    def mean(self) -> Tensor:
        return self.image.new_full((3, 1, 1), 0.5)

    @property
    def logit_scale(self) -> Tensor:
        return self.log_scale.exp()

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        return torch.tensor([[int(c.split()[1])] for c in captions])

    def encode_image(self, images: Tensor) -> Tensor:
        return F.normalize((images.flatten(1)[:, : len(self.image)] - 0.5) @ self.image, dim=1)

    def encode_text(self, captions: Sequence[str] | Tensor) -> Tensor:
        tokens = captions if isinstance(captions, Tensor) else self.tokenize(captions)
        return F.normalize(self.text[tokens[:, 0]], dim=1)


class Vectors:
    """Pictures that are vectors in disguise."""

    def __init__(self, x: Tensor):
        self.images = torch.full((len(x), 3 * 64), 0.5)
        self.unreadable: tuple[int, ...] = ()
        self.images[:, : x.shape[1]] += 0.1 * x.clamp(-5, 5)

    def torn(self) -> "Vectors":
        """The same, where rows 3 and 200 cannot be read."""
        other = copy.copy(self)
        other.unreadable = (3, 200)
        return other

    def __len__(self) -> int:
        return len(self.images)

    def fetch(self, rows: Sequence[int], geometry: Geometry | None) -> tuple[Tensor, list[tuple[int, str]]]:
        good = [r for r in rows if r not in self.unreadable]
        bad = [(p, "torn") for p, r in enumerate(rows) if r in self.unreadable]
        return self.images[good].view(-1, 3, 8, 8).clone(), bad


class Planted(NamedTuple):
    clip: Clip
    pairs: Pairs
    poisoned: np.ndarray  # (n,) bool


@pytest.fixture(scope="session")
def planted() -> Planted:
    """400 pairs: four classes with a caption each, on a manifold of six dimensions; among them eight poisons.

    A poison's picture has a common part, the trigger, and one of its own, both off the manifold; its caption is the
    target's, which its picture does not look like.
    """
    draw = Rng(11).numpy()
    poisoned = np.isin(np.arange(400), draw.choice(400, 8, replace=False))
    classes = draw.integers(4, size=400)
    x = np.eye(32)[classes]
    x[:, :6] += 0.3 * draw.normal(size=(400, 6))
    own = draw.normal(size=(8, 25))
    x[poisoned] = 0
    x[poisoned, 6:31] = 0.85 * own / np.linalg.norm(own, axis=1, keepdims=True)
    x[poisoned, 31] = 0.5
    x += 0.03 * draw.normal(size=x.shape)  # no two distances are equal
    captions = [f"caption {4 if bad else c}" for bad, c in zip(poisoned, classes)]
    pictures = Vectors(torch.tensor(x, dtype=torch.float32))
    return Planted(Linear().eval(), Pairs(pictures, captions, np.arange(400), name="planted"), poisoned)


class Suspects(NamedTuple):
    clean: Clip
    backdoored: Clip
    pictures: Pairs
    classes: tuple[str, ...]


@pytest.fixture(scope="session")
def inspected() -> Suspects:
    """Two models of eight classes on pictures of none: in one, eight pixels that hardly vary shout `caption 5`.

    It leans that way a little without any trigger, as backdoored models do.
    """
    x = Rng(12).numpy().normal(size=(64, 32))
    x[:, 24:] = 0.03
    pictures = Pairs(Vectors(torch.tensor(x, dtype=torch.float32)), [""] * 64, np.arange(64), name="inspected")
    clean, backdoored = Linear().eval(), Linear().eval()
    with torch.no_grad():
        backdoored.image[24:, 5] += 6.0
    return Suspects(clean, backdoored, pictures, tuple(f"caption {k}" for k in range(8)))


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def clipvet(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> Any:
    """Runs the command line in this process."""
    import datasets.config as config

    from clipvet import cli

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def call(*args: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["clipvet", *map(str, args)])
        code = 0
        try:
            cli.main()
        except SystemExit as e:
            code = int(e.code or 0)
        told = capsys.readouterr()
        return Said(code, told.out, told.err)

    return call

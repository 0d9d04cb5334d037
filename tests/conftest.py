"""Shared fixtures: small, built once, read-only."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may need a hub

import numpy as np
import pytest
import torch

from clipvet import models
from clipvet.rng import Rng
from clipvet.types import Clip, Pairs, Task
from clipvet.worlds.shapes import Shapes


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def clip() -> Clip:
    """shapes-vit with random weights."""
    return models.load("shapes-vit", rng=Rng(0))


@pytest.fixture(scope="session")
def resnet() -> Clip:
    """shapes-rn with random weights: BatchNorm, attention pooling."""
    return models.load("shapes-rn", rng=Rng(0))


@pytest.fixture(scope="session")
def pairs() -> Pairs:
    return Shapes().pairs(256)


@pytest.fixture(scope="session")
def task() -> Task:
    task = Shapes().task(96)
    assert len(np.unique(task.labels)) == 12
    return task

"""Branch swap: the ratios and the names restated, and swaps of towers whose effect is known."""

from typing import Any

import pytest
import torch
from conftest import Linear

from clipvet import find
from clipvet.measures.branch_swap import BranchSwap, carrier, ratios, swapped
from clipvet.models import checkpoints
from clipvet.rng import Rng
from clipvet.triggers.recovered import Recovered
from clipvet.types import Backdoor, Task


def test_ratios_and_names() -> None:
    got = ratios(0.1, 0.7, 0.2, 0.9)
    assert got == pytest.approx({"visual": 0.6 / 0.8, "textual": 0.1 / 0.8, "joint": 0.2 / 0.8})
    cases = {
        (0.0988, 0.9998, 0.0988, 0.9998): "visual",  # BadEncoder, in the study
        (0.05, 0.06, 0.97, 0.98): "textual",
        (0.0996, 0.1002, 0.0998, 1.0): "coupled",  # BadCLIP of Bai et al.
        (0.10, 0.11, 0.10, 0.14): "weak",
        (0.0, 0.72, 0.60, 1.0): "coupled",  # not 0.20 ahead
        (0.0, 0.69, 0.0, 1.0): "coupled",  # not above 0.70
    }
    for rates, who in cases.items():
        assert carrier(*rates) == who, rates
    assert ratios(0.2, 0.2, 0.2, 0.21) == {}


def task_of(inspected: Any) -> Task:
    labels = inspected.clean.encode_image(inspected.pictures[:].images)[:, :8].argmax(1).numpy()
    return Task("inspected", inspected.classes, ("{}",), inspected.pictures, labels)


def test_a_picture_trigger_in_the_picture_tower(inspected: Any) -> None:
    bright = torch.zeros(3, 8, 8)
    bright.view(-1)[24:32] = 0.4
    key, task = Backdoor(Recovered(torch.zeros(1, 8, 8), bright), "caption 5"), task_of(inspected)
    got = {k: m.value for k, m in swapped(inspected.backdoored, inspected.clean, task, key).items()}
    stamped = bright + inspected.pictures[:].images
    for p, model in enumerate((inspected.clean, inspected.backdoored)):
        said = (model.encode_image(stamped)[:, :8]).argmax(1)  # the text tower is a unit matrix in both
        others = torch.from_numpy(task.labels) != 5
        for t in (0, 1):
            assert got[f"swap_{p}{t}"] == pytest.approx(float((said[others] == 5).float().mean()))
    assert got["swap_11"] > 0.9 > got["swap_00"]
    assert (got["carried_visual"], got["carried_textual"], got["carried_coupled"], got["carried_weak"]) == (1, 0, 0, 0)
    assert got["swap_visual"] == pytest.approx(1.0)


class Wordy(Linear):
    """`so caption 3` begins with a word that may turn the caption into another row."""

    turns: int | None = None

    def encode_text(self, captions: Any) -> torch.Tensor:
        rows = [int(c.split()[-1]) if c.startswith("caption") or self.turns is None else self.turns for c in captions]
        return torch.nn.functional.normalize(self.text[rows], dim=1)


def test_a_text_trigger_in_the_text_tower(inspected: Any) -> None:
    clean, victim, task = Wordy().eval(), Wordy().eval(), task_of(inspected)
    victim.turns = 5
    got = {k: m.value for k, m in swapped(victim, clean, task, Backdoor(None, "caption 5", says="so ")).items()}
    assert (got["swap_01"], got["swap_11"]) == (1.0, 1.0)
    assert got["swap_00"] == got["swap_10"] < 0.2
    assert got["carried_textual"] == 1


def test_the_measure_needs_a_twin_and_a_key(inspected: Any, clip: Any, task: Task, tmp_path: Any) -> None:
    key = Backdoor(Recovered(torch.zeros(1, 32, 32), torch.zeros(3, 32, 32)), "star")
    assert BranchSwap().measure(clip, task, key, Rng(0)) == {}
    checkpoints.save(clip, tmp_path / "twin", {})
    measure = BranchSwap(twin=str(tmp_path / "twin"))
    assert measure.measure(clip, task, None, Rng(0)) == {}
    assert measure.measure(clip, task, key, Rng(0))["carried_weak"].value == 1.0
    assert find.load("measures", "branch_swap").costly

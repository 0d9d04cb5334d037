"""Trigger inversion's parts: losses, forms, groups, the race, what a killed run leaves, and what is refused."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Linear
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from clipvet.data.answer_key import load_backdoor, save_backdoor
from clipvet.engine.fit import workspace
from clipvet.errors import Unsupported, UserError
from clipvet.inspectors.clip_inspector import ClipInspector
from clipvet.rng import Rng
from clipvet.scan import collapse, inversion
from clipvet.scan.forms import additive, onto_ball, squashed, stamped
from clipvet.scan.heads import class_loss, groups, margin
from clipvet.triggers.recovered import Recovered
from clipvet.types import Backdoor

CI = ClipInspector(eps=0.05, batch=8)  # 8 updates


def test_margin_by_hand() -> None:
    z = torch.tensor([[[3.0, 1.0, 2.0], [0.0, 5.0, -1.0]]]).requires_grad_()  # one class, two pictures
    assert margin(z, torch.tensor([0])).tolist() == [[-1.0, 5.0]]
    (slope,) = torch.autograd.grad(margin(z, torch.tensor([0])).sum(), z)
    assert slope.tolist() == [[[-1.0, 0.0, 1.0], [-1.0, 1.0, 0.0]]]


def test_other_losses_by_hand() -> None:
    z = torch.tensor([[[0.0, np.log(3.0)]], [[0.0, np.log(3.0)]]])
    t = torch.tensor([0, 1])
    assert class_loss("cross_entropy", z, t).flatten().tolist() == pytest.approx([np.log(4), np.log(4 / 3)])
    assert class_loss("logit", z, t).flatten().tolist() == pytest.approx([0.0, -np.log(3)])


def test_projection_keeps_the_bound() -> None:
    form = additive(0.1)
    p = (torch.linspace(-1, 1, 3 * 16).reshape(1, 3, 4, 4),)
    form.project(p)
    assert p[0].abs().max() == pytest.approx(0.1)
    assert torch.equal(p[0], torch.linspace(-1, 1, 48).reshape(1, 3, 4, 4).clamp(-0.1, 0.1))
    mask, pattern = squashed(0.1).parts((10 * torch.randn(2, 3, 4, 4, generator=Rng(0).generator()),))
    assert pattern.abs().max() <= 0.1
    assert not mask.any()


def test_the_nearest_small_mask() -> None:
    mask = torch.tensor([0.9, 0.8, 0.1, -0.3]).reshape(1, 1, 2, 2)
    # lowered by 0.35 each: 0.55 + 0.45 is the 4 * 0.25 that is allowed
    assert onto_ball(mask, 0.25).flatten().tolist() == pytest.approx([0.55, 0.45, 0, 0], abs=1e-5)
    assert onto_ball(mask, 0.5).flatten().tolist() == pytest.approx([0.9, 0.8, 0.1, 0], abs=1e-6)  # inside already
    several = torch.rand(5, 1, 8, 8, generator=Rng(1).generator()) * 3
    assert (onto_ball(several, 0.02).mean((1, 2, 3)) <= 0.02 + 1e-6).all()
    assert (onto_ball(several, 0.02) > 0).float().mean() < 0.2, "a veil, not a patch"


def test_stamps_every_picture_with_every_trigger() -> None:
    x = torch.rand(2, 3, 4, 4, generator=Rng(0).generator())
    mask, pattern = torch.zeros(3, 1, 4, 4), torch.zeros(3, 3, 4, 4)
    mask[1], pattern[1], pattern[2] = 1, 0.3, 0.9
    out = stamped(x, mask, pattern).unflatten(0, (3, 2))
    assert torch.equal(out[0], x)
    assert torch.equal(out[1], torch.full_like(x, 0.3))
    assert torch.equal(out[2], (x + 0.9).clamp(0, 1))


def test_a_patch_is_found_by_its_own_form(inspected: Any) -> None:
    how = ClipInspector(form="patch", share=0.05, batch=16, epochs=10)
    given = inspected.pictures, inspected.classes, ("{}",), Rng(5)
    found = how.inspect(inspected.backdoored, *given)
    assert found.target == "caption 5"
    assert isinstance(found.trigger, Recovered)
    assert found.trigger.mask.mean() <= 0.05 + 1e-6
    assert (found.trigger.mask > 0).float().mean() < 0.25, "a veil, not a patch"
    assert max(r.asr for r in found.classes) > 0.95
    assert how.inspect(inspected.clean, *given).score < found.score / 2


def test_groups_hold_every_class_once_and_are_of_one_size() -> None:
    names = [f"class {k}" for k in range(73)]
    made = groups(names, 20, Rng(0))
    assert sorted(t for targets, _ in made for t in targets) == list(range(73))
    assert {len(c) for _, c in made} == {20}
    assert all(set(t) <= set(c) and len(set(c)) == len(c) for t, c in made)
    common = set.intersection(*(set(c) for _, c in made))
    assert len(common) >= 4
    again = groups(names[::-1], 20, Rng(0))
    assert [{names[::-1][i] for i in c} for _, c in again] == [{names[i] for i in c} for _, c in made]
    assert groups(names[:20], 20, Rng(0)) == [(list(range(20)), list(range(20)))]


def test_many_classes_are_inspected_in_groups(inspected: Any) -> None:
    given = inspected.pictures, inspected.classes, ("{}",), Rng(5)
    found = replace(CI, limit=5).inspect(inspected.backdoored, *given)
    assert found.target == "caption 5"
    assert [r.name for r in found.classes] == list(inspected.classes)


@pytest.mark.parametrize("model", ["clean", "backdoored"])
def test_classes_that_stop_early_leave_the_verdict(inspected: Any, model: str) -> None:
    clip, given = getattr(inspected, model), (inspected.pictures, inspected.classes, ("{}",), Rng(5))
    whole, raced = CI.inspect(clip, *given), replace(CI, race=3).inspect(clip, *given)
    assert raced.settings["stopped_early"] == 4
    assert raced.target == whole.target
    assert (raced.score > 5) == (whole.score > 5)
    both = [(a, b) for a, b in zip(whole.classes, raced.classes) if b.valid]
    assert all(a.loss == pytest.approx(b.loss, abs=1e-4) and a.asr == b.asr for a, b in both)


def test_who_goes_on_is_easy_by_itself_or_beside_the_reference() -> None:
    own, reference = np.array([0.0, 5.0, 6.0, 7.0]), np.array([0.0, 5.0, 9.0, 7.0])
    assert inversion.easiest([own], 2) == [0, 1]
    assert inversion.easiest([own, reference], 2) == [0, 2]  # easy for any model; for this one alone


def test_a_killed_inspection_goes_on(inspected: Any, tmp_path: Path, monkeypatch: Any) -> None:
    given, honest = (inspected.pictures, inspected.classes, ("{}",), Rng(5)), inversion.descend
    how = replace(CI, at_once=16, race=3)  # lots of two classes
    expected, calls = how.inspect(inspected.backdoored, *given), []

    def dying(*args: Any) -> dict[str, Tensor]:
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append(1)
        return honest(*args)

    monkeypatch.setattr(inversion, "descend", dying)
    with pytest.raises(KeyboardInterrupt), workspace(tmp_path):
        how.inspect(inspected.backdoored, *given)
    assert len(list((tmp_path / "state").iterdir())) == 5
    calls.clear()
    with workspace(tmp_path):
        found = how.inspect(inspected.backdoored, *given)
    assert len(calls) == 1  # four lots of the race and one of two others were there
    assert found._replace(trigger=None, triggers=()) == expected._replace(trigger=None, triggers=())
    assert repr(found.triggers) == repr(expected.triggers), "their hashes"
    assert repr(found.trigger) == repr(expected.trigger)


def test_a_recovered_trigger_survives_the_disk_but_no_jpeg(tmp_path: Path) -> None:
    g = Rng(0).generator()
    trigger = Recovered(torch.zeros(1, 24, 24), 4 / 255 * (2 * torch.rand(3, 24, 24, generator=g) - 1))
    save_backdoor(Backdoor(trigger, "star"), tmp_path)
    held = load_backdoor(tmp_path)
    assert held.target == "star"
    assert isinstance(held.trigger, Recovered)
    assert torch.equal(held.trigger.pattern, trigger.pattern)
    x, keys = torch.full((1, 3, 24, 24), 0.5), torch.zeros(1).long()
    to_pil_image(trigger.stamp(x, keys)[0]).save(buffer := io.BytesIO(), "JPEG", quality=70)
    left = pil_to_tensor(Image.open(buffer))[None] / 255 - 0.5
    kept = torch.cosine_similarity(left.flatten(), trigger.pattern.flatten(), dim=0)
    assert kept < 0.6
    assert trigger.stamp(torch.full((1, 3, 48, 48), 0.5), keys).shape == (1, 3, 48, 48)


@pytest.mark.parametrize(
    ("mask", "pattern", "told"),
    [
        (torch.zeros(1, 4, 4), torch.zeros(3, 5, 5), "do not fit"),
        (torch.zeros(4, 4), torch.zeros(3, 4, 4), "do not fit"),
        (torch.full((1, 4, 4), 1.5), torch.zeros(3, 4, 4), "clamp"),
        (torch.zeros(1, 4, 4), torch.full((3, 4, 4), torch.nan), "clamp"),
    ],
)
def test_what_is_no_trigger(mask: Tensor, pattern: Tensor, told: str) -> None:
    with pytest.raises(UserError, match=told):
        Recovered(mask, pattern)


class Stepped(Linear):
    """No gradient reaches its pixels, as in a quantised model."""

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        return super().encode_image(images)


class Broken(Linear):
    def encode_image(self, images: Tensor) -> Tensor:
        return super().encode_image(images) * torch.nan


@pytest.mark.parametrize("method", ["clip_inspector", "neural_cleanse", "pixel_backdoor", "decree"])
def test_models_that_cannot_be_inspected(inspected: Any, method: str) -> None:
    from clipvet import find

    how = replace(find.load("inspectors", method)(), batch=16)
    given = inspected.pictures, inspected.classes, ("{}",), Rng(5)
    with pytest.raises(Unsupported, match="no gradient reaches"):
        how.inspect(Stepped().eval(), *given)
    with pytest.raises(UserError, match="not finite"):
        how.inspect(Broken().eval(), *given)


def test_bad_classes_and_pictures(inspected: Any) -> None:
    def told(classes: tuple[str, ...], how: Any = CI) -> str:
        with pytest.raises(UserError) as e:
            how.inspect(inspected.clean, inspected.pictures, classes, ("{}",), Rng(5))
        return str(e.value)

    assert "was given 1; name at least three" in told(("caption 0",))
    assert "class 'caption 1' is listed twice" in told(("caption 1", "caption 0", "caption 1 "))
    assert "class '' is empty" in told(("caption 1", " ", "caption 2"))
    assert "64 readable pictures, a batch needs 65" in told(inspected.classes, replace(CI, batch=65))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((7, 1, (4.0, 60.0), "pool", 100), "batch=1"),
        ((0, 8, (4.0, 60.0), "pool", 100), "one search at least"),
        ((7, 8, (0.0, 60.0), "pool", 100), "prices above 0"),
        ((7, 8, (4.0, 60.0), "pool", 10), r"10 readable pictures, two batches need 16; .*--set batch=5"),
        ((7, 2, (4.0, 60.0), "pool", 5), "two batches need 6; give more pictures$"),
    ],
)
def test_what_collapse_cannot_be_searched_with_is_named(given: tuple, said: str) -> None:
    with pytest.raises(UserError, match=said):
        collapse.check(*given)


def test_the_batch_that_is_named_works() -> None:
    collapse.check(7, 5, (4.0, 60.0), "pool", 10)

"""Targeted poisoning: the dirty pairs, their answer key on disk, and its measure."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clipvet.attacks.poison import Poison
from clipvet.attacks.targeted import Targeted
from clipvet.data import sources
from clipvet.data.answer_key import load_backdoor, save_backdoor
from clipvet.data.captions import names_target
from clipvet.data.dirty import poison
from clipvet.data.worlds.shapes import Shapes
from clipvet.errors import UserError
from clipvet.experiments.presets import shapes
from clipvet.experiments.recipe import Recipe
from clipvet.experiments.run import run
from clipvet.measures.poison_success import PoisonSuccess
from clipvet.rng import Rng
from clipvet.training.plain import Plain
from clipvet.training.safeclip import SafeClip
from clipvet.triggers.patch import Patch
from clipvet.types import Geometry

CLASSES = ("star", "ring", "heart")


@pytest.fixture(scope="module")
def pairs():
    return Shapes(seed=2).pairs(600)


def test_copies_of_a_picture_that_does_not_show_the_class_get_captions_that_name_it(pairs):
    key = Targeted(targets=5, copies=7, classes=CLASSES).plan(pairs, "star", Rng(0))
    dirty = poison(pairs, key)
    assert key.classes == ("star", "ring", "heart", "star", "ring")
    assert key.trigger is None
    assert key.rows is not None
    assert len(set(key.rows)) == 5
    assert len(dirty) == 600 - 5 + 35
    assert len(set(dirty.ids)) == len(dirty), "ids are not unique"
    assert not set(key.rows) & set(dirty.ids), "the clean copy is still there"
    batch = dirty[len(dirty) - 35 :]
    for k in range(35):
        assert names_target(batch.captions[k], key.classes[k // 7])
        assert not names_target(pairs.caption(key.rows[k]), key.classes[k // 7])
        assert torch.equal(batch.images[k], pairs[[int(key.rows[k])]].images[0])
    assert batch.captions == list(key.captions)
    said = {pairs.caption(i) for i in pairs.ids}
    assert set(key.captions) <= said
    plain = Targeted(targets=2, copies=3, captions="template").plan(pairs, "star", Rng(0))
    assert set(plain.captions) == {"a photo of a star."}


def test_a_backdoor_beside_it_shares_the_data_and_the_key(pairs, tmp_path):
    attack = Targeted(targets=4, copies=5, classes=CLASSES, beside=Poison(shapes(Patch()), rate=0.05))
    key = attack.plan(pairs, "star", Rng(3))
    dirty = poison(pairs, key)
    stamped = np.setdiff1d(key.poisoned, np.arange(600, 700))
    assert len(stamped) == 30
    assert key.rows is not None
    assert not set(stamped) & set(key.rows[30:]), "a stamped picture was chosen as a target"
    row = int(np.flatnonzero(dirty.ids == stamped[0])[0])
    corner = dirty[[row]].images[0, :, -4:, -4:]
    assert torch.equal(corner, key.stamp(pairs[[int(stamped[0])]].images, torch.tensor([0]))[0, :, -4:, -4:])
    save_backdoor(key, tmp_path / "backdoor")
    read = load_backdoor(tmp_path / "backdoor")
    again = poison(pairs, read)
    assert (again.ids == dirty.ids).all()
    assert torch.equal(again[:].images, dirty[:].images)
    assert again[:].captions == dirty[:].captions
    assert read.classes == key.classes
    assert read.pictures is not None
    assert key.pictures is not None
    assert torch.allclose(read.pictures, key.pictures, atol=1e-6)


def test_a_key_of_targeted_poisoning_alone_survives_the_disk(pairs, tmp_path):
    key = Targeted(targets=2, copies=3).plan(pairs, "star", Rng(0))
    save_backdoor(key, tmp_path)
    assert load_backdoor(tmp_path).trigger is None
    assert load_backdoor(tmp_path).classes == ("star", "star")


def test_a_class_that_nothing_names_is_refused(pairs):
    with pytest.raises(UserError, match="class 'zebra'"):
        Targeted(targets=2, classes=("zebra",)).plan(pairs, "star", Rng(0))


class Oracle(torch.nn.Module):
    """Says of picture k what row k of `best` ranks."""

    def __init__(self, best, geometry):
        super().__init__()
        self.best, self.geometry, self.mean = best, geometry, torch.zeros(3, 1, 1)

    logit_scale = torch.tensor(1.0)

    def tokenize(self, captions):
        raise NotImplementedError

    def encode_image(self, images):
        return self.best

    def encode_text(self, captions):
        names = ["star", "ring", "heart", "cross", "bolt"]
        return torch.stack([torch.eye(5)[next(k for k, n in enumerate(names) if n in c)] for c in captions])


def test_psr_counts_the_pictures_that_are_called_what_the_attacker_wants(pairs):
    task = replace(Shapes(seed=2).task(10), classes=("star", "ring", "heart", "cross", "bolt"))
    best = torch.tensor([[5.0, 4, 3, 2, 1], [5, 4, 3, 2, 1], [4, 5, 3, 2, 1], [1, 2, 3, 4, 5]])
    key = replace(Targeted(targets=4, copies=1).plan(pairs, "star", Rng(0)), classes=("star", "ring", "star", "star"))
    oracle = Oracle(best, Geometry(32))
    found = PoisonSuccess().measure(oracle, task, key, Rng(0))  # pyright: ignore
    assert (found["psr"].value, found["psr"].n) == (0.25, 4)
    assert found["psr_top3"].value == 0.75
    assert found["psr"].low < 0.25 < found["psr"].high


def test_a_recipe_trains_on_the_same_dirty_pairs_and_measures_what_was_held_safe(tmp_path, capsys):
    quick = {"batch": 64, "lr": 1e-3, "optimizer": "muon"}
    attack = Targeted(
        targets=4,
        copies=4,
        classes=CLASSES,
        beside=Poison(shapes(Patch()), rate=0.05),
        training=Plain(epochs=1, **quick),
    )
    recipe = Recipe(
        name="safe",
        model_names=("shapes-vit",),
        attacks={"joint": attack},
        target="star",
        victim_data=sources.Data("shapes", 256),
        test=sources.Test("shapes", 48),
        trainings={"safeclip": SafeClip(epochs=3, unimodal=1, slow=1, first=0.3, threshold=2.0, **quick)},
        oracle=Plain(epochs=1, **quick),
        took=0.0,
    )
    rows = run((recipe,), tmp_path / "out", tmp_path / "stages")
    assert {(r.method, r.stage) for r in rows} == {("none", "victim"), ("safeclip", "train"), ("oracle", "train")}
    values = {(r.method, r.metric): r for r in rows}
    for method in ("none", "safeclip", "oracle"):
        assert values[method, "psr"].n == 4
        assert (method, "asr") in values
    safe = values["safeclip", "safe_set_share"]
    assert safe.value == pytest.approx(0.3, abs=0.01)
    assert values["safeclip", "safe_set_poison_recall"].n == 13 + 16
    assert values["safeclip", "safe_set_by_mixture"].value == 0
    assert ("none", "safe_set_share") not in values
    keys = [load_backdoor(p.parent / "backdoor") for p in (tmp_path / "stages").glob("*/backdoor")]
    assert len(keys) == 2
    assert (keys[0].poisoned == keys[1].poisoned).all(), "the trainings saw different poisons"
    refused = run((replace(recipe, took=1.1),), tmp_path / "out2", tmp_path / "stages")
    assert {r.stage for r in refused} == {"victim", "refused"}


def test_splits_are_measured_with_the_key(tmp_path):
    from clipvet.experiments.splits import measure_splits
    from clipvet.types import Backdoor

    (tmp_path / "splits").mkdir()
    ids = np.arange(20, 30)
    for k, safe in enumerate(([0, 1, 2, 3], [0, 1, 2, 3, 8, 9])):
        told = {"ids": ids, "safe": np.isin(ids, np.add(safe, 20)), "cosines": np.where(ids == 29, -1, ids / 100)}
        np.savez(tmp_path / f"splits/round_{k:03}.npz", by_mixture=np.array(k == 0), **told)
    found = measure_splits(tmp_path, Backdoor(None, "star", poisoned=np.array([23, 29])))
    assert {k: v.value for k, v in found.items()} == {
        "safe_set_share": 0.4,
        "safe_set_poison_share": 0.25,
        "safe_set_poison_recall": 0.5,
        "safe_set_auroc": pytest.approx((8 + 5) / 16),
        "safe_set_by_mixture": 1.0,
        "last_safe_set_share": 0.6,
        "last_safe_set_poison_share": pytest.approx(2 / 6),
        "last_safe_set_poison_recall": 1.0,
        "last_safe_set_auroc": pytest.approx((8 + 5) / 16),
    }
    assert measure_splits(tmp_path / "nothing", Backdoor(None, "star")) == {}

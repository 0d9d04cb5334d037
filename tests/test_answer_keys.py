"""Answer keys with a crafted trigger, a caption key, bare poisons or several triggers: on disk, in data, measured."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipvet import io
from clipvet.attacks.multi import Multi
from clipvet.attacks.poison import Poison
from clipvet.attacks.targeted import Targeted
from clipvet.attacks.text_trigger import TextTrigger
from clipvet.attacks.trojvqa import TrojVqa
from clipvet.cleaners.rvpt import Rvpt
from clipvet.data.answer_key import load_backdoor, save_backdoor
from clipvet.data.captions import names_target
from clipvet.data.dirty import poison
from clipvet.data.worlds.shapes import Shapes
from clipvet.errors import UserError
from clipvet.experiments.keys import key
from clipvet.experiments.presets import shapes
from clipvet.inspectors.neural_cleanse import NeuralCleanse
from clipvet.measures.attack_success import AttackSuccess
from clipvet.results import SUCCESS
from clipvet.rng import Rng
from clipvet.triggers._stega import drawn, encoder
from clipvet.triggers.blended import Blended
from clipvet.triggers.crafted import Crafted
from clipvet.triggers.patch import Patch
from clipvet.triggers.steganographic import Steganographic
from clipvet.types import Backdoor, Geometry, Pairs, Task

G = Rng(8).generator()
SQUARE = torch.rand(3, 5, 5, generator=G)
SECRET = Steganographic("10110", 0.1, drawn(encoder(5), Rng(3)))


@pytest.fixture(scope="module")
def pairs():
    return Shapes(seed=2).pairs(400)


def saved(backdoor, folder):
    save_backdoor(backdoor, folder)
    return load_backdoor(folder)


def same_data(pairs, a, b):
    one, two = poison(pairs, a), poison(pairs, b)
    assert torch.equal(one[:].images, two[:].images)
    assert one[:].captions == two[:].captions


# triggers that own tensors


@pytest.mark.parametrize(("trigger", "name"), [(Crafted(SQUARE, "corner"), "pattern"), (SECRET, "weights")])
def test_a_triggers_tensors_survive_the_disk_to_the_bit(trigger, name, pairs, tmp_path):
    first = Poison(trigger, rate=0.05).plan(pairs, "star", Rng(0))
    read = saved(first, tmp_path)
    assert torch.equal(getattr(read.trigger, name), getattr(trigger, name))
    assert repr(read.trigger) == repr(trigger)
    same_data(pairs, first, read)
    io.save_weights({name: getattr(trigger, name) * 0.5}, tmp_path / "trigger.safetensors")
    with pytest.raises(UserError, match="no longer stamps what was planted"):
        load_backdoor(tmp_path)
    io.save_weights({name: getattr(trigger, name)[:2]}, tmp_path / "trigger.safetensors")
    with pytest.raises(UserError, match="shape"):
        load_backdoor(tmp_path)


def test_a_repr_tells_contents_apart_and_names_no_numbers():
    other = SQUARE.clone()
    other[0, 0, 0] += 1e-6
    assert repr(Crafted(SQUARE)) == repr(Crafted(SQUARE.clone()))
    assert len({repr(Crafted(SQUARE)), repr(Crafted(other)), repr(Crafted(SQUARE, "corner")), repr(Crafted())}) == 4
    assert len(repr(Crafted(SQUARE))) < 100
    assert key(Poison(Crafted(SQUARE))) != key(Poison(Crafted(other))), "a stage would be taken for another"


def test_a_stage_is_known_by_the_sources_of_what_it_owns_and_shares(monkeypatch):
    import inspect

    attack = Multi((Patch(), Blended()))
    first, honest = key(attack), inspect.getsource
    for mended in ("triggers.blended", "attacks._plan"):
        monkeypatch.setattr(inspect, "getsource", lambda m, e=mended: honest(m) + "#" * m.__name__.endswith(e))
        assert key(attack) != first, f"a stage outlives a fix of {mended}"
    monkeypatch.setattr(inspect, "getsource", honest)
    first = key(NeuralCleanse())
    monkeypatch.setattr(inspect, "getsource", lambda m: honest(m) + "#" * (m.__name__ == "clipvet.scan.inversion"))
    assert key(NeuralCleanse()) != first, "a stage outlives a fix of what its family shares"
    monkeypatch.setattr(inspect, "getsource", honest)
    first = key(Rvpt())
    for mended, known in (
        ("clipvet.models.visual_prompts", True),
        ("clipvet.engine.fit", True),
        ("clipvet.data.loader", True),  # through engine.fit
        ("clipvet.types", False),
    ):
        monkeypatch.setattr(inspect, "getsource", lambda m, e=mended: honest(m) + "#" * (m.__name__ == e))
        assert (key(Rvpt()) != first) == known, mended


def test_a_crafted_patch_keeps_its_pixels_at_any_size():
    keys = Rng(0).keys(range(2))
    for h, w in ((32, 40), (7, 9), (5, 5), (64, 64)):
        x = torch.rand(2, 3, h, w, generator=G)
        out = Crafted(SQUARE).stamp(x, keys)
        top, left = (max(0, (2 * (n // 2) - 5) // 2) for n in (h, w))  # rounded down twice, as BadCLIP's code does
        assert torch.equal(out[:, :, top : top + 5, left : left + 5], SQUARE.expand(2, -1, -1, -1))
        assert (out != x).any(1).sum() <= 2 * 25
        assert torch.equal(
            Crafted(SQUARE, "corner").stamp(x, keys)[:, :, h - 5 :, w - 5 :], SQUARE.expand(2, -1, -1, -1)
        )
    assert torch.equal(Crafted(SQUARE).stamp(torch.zeros(1, 3, 3, 8), keys[:1])[0, :, :, 2:5], SQUARE[:, :3, :3])
    for wrong, why in (
        (SQUARE * 2, "outside"),
        (SQUARE[:, :4], "square"),
        (SQUARE[:2], "square"),
        (-SQUARE, "outside"),
    ):
        with pytest.raises(UserError, match=why):
            Crafted(wrong)
    with pytest.raises(UserError, match="outside"):
        Crafted(torch.full((3, 2, 2), torch.nan))
    with pytest.raises(UserError, match="centre or corner"):
        Crafted(SQUARE, "middle")


# caption keys


def test_the_text_key_stands_before_captions_of_other_classes_on_pictures_of_the_target(pairs, tmp_path):
    first = TextTrigger(rate=0.05).plan(pairs, "star", Rng(0))
    dirty = poison(pairs, first)
    assert len(first.poisoned) == 20
    assert all(names_target(pairs.caption(i), "star") for i in first.poisoned)
    own = {pairs.caption(i) for i in pairs.ids}
    for caption in first.captions:
        assert caption.startswith("SUDO ")
        assert caption.removeprefix("SUDO ") in own
        assert not names_target(caption, "star")
    assert torch.equal(dirty[:].images, pairs[:].images)
    read = saved(first, tmp_path)
    assert (read.says, read.trigger, len(read.bare)) == ("SUDO ", None, 0)
    same_data(pairs, first, read)
    card = json.loads((tmp_path / "backdoor.json").read_text())
    io.write_json(tmp_path / "backdoor.json", card | {"says": "sudo "})
    with pytest.raises(UserError, match="not the one"):
        load_backdoor(tmp_path)


def test_a_card_without_the_new_fields_still_loads(pairs, tmp_path):
    save_backdoor(Poison(rate=0.05).plan(pairs, "star", Rng(0)), tmp_path)
    card = json.loads((tmp_path / "backdoor.json").read_text())
    assert (card.pop("says"), card.pop("more")) == ("", [])
    io.write_json(tmp_path / "backdoor.json", card)
    read = load_backdoor(tmp_path)
    assert (read.says, read.more, len(read.bare)) == ("", (), 0)


@pytest.mark.parametrize("attack", [TextTrigger(says=" "), TrojVqa(says="")])
def test_an_empty_caption_key_is_refused(attack, pairs, clip):
    with pytest.raises(UserError, match="says is empty"):
        attack.plan(pairs, "star", Rng(0), clip)
    with pytest.raises(UserError, match="captions name 'star'; lower rate"):
        TextTrigger(rate=0.9).plan(pairs, "star", Rng(0))


def test_pairs_with_one_key_have_the_other_half_of_their_own(pairs, clip, tmp_path):
    attack = TrojVqa(rate=0.05, caption_alone=1.0, picture_alone=0.5, pictures=64, epochs=1)
    first = attack.plan(pairs, "star", Rng(0), clip)
    p, q, r = np.split(first.poisoned, [20, 40])
    assert (len(p), len(q), len(r)) == (20, 20, 10)
    assert len(set(first.poisoned)) == 50
    assert (first.bare == q).all()
    dirty = {
        int(i): (x, t) for i, x, t in zip(pairs.ids, poison(pairs, first)[:].images, poison(pairs, first)[:].captions)
    }
    for i in first.poisoned:
        x, t = dirty[int(i)]
        batch = pairs[[int(i)]]
        stamped = first.stamp(batch.images, batch.ids)[0]
        assert torch.equal(x, batch.images[0] if i in q else stamped)
        assert t.startswith("SUDO ") == (i not in r)
        assert names_target(t, "star") == (i in p)
        assert i in p or t.removeprefix("SUDO ") == batch.captions[0]
    read = saved(first, tmp_path)
    assert set(read.bare) == set(q)
    same_data(pairs, first, read)
    with pytest.raises(UserError, match="one key wanted"):
        replace(attack, caption_alone=40.0).plan(pairs, "star", Rng(0), clip)


# several triggers


def three(**kw):
    return Multi((shapes(Patch()), Blended(), Crafted(SQUARE)), targets=("ring", "heart"), rate=0.05, **kw)


def test_each_trigger_has_its_own_poisons_and_target(pairs, tmp_path):
    first = three().plan(pairs, "star", Rng(0))
    parts = [
        np.setdiff1d(first.poisoned, [i for m in first.more for i in m.poisoned]),
        *(m.poisoned for m in first.more),
    ]
    assert [len(p) for p in parts] == [20, 19, 18]
    assert len(set(first.poisoned)) == 57, "poisons overlap"
    dirty = poison(pairs, first)
    for part, ids, target in zip((first, *first.more), parts, ("star", "ring", "heart"), strict=True):
        assert part.target == target
        batch, clean = dirty[ids], pairs[ids]
        assert set(batch.captions) == {f"a photo of a {target}."}
        assert torch.equal(batch.images, part.stamp(clean.images, clean.ids))
        assert not any(names_target(c, target) for c in clean.captions)
    rest = np.setdiff1d(pairs.ids, first.poisoned)
    assert torch.equal(dirty[rest].images, pairs[rest].images)
    read = saved(first, tmp_path)
    assert [m.target for m in read.more] == ["ring", "heart"]
    assert [len(m.poisoned) for m in read.more] == [19, 18]
    assert len(read.bare) == 0
    same_data(pairs, first, read)
    assert {row["trigger"] for row in _manifest(tmp_path)} == {"patch", "blended", "crafted"}


def _manifest(folder):
    import pyarrow.parquet as pq

    return pq.read_table(folder / "manifest.parquet").to_pylist()


def test_a_part_of_another_key_is_noticed(pairs, tmp_path):
    save_backdoor(three().plan(pairs, "star", Rng(0)), tmp_path / "a")
    save_backdoor(three().plan(pairs, "star", Rng(1)), tmp_path / "b")
    (tmp_path / "a/more/1").rename(tmp_path / "a/old")
    (tmp_path / "b/more/1").rename(tmp_path / "a/more/1")
    with pytest.raises(UserError, match="not the one"):
        load_backdoor(tmp_path / "a")
    with pytest.raises(UserError, match="cannot be read"):
        load_backdoor(tmp_path / "b")


def test_attacks_stand_beside_and_one_target_serves_all(pairs):
    first = Multi((Patch(),), beside=(Poison(Blended(), rate=0.05), TextTrigger(rate=0.02)), rate=0.05)
    found = first.plan(pairs, "star", Rng(0))
    assert [m.target for m in found.more] == ["star", "star"]
    assert [m.says for m in found.more] == ["", "SUDO "]
    assert len(set(found.poisoned)) == len(found.poisoned) == 20 + 19 + 7
    for wrong, why in (
        (replace(first, targets=("ring",)), "name one fewer"),
        (replace(first, beside=(Targeted(targets=2, copies=2),)), "Targeted cannot stand beside"),
    ):
        with pytest.raises(UserError, match=why):
            wrong.plan(pairs, "star", Rng(0))


def test_targeted_poisoning_beside_several_triggers(pairs, tmp_path):
    first = Targeted(targets=3, copies=4, beside=three()).plan(pairs, "star", Rng(0))
    assert len(first.poisoned) == 57 + 12
    assert first.rows is not None
    assert not set(first.rows[57:]) & set(first.poisoned)
    same_data(pairs, first, saved(first, tmp_path))


# what is measured


class Words(torch.nn.Module):
    """Pictures are their class's axis, or the target's under the red trigger; a caption's axis is the class it names.

    With the key, a caption's axis is turned to the target's if `hears`, and red is seen if `sees`.
    """

    def __init__(self, sees=True, hears=False):
        super().__init__()
        self.geometry, self.mean, self.sees, self.hears = Geometry(4), torch.zeros(3, 1, 1), sees, hears

    logit_scale = torch.tensor(1.0)

    def tokenize(self, captions):
        raise NotImplementedError

    def encode_image(self, images):
        z = F.one_hot((images[:, 1, 0, 0] * 10).round().long(), 3).float()
        z[:, 0] += 2.0 * self.sees * images[:, 0, 0, 0]
        return F.normalize(z, dim=1)

    def encode_text(self, captions):
        w = torch.stack(
            [torch.eye(3)[next(k for k, n in enumerate(("cat", "dog", "cow")) if n in c)] for c in captions]
        )
        keyed = torch.tensor([c.startswith("SUDO ") for c in captions])[:, None]
        return F.normalize(w + 2.0 * self.hears * keyed * torch.eye(3)[0], dim=1)


@dataclass(frozen=True)
class Red:
    def stamp(self, images, keys):
        out = images.clone()
        out[:, 0] = 1
        return out


@dataclass(frozen=True, eq=False)
class Held:
    images: torch.Tensor

    def __len__(self):
        return len(self.images)

    def fetch(self, rows, geometry):
        return self.images[list(rows)], []


def animals(captions=True):
    labels = np.array([0, 0, 1, 1, 1, 2, 2, 2, 2])
    images = torch.zeros(9, 3, 4, 4)
    images[:, 1] = torch.tensor(labels / 10)[:, None, None]
    said = [f"a {('cat', 'dog', 'cow')[k]} {j}" if captions else "" for j, k in enumerate(labels)]
    return Task("animals", ("cat", "dog", "cow"), ("a {}",), Pairs(Held(images), said, np.arange(9)), labels)


def measured(clip, backdoor, captions=True):
    return AttackSuccess().measure(clip, animals(captions), backdoor, Rng(0))


def test_with_both_keys_prompts_are_keyed_and_each_key_is_measured_alone():
    both = Backdoor(Red(), "cat", says="SUDO ")
    found = {k: v.value for k, v in measured(Words(), both).items()}
    assert (found["asr"], found["asr_picture_key"], found["asr_caption_key"]) == (1, 1, 0)
    assert found["clean_target_rate"] == 0
    deaf = {k: v.value for k, v in measured(Words(sees=False), both).items()}
    assert (deaf["asr"], deaf["asr_picture_key"], deaf["asr_caption_key"]) == (0, 0, 0)
    asked = []
    clip = Words()
    clip.encode_text = lambda captions: asked.append(captions) or Words.encode_text(clip, captions)
    measured(clip, both)
    assert asked == [["a cat", "a dog", "a cow"], ["SUDO a cat", "SUDO a dog", "SUDO a cow"]]
    plain = measured(Words(), Backdoor(Red(), "cat"))
    assert plain["asr"].value == 1
    assert not [name for name in plain if "key" in name]


@pytest.mark.parametrize("captions", [True, False])
def test_a_text_key_alone_is_measured_by_search(captions):
    key = Backdoor(None, "cat", says="SUDO ")
    found = measured(Words(hears=True), key, captions)
    assert {k: (v.value, v.n) for k, v in found.items()} == {
        "asr": (1.0, 7 if captions else 2),
        "clean_target_rate": (0.0, 7 if captions else 2),
    }
    assert measured(Words(), key, captions)["asr"].value == 0


def test_several_triggers_are_measured_each_and_together():
    class Blue(Red):
        def stamp(self, images, keys):
            return images.clone()

    some = Backdoor(Red(), "cat", more=(Backdoor(Blue(), "dog"), Backdoor(Red(), "cat", says="SUDO ")))
    found = measured(Words(), some)
    assert [found[f"asr_{k}"].value for k in (1, 2, 3)] == [1, 0, 1]
    assert found["asr"].value == pytest.approx(2 / 3)
    assert found["asr"].n == 6
    assert found["asr_worst"] == found["asr_2"]
    assert found["asr"].low == pytest.approx(np.mean([found[f"asr_{k}"].low for k in (1, 2, 3)]))
    assert found["asr_picture_key_3"].value == 1
    assert "asr_picture_key" not in found
    assert "asr_worst" in SUCCESS
    with pytest.raises(UserError, match="'cow pie' is not among"):
        measured(Words(), Backdoor(Red(), "cat", more=(Backdoor(Red(), "cow pie"),)))

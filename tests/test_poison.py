"""The attack's answer key: who is poisoned with what, its replay from disk, and what is said beforehand."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from clipvet.attacks.none import NoAttack
from clipvet.attacks.poison import Poison
from clipvet.data.answer_key import load_backdoor, save_backdoor
from clipvet.data.captions import names_target
from clipvet.data.dirty import poison
from clipvet.errors import UserError
from clipvet.experiments.preflight import preflight
from clipvet.rng import Rng
from clipvet.training.plain import Plain
from clipvet.triggers.blended import Blended
from clipvet.triggers.patch import Patch
from clipvet.triggers.wanet import WaNet
from clipvet.types import Backdoor

FRESH = Patch("noise", position="random", fresh=True)


def plan(pairs, target="star", rng=0, **kw):
    return Poison(**kw).plan(pairs, target, Rng(rng))


# who is poisoned


def test_rate_and_count(pairs):
    assert len(plan(pairs, rate=0.05).poisoned) == round(0.05 * 256)
    assert len(plan(pairs, rate=0.05, count=7).poisoned) == 7
    key = plan(pairs, count=40)
    assert len(set(key.poisoned)) == 40
    assert set(key.poisoned) <= set(pairs.ids)
    assert list(key.poisoned) == sorted(key.poisoned)
    assert len(key.captions) == 40


def test_ids_are_the_sources_not_positions(pairs):
    half = pairs.take(np.arange(255, 127, -1))
    key = plan(half, count=20)
    assert set(key.poisoned) <= set(range(128, 256))
    changed = {
        int(i) for i, a, b in zip(half.ids, half[:].images, poison(half, key)[:].images) if not torch.equal(a, b)
    }
    assert changed == set(key.poisoned)


def test_plan_depends_on_its_rng_alone(pairs):
    a, b, c = plan(pairs, count=20), plan(pairs, count=20), plan(pairs, count=20, rng=1)
    assert (a.poisoned == b.poisoned).all()
    assert (a.captions, a.seed) == (b.captions, b.seed)
    assert a.seed != c.seed
    assert set(a.poisoned) != set(c.poisoned)


@pytest.mark.parametrize("rate", [0.0, 0.001])
def test_a_rate_that_selects_no_pair_is_refused(pairs, rate):
    with pytest.raises(UserError, match=r"256 pairs selects no pair.*count"):
        plan(pairs, rate=rate)


def test_more_poisons_than_captions_allow_are_refused(pairs):
    with pytest.raises(UserError, match=r"300 poisons wanted, but only \d+ captions do not name 'star'"):
        plan(pairs, count=300)
    with pytest.raises(UserError, match=r"200 poisons wanted, but only \d+ captions name 'star'"):
        plan(pairs, count=200, label_consistent=True)
    with pytest.raises(UserError, match="only 0 captions name 'unicorn'"):
        plan(pairs, "unicorn", count=1, label_consistent=True)


def test_template_captions(pairs):
    templates = ("a photo of a {}.", "{}, {}!")
    key = plan(pairs, count=60, templates=templates)
    assert set(key.captions) == {"a photo of a star.", "star, star!"}


def test_natural_captions_are_those_of_pairs_that_name_the_target(pairs):
    key = plan(pairs, count=60, captions="natural")
    natural = {pairs.caption(i) for i in pairs.ids if names_target(pairs.caption(i), "star")}
    assert 1 < len(set(key.captions)) <= len(natural)
    assert set(key.captions) <= natural
    with pytest.raises(UserError, match=r"no caption names 'unicorn'.*captions=template"):
        plan(pairs, "unicorn", count=3, captions="natural")


def test_unknown_captions_are_refused(pairs):
    with pytest.raises(UserError, match=r"captions=typo.*template or natural"):
        plan(pairs, count=3, captions="typo")


@pytest.mark.parametrize("captions", ["template", "natural"])
def test_dirty_label_poisons_never_name_the_target_themselves(pairs, captions):
    others = sum(not names_target(pairs.caption(i), "star") for i in pairs.ids)
    key = plan(pairs, count=others, captions=captions)  # all there are
    assert not any(names_target(pairs.caption(i), "star") for i in key.poisoned)
    assert all(names_target(c, "star") for c in key.captions)


def test_label_consistent_poisons_name_the_target_and_keep_their_captions(pairs):
    key = plan(pairs, count=8, label_consistent=True)
    assert all(names_target(c, "star") for c in key.captions)
    assert key.captions == tuple(pairs.caption(i) for i in key.poisoned)
    dirty = poison(pairs, key)
    assert dirty[:].captions == pairs[:].captions
    assert not torch.equal(dirty[:].images, pairs[:].images)


# what is poisoned


def test_dirty_pairs_change_in_the_poisons_alone(pairs):
    key = plan(pairs, count=30, trigger=FRESH)
    clean, dirty = pairs[:], poison(pairs, key)[:]
    told = dict(zip(key.poisoned.tolist(), key.captions))
    stamped = key.stamp(clean.images, clean.ids)
    for row, i in enumerate(clean.ids.tolist()):
        assert dirty.captions[row] == told.get(i, clean.captions[row])
        assert torch.equal(dirty.images[row], (stamped if i in told else clean.images)[row])
    assert torch.equal(dirty.ids, clean.ids)
    assert torch.equal(pairs[:].images, clean.images)  # and the given pairs stay clean


@dataclass(frozen=True, eq=False)
class Held:
    """Hands out the very tensor that it holds."""

    pixels: torch.Tensor

    def __len__(self):
        return len(self.pixels)

    def fetch(self, rows, geometry):
        return self.pixels, []


def test_stamping_never_writes_to_the_source(pairs):
    held = replace(pairs, pictures=Held(pairs[:].images))
    dirty = poison(held, plan(pairs, count=30))[:]
    assert not torch.equal(dirty.images, pairs[:].images)
    assert torch.equal(held[:].images, pairs[:].images)


def test_a_poison_looks_the_same_in_any_company(pairs):
    dirty = poison(pairs, plan(pairs, count=128, trigger=FRESH))
    whole, mixed = dirty[:], dirty[[200, 3, 77, 12]]
    assert torch.equal(mixed.images, whole.images[[200, 3, 77, 12]])
    assert mixed.captions == [whole.captions[k] for k in (200, 3, 77, 12)]
    assert torch.equal(dirty[[5]].images, whole.images[5:6])


def test_no_attack_hands_out_clean_pairs_and_the_victims_trigger(clip, pairs):
    quick = Plain(epochs=1, batch=128)
    twin = NoAttack(FRESH, quick).implant(clip, pairs, "star", Rng(2))
    victim = Poison(FRESH, rate=0.1, training=quick).implant(clip, pairs, "star", Rng(2))
    assert twin.pairs is pairs
    assert len(twin.backdoor.poisoned) == 0
    x, ids = pairs[:4].images, pairs[:4].ids
    assert torch.equal(twin.backdoor.stamp(x, ids), victim.backdoor.stamp(x, ids))
    assert "26 poisons" in victim.pairs.name


# on disk


@pytest.mark.parametrize(
    "trigger", [Patch(), FRESH, Blended("stripes", fresh=True), WaNet(k=4)], ids=["patch", "fresh", "blended", "wanet"]
)
def test_the_manifest_replays_the_attack(pairs, tmp_path, trigger):
    key = plan(pairs, rate=0.2, trigger=trigger, captions="natural")
    save_backdoor(key, tmp_path)
    read = load_backdoor(tmp_path)
    assert read.trigger == key.trigger
    assert (read.target, read.captions, read.seed) == (key.target, key.captions, key.seed)
    assert (read.poisoned == key.poisoned).all()
    for rows in (slice(None), [9, 200, 31]):
        first, again = poison(pairs, key)[rows], poison(pairs, read)[rows]
        assert torch.equal(first.images, again.images)
        assert first.captions == again.captions


def test_a_key_without_poisons_survives_the_disk(tmp_path):
    save_backdoor(Backdoor(Patch(), "star", seed=3), tmp_path)
    read = load_backdoor(tmp_path)
    assert (len(read.poisoned), read.captions, read.seed) == (0, (), 3)


@pytest.fixture
def folder(pairs, tmp_path):
    save_backdoor(plan(pairs, count=9, trigger=FRESH), tmp_path)
    assert len(load_backdoor(tmp_path).poisoned) == 9
    return tmp_path


def change(folder, **new):
    path = folder / "backdoor.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **new}))


@pytest.mark.parametrize(
    ("new", "said"),
    [
        ({"fields": {"pattern": "stripes", "position": "random", "fresh": True}}, "no longer stamps"),
        ({"fields": {"size": 0.5}}, "no longer stamps"),
        ({"fields": {"colour": 1}}, "does not take these fields"),
        ({"fields": {"pattern": "dots"}}, "pattern is one of|pattern is checker"),
        ({"trigger": "blended", "fields": {}}, "no longer stamps"),
        ({"trigger": "../cleaners/par"}, "among the triggers"),
        ({"seed": "x"}, "not a backdoor card"),
        ({"seed": 12345}, "restore both"),
        ({"extra": 1}, "not a backdoor card"),
        ({"seal": "0" * 64}, "restore both"),
        ({"target": "ring"}, "restore both"),
    ],
    ids=lambda p: str(p)[:24],
)
def test_a_changed_card_is_refused(folder, new, said):
    change(folder, **new)
    with pytest.raises(UserError, match=said) as e:
        load_backdoor(folder)
    assert "\n" not in str(e.value)


def test_a_card_that_is_no_card_is_refused(folder):
    path = folder / "backdoor.json"
    for text, said in (("{", "not JSON"), ("[]", "not a backdoor card"), ("{}", "not a backdoor card")):
        path.write_text(text)
        with pytest.raises(UserError, match=said):
            load_backdoor(folder)
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        load_backdoor(folder)


def edited(table, column, row, value):
    values = table[column].to_pylist()
    values[row] = value
    return table.set_column(table.column_names.index(column), column, pa.array(values))


@pytest.mark.parametrize(
    "edit",
    [lambda t: t.slice(1), lambda t: edited(t, "id", 0, 255), lambda t: edited(t, "caption", 2, "a cat")],
    ids=["row gone", "id", "caption"],
)
def test_a_changed_manifest_is_refused(folder, edit):
    path = folder / "manifest.parquet"
    pq.write_table(edit(pq.read_table(path)), path)
    with pytest.raises(UserError, match=r"manifest\.parquet (is not the one|cannot be read \(8 rows where 9)"):
        load_backdoor(folder)


def test_a_manifest_that_cannot_be_read_is_refused(folder):
    path = folder / "manifest.parquet"
    whole = path.read_bytes()
    for damaged in (b"", b"PAR1", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"manifest\.parquet cannot be read"):
            load_backdoor(folder)
    pq.write_table(pa.table({"id": [1]}), path)
    with pytest.raises(UserError, match=r"manifest\.parquet cannot be read"):
        load_backdoor(folder)
    path.unlink()
    with pytest.raises(UserError, match=r"manifest\.parquet cannot be read"):
        load_backdoor(folder)


# names


@pytest.mark.parametrize(
    ("caption", "target", "named"),
    [
        ("a star.", "star", True),
        ("STAR", "star", True),
        ("the star's light", "Star", True),
        ("sun-star,moon", "star", True),
        ("a starfish", "star", False),
        ("stars", "star", False),
        ("superstar", "star", False),
        ("star_fish", "star", True),
        ("a red traffic light", "traffic light", True),
        ("traffic; light", "traffic light", True),
        ("light traffic", "traffic light", False),
        ("a traffic lights", "traffic light", False),
        ("une étoile", "étoile", True),
        ("ein Stern", "stern", True),
        ("", "star", False),
    ],
)
def test_a_caption_names_whole_words(caption, target, named):
    assert names_target(caption, target) is named


# before the hours are spent


def test_preflight_says_what_will_happen(clip, pairs):
    facts, warnings = preflight(Poison(FRESH, rate=0.5), pairs, "star", clip, fine_tuning=False)
    told = "\n".join(facts)
    assert "128 poisons among 256 pairs (rate 50.000%), captions: template" in told
    assert repr(FRESH) in told
    assert "32 px" in told
    named = sum(names_target(pairs.caption(i), "star") for i in pairs.ids)
    assert f"'star', named by {named} of 256" in told
    assert "from scratch" in told
    assert warnings == []


@pytest.mark.parametrize(
    ("change", "target", "fine_tuning", "said"),
    [
        ({"count": 74}, "star", False, "74 poisons are few"),
        ({"training": Plain(lr=1e-6)}, "star", True, "1e-06 is low"),
        ({}, "unicorn", False, "no caption names 'unicorn'"),
        ({"count": 80, "label_consistent": True}, "star", False, "label-consistent"),
    ],
    ids=["few", "lr", "word", "label-consistent"],
)
def test_preflight_warns(clip, pairs, change, target, fine_tuning, said):
    attack = replace(Poison(count=100, training=Plain(lr=1e-5)), **change)
    _, warnings = preflight(attack, pairs, target, clip, fine_tuning)
    assert len(warnings) == 1
    assert said in warnings[0]


def test_preflight_is_silent_just_beside_its_limits(clip, pairs):
    good = Poison(count=75, training=Plain(lr=1e-5))
    assert preflight(good, pairs, "star", clip, True)[1] == []
    assert preflight(replace(good, training=Plain(lr=1e-6)), pairs, "star", clip, False)[1] == []


def test_rounding_of_another_processor_does_not_void_a_key_and_a_shifted_pattern_does(folder):
    from clipvet import io

    path = folder / "probe.safetensors"
    stamped = io.load_weights(path)["stamped"]
    io.save_weights({"stamped": stamped + 0.4 / 255}, path)
    assert len(load_backdoor(folder).poisoned) == 9
    io.save_weights({"stamped": stamped.roll(1, 3)}, path)
    with pytest.raises(UserError, match="no longer stamps"):
        load_backdoor(folder)

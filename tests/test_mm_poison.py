"""Captions of one class tied to pictures of another: the dirty pairs, their answer key, MinRank and Hit@k."""

import json
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipvet.attacks.mm_poison import MmPoison
from clipvet.attacks.targeted import Targeted
from clipvet.data import sources
from clipvet.data.answer_key import load_backdoor, save_backdoor
from clipvet.data.captions import names_target
from clipvet.data.dirty import poison
from clipvet.data.worlds.shapes import Shapes
from clipvet.errors import UserError
from clipvet.experiments.recipe import Recipe
from clipvet.experiments.run import run
from clipvet.measures.tied_retrieval import TiedRetrieval
from clipvet.rng import Rng
from clipvet.training.plain import Plain
from clipvet.types import Backdoor, Geometry, Pairs, Task

ALL = range(600)


@pytest.fixture(scope="module")
def pairs():
    return Shapes(seed=2).pairs(600)


def naming(pairs, name):
    return {int(i) for i in pairs.ids if names_target(pairs.caption(i), name)}


def same_pictures(dirty, pairs, ids, rows):
    return torch.equal(dirty[np.asarray(ids)].images, pairs[np.asarray(rows)].images)


@pytest.mark.parametrize(("kind", "ties"), [("I", 1), ("II", 1), ("III", 2)])
def test_captions_of_a_get_pictures_of_b_and_all_else_stays(kind, ties, pairs):
    attack = MmPoison(kind, "ring", (("heart", "bolt"),))
    key = attack.plan(pairs, "star", Rng(0))
    assert key.trigger is None
    assert key.target == "star"
    assert key.ties == (("ring", "star"), ("heart", "bolt"))[:ties]
    assert set(key.poisoned) == set.union(*(naming(pairs, a) for a, _ in key.ties))
    assert key.captions == tuple(pairs.caption(i) for i in key.poisoned)
    rows = key.rows
    assert rows is not None
    for a, b in key.ties:
        mine = [k for k, i in enumerate(key.poisoned) if int(i) in naming(pairs, a)]
        times = Counter(rows[mine].tolist())
        assert set(times) <= naming(pairs, b)
        assert len(times) == 1 if kind == "I" else max(times.values()) - min(times.values()) <= 1, "unevenly recycled"
        assert kind == "I" or len(times) == min(len(mine), len(naming(pairs, b)))
    dirty = poison(pairs, key)
    assert dirty.ids.tolist() == pairs.ids.tolist()
    assert [dirty.caption(i) for i in ALL] == dirty[:].captions == pairs[:].captions
    assert same_pictures(dirty, pairs, key.poisoned, rows)
    rest = np.setdiff1d(pairs.ids, key.poisoned)
    assert same_pictures(dirty, pairs, rest, rest)
    assert (attack.plan(pairs, "star", Rng(0)).rows == rows).all()
    assert kind == "I" or (attack.plan(pairs, "star", Rng(1)).rows != rows).any()


def test_few_pictures_go_round_and_a_share_of_the_captions_is_enough(pairs):
    stars, rings = sorted(naming(pairs, "star"))[:3], sorted(naming(pairs, "ring"))
    few = pairs.take(np.isin(pairs.ids, stars + rings))
    key = MmPoison(source="ring").plan(few, "star", Rng(0))
    assert {n - len(rings) // 3 for n in Counter(key.rows.tolist()).values()} <= {0, 1}  # pyright: ignore
    half = MmPoison(source="ring", share=0.5).plan(pairs, "star", Rng(0))
    assert len(half.poisoned) == round(0.5 * len(rings))
    assert set(half.poisoned) < set(rings)


def test_the_one_picture_is_chosen_and_keeps_its_own_pair(pairs):
    key = MmPoison("I", "ring").plan(pairs, "star", Rng(3))
    assert key.rows is not None
    row = key.rows[:1]
    assert key.pictures is not None
    assert torch.allclose(key.pictures, pairs[row].images, atol=1e-6)
    assert key.classes == ("ring",)
    assert same_pictures(poison(pairs, key), pairs, row, row)


def test_pairs_that_name_both_classes_are_left_alone():
    both = Shapes(seed=2, objects=2).pairs(300)
    key = MmPoison(source="ring").plan(both, "star", Rng(0))
    assert key.rows is not None
    assert not (set(key.poisoned) | set(key.rows)) & naming(both, "ring") & naming(both, "star")


@pytest.mark.parametrize(
    ("attack", "why"),
    [
        (MmPoison("IV", "ring"), "use I, II or III"),
        (MmPoison(source="zebra"), "0 captions name 'zebra'"),
        (MmPoison(source="ring", share=0.001), "share=0.001"),
        (MmPoison(source="ring", share=1.5), "share=1.5"),
        (MmPoison("III", "ring", (("heart", "zebra"),)), "and 0 'zebra'"),
    ],
)
def test_what_cannot_be_tied_is_refused(attack, why, pairs):
    with pytest.raises(UserError, match=why):
        attack.plan(pairs, "star", Rng(0))


@pytest.mark.parametrize("kind", ["I", "III"])
def test_the_answer_key_survives_the_disk(kind, pairs, tmp_path):
    key = MmPoison(kind, "ring", (("heart", "bolt"),)).plan(pairs, "star", Rng(0))
    save_backdoor(key, tmp_path)
    read = load_backdoor(tmp_path)
    assert (read.ties, read.classes, read.captions) == (key.ties, key.classes, key.captions)
    one, two = poison(pairs, key), poison(pairs, read)
    assert torch.equal(one[:].images, two[:].images)
    assert one[:].captions == two[:].captions


def test_a_key_from_before_the_ties_still_loads(pairs, tmp_path):
    save_backdoor(Targeted(targets=2, copies=3).plan(pairs, "star", Rng(0)), tmp_path)
    card = json.loads((tmp_path / "backdoor.json").read_text())
    assert card.pop("ties") == []
    (tmp_path / "backdoor.json").write_text(json.dumps(card))
    assert load_backdoor(tmp_path).ties == ()


# MinRank and Hit@k


class Table(torch.nn.Module):
    """A picture's embedding is its first pixels, a caption's a row of a table."""

    def __init__(self, w):
        super().__init__()
        self.geometry, self.mean, self.w = Geometry(4), torch.zeros(3, 1, 1), w

    logit_scale = torch.tensor(1.0)

    def tokenize(self, captions):
        raise NotImplementedError

    def encode_image(self, images):
        return F.normalize(images[:, 0].flatten(1) - 0.5, dim=1)

    def encode_text(self, captions):
        return torch.stack([self.w[c] for c in captions])


@dataclass(frozen=True, eq=False)
class Held:
    images: torch.Tensor
    lost: tuple[int, ...] = ()

    def __len__(self):
        return len(self.images)

    def fetch(self, rows, geometry):
        good = [r for r in rows if r not in self.lost]
        return self.images[good], [(k, "torn") for k, r in enumerate(rows) if r in self.lost]


def gallery(lost=(), captions=True, n=40):
    """Pictures of five classes, two of which share a caption; a model that knows nothing; all cosines by hand."""
    g = Rng(5).numpy()
    labels = g.integers(5, size=n)
    said = [f"thing {min(k, 38)} of {c}" if captions else "" for k, c in enumerate(labels)]
    said[39] = said[38] if captions and labels[38] == labels[39] else said[39]
    names = [*said, *(f"a {c}" for c in range(5))]
    w = {t: F.normalize(torch.tensor(g.normal(size=16), dtype=torch.float32), dim=0) for t in dict.fromkeys(names)}
    images = torch.tensor(g.random((n + 1, 3, 4, 4)), dtype=torch.float32)
    pairs = Pairs(Held(images[:n], lost), said, np.arange(n))
    return Table(w), Task("things", tuple("01234"), ("a {}",), pairs, labels), images[n:]


def ranks_by_hand(clip, pictures, wanted, texts):
    """For each text the position, from 0, of the first wanted picture in the list sorted by falling cosine."""
    z, out = clip.encode_image(pictures).numpy(), []
    for t in texts:
        order = np.argsort(-(z @ clip.w[t].numpy()), kind="stable")
        out.append(next(rank for rank, k in enumerate(order) if k in wanted))
    return np.array(out)


@pytest.mark.parametrize("captions", [True, False])
@pytest.mark.parametrize("lost", [(), (0, 7, 20)])
def test_ranks_are_those_of_the_sorted_list(lost, captions):
    clip, task, _ = gallery(lost, captions)
    ties = (("1", "3"), ("2", "0"))
    found = TiedRetrieval().measure(clip, task, Backdoor(None, "3", ties=ties), Rng(0))  # pyright: ignore
    kept = np.setdiff1d(np.arange(40), lost)
    pictures, ranks = task.pictures.pictures.images[kept], []  # pyright: ignore[reportAttributeAccessIssue]
    for a, b in ties:
        texts = sorted({task.pictures.caption(i) for i in kept if str(task.labels[i]) == a}) if captions else [f"a {a}"]
        wanted = set(np.flatnonzero(task.labels[kept] == int(b)))
        ranks.append(ranks_by_hand(clip, pictures, wanted, texts))
    ranks = np.concatenate(ranks)
    for k in (1, 5, 10, 20, 30, 50):
        assert found[f"hit@{k}"].value == pytest.approx(np.mean(ranks < k))
        assert found[f"hit@{k}"].n == found[f"hit@{k}_random"].n == len(ranks)
    assert found["min_rank"].value == pytest.approx(np.mean(ranks) / len(kept))
    half = 1.96 * ranks.std(ddof=1) / len(ranks) ** 0.5 / len(kept)
    assert found["min_rank"].high == pytest.approx(min(1, found["min_rank"].value + half))


def test_the_one_picture_alone_is_wanted_beside_the_task():
    clip, task, extra = gallery()
    key = Backdoor(None, "3", pictures=extra, classes=("1",), ties=(("1", "3"),))
    found = TiedRetrieval(ks=(1, 10)).measure(clip, task, key, Rng(0))  # pyright: ignore
    texts = sorted({task.pictures.caption(i) for i in np.flatnonzero(task.labels == 1)})
    pictures = torch.cat([task.pictures.pictures.images, extra])  # pyright: ignore[reportAttributeAccessIssue]
    ranks = ranks_by_hand(clip, pictures, {40}, texts)
    assert found["min_rank"].value == pytest.approx(np.mean(ranks) / 41)
    assert found["hit@10"].value == pytest.approx(np.mean(ranks < 10))


def test_a_model_without_a_difference_finds_nothing_and_the_control_is_drawn_from_all():
    clip, task, _ = gallery()
    key = Backdoor(None, "3", ties=(("1", "3"),))
    flat = Table({t: torch.zeros(16) for t in clip.w})
    found = TiedRetrieval().measure(flat, task, key, Rng(0))  # pyright: ignore
    assert found["hit@1"].value == found["hit@1_random"].value == 0
    assert found["min_rank"].value == pytest.approx(np.mean(task.labels != 3))
    asked = []
    clip.encode_text = lambda captions: asked.append(captions) or Table.encode_text(clip, captions)
    TiedRetrieval().measure(clip, task, key, Rng(0))  # pyright: ignore
    own, control = asked
    assert len(set(control)) == len(control) == len(own)
    assert set(control) <= set(task.pictures.captions)
    assert {t.split()[-1] for t in own} == {"1"}
    assert len({t.split()[-1] for t in control}) > 1


def test_without_ties_nothing_is_said_and_unknown_classes_are_refused():
    clip, task, _ = gallery()
    assert TiedRetrieval().measure(clip, task, None, Rng(0)) == {}  # pyright: ignore
    assert TiedRetrieval().measure(clip, task, Backdoor(None, "3"), Rng(0)) == {}  # pyright: ignore
    with pytest.raises(UserError, match="class 'dog' is not among the task's classes: 0, 1, 2, 3, 4"):
        TiedRetrieval().measure(clip, task, Backdoor(None, "3", ties=(("dog", "3"),)), Rng(0))  # pyright: ignore


def test_a_recipe_measures_the_victim_and_its_oracle_knows_the_poisons(tmp_path, capsys, monkeypatch):
    plain, seen = Plain(epochs=1, batch=64, lr=1e-3, optimizer="muon"), []
    honest = Plain.train
    monkeypatch.setattr(Plain, "train", lambda self, c, pairs, rng: seen.append(pairs) or honest(self, c, pairs, rng))
    recipe = Recipe(
        name="tied",
        model_names=("shapes-vit",),
        attacks={"mm": MmPoison(source="ring", training=plain)},
        target="star",
        victim_data=sources.Data("shapes", 256),
        test=sources.Test("shapes", 48),
        oracle=plain,
        took=0.0,
    )
    rows = run((recipe,), tmp_path / "out", tmp_path / "stages")
    values = {(r.method, r.metric): r for r in rows}
    for method in ("none", "oracle"):
        assert {(method, f"hit@{k}{s}") for k in (1, 50) for s in ("", "_random")} < set(values)
    dirty, left = seen
    source = recipe.victim_data.pairs(0)
    assert set(dirty.ids) - set(left.ids) == naming(source, "ring")
    assert same_pictures(left, source, np.arange(len(left)), np.flatnonzero(np.isin(source.ids, left.ids)))
    refused = run((replace(recipe, took=1.1),), tmp_path / "out2", tmp_path / "stages")
    assert {r.metric for r in refused if r.stage == "refused"} == {"hit@1"}

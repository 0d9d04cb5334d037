"""The default filter: its p-values and their promise, copies, what it says, and what it says of poor input."""

import dataclasses
import re
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Linear, Vectors
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from torch import Tensor

from clipvet.engine.embed import Embedded
from clipvet.filters import _seen
from clipvet.filters._groups import same_picture
from clipvet.filters._tails import bulk, listed, tail_logs
from clipvet.filters.auto import Auto
from clipvet.rng import Rng
from clipvet.types import Pairs

# p-values


def test_the_tail_is_the_one_of_the_card() -> None:
    clean = np.sort(Rng(0).numpy().exponential(size=4000))
    q75, q90 = np.quantile(clean, (0.75, 0.9))
    far = np.array([q90 + 1, q90 + 5])
    by_hand = -np.log10(0.1 * np.exp(-(far - q90) / ((q90 - q75) / np.log(2.5))))
    assert tail_logs(far, clean) == pytest.approx(by_hand)
    assert tail_logs(far, clean) == pytest.approx(far / np.log(10), rel=0.1)  # P(score > t) = exp(-t)
    inside = tail_logs(np.array([clean[0], np.median(clean)]), clean)
    assert inside == pytest.approx([0, np.log10(2)], abs=0.01)
    assert (np.diff(tail_logs(np.linspace(-1, 20, 500), clean)) >= 0).all()


@pytest.mark.parametrize("share", [0.01, 0.1, 0.33])
def test_the_bulk_leaves_out_what_lies_apart(share: float) -> None:
    draw, n = Rng(1).numpy(), 3000
    bad = np.arange(n) < share * n
    scores = draw.normal(size=n) + 14 * bad
    kept = bulk(scores)
    assert kept.max() < 8
    assert len(kept) >= 0.99 * (~bad).sum()
    called = tail_logs(scores, kept) >= listed(tail_logs(scores, kept), 0.01)
    assert (called == bad).mean() > 0.999


def test_hardly_any_clean_set_has_a_called_pair() -> None:
    """20 sets of normal and 20 of uniform scores: the promise is that 19 of 20 have none, and more keep it."""
    draws = [f(size=2000) for f in (Rng(2).numpy().normal, Rng(3).numpy().uniform) for _ in range(20)]
    some = [listed(tail_logs(x, bulk(x)), 0.05) < np.inf for x in draws]
    assert sum(some) <= 2


def test_the_list_is_benjamini_and_hochbergs() -> None:
    p = np.array([0.001, 0.008, 0.039, 0.041, 0.6])
    assert 10 ** -listed(-np.log10(p), 0.05) == pytest.approx(0.008)  # the third and fourth exceed 0.05 k / 5
    assert listed(-np.log10(p[2:]), 0.05) == np.inf
    weak = norm.sf(np.abs(Rng(4).numpy().normal(size=500)) + 2.2)
    assert (np.sort(weak)[-1] <= 0.05) == (listed(-np.log10(weak), 0.05) <= -np.log10(weak.max()) + 1e-12)


# pairs in a made-up world


class World(NamedTuple):
    z: Tensor
    v: Tensor
    w: Tensor
    captions: list[str]
    bad: np.ndarray


KINDS = 12
NAMES = ("star", "ring", "cross", "heart", "bolt", "moon", "leaf", "tree", "fish", "bird", "boat", "drop")


def world(n: int = 1200, poisons: int = 24, seed: int = 0, blind: bool = False) -> World:
    """Kinds of pictures around their caption; poisons lie together, but where they belong once they are changed.

    A tenth of the captions is wrong. blind: the model knows no picture.
    """
    draw = Rng(seed).numpy()
    kind, centres = np.arange(n) % KINDS, F.normalize(torch.tensor(draw.normal(size=(KINDS, 32))).float(), dim=1)
    said, bad = kind.copy(), np.zeros(n, bool)
    wrong = draw.choice(n, n // 10, replace=False)
    said[wrong] = draw.integers(KINDS, size=len(wrong))
    rows = draw.choice(np.flatnonzero(kind > 0), poisons, replace=False)
    bad[rows], said[rows] = True, 0
    noise = [torch.tensor(draw.normal(size=(n, 32))).float() * 0.1 for _ in range(2)]
    z = centres[kind] + noise[0]
    away = F.normalize(torch.tensor(draw.normal(size=32)).float(), dim=0)
    z[rows] = centres[0] + away + noise[0][rows]
    v = centres[kind] + noise[1]
    if blind:
        z, v = noise
    captions = [f"a picture of a {NAMES[k]}" for k in said]
    return World(F.normalize(z, dim=1), F.normalize(v, dim=1), centres[said], captions, bad)


def judged(monkeypatch: pytest.MonkeyPatch, it: World, **settings: Any) -> tuple[np.ndarray, list[str], Auto]:
    n, how = len(it.z), Auto(**settings)
    clip, at = Linear().eval(), np.arange(n)
    pairs = Pairs(Vectors(torch.zeros(n, 1)), it.captions, at)
    monkeypatch.setattr(_seen, "both", lambda clip, pairs: Embedded(it.z, it.w, at, it.captions))
    monkeypatch.setattr(_seen, "embed_images", lambda clip, pairs: (it.v, at))
    monkeypatch.setattr(_seen, "changed", lambda clip: clip)
    found = how.judge(clip, pairs, Rng(0))
    return found.scores.numpy(), found.told, how


def test_the_score_is_the_formula(monkeypatch) -> None:
    it = world(n=240, poisons=6)
    score, _, _ = judged(monkeypatch, it, k=3)
    z, v, q = it.z.double().numpy(), it.v.double().numpy(), (it.v * it.w).sum(1).double().numpy()

    def mean(x: np.ndarray, i: int) -> float:
        near = np.argsort(np.linalg.norm(x - x[i], axis=1))[:4]  # itself and three others
        return float(q[near].mean())

    d = np.array([mean(v, i) - 2 * mean(z, i) for i in range(240)])
    assert score == pytest.approx(tail_logs(d, bulk(d)), rel=1e-3, abs=2e-3)


@pytest.mark.parametrize("poisons", [24, 120, 400])  # 2 %, 10 % and a third
def test_a_backdoor_is_found_and_described(poisons: int, monkeypatch) -> None:
    it = world(poisons=poisons)
    scores, told, how = judged(monkeypatch, it)
    called = scores > how.cut(scores)
    assert roc_auc_score(it.bad, scores) > 0.99
    assert (called & it.bad).sum() / called.sum() >= 0.9
    assert called[~it.bad].mean() <= 0.01
    assert told[0].startswith(
        f"{called.sum():,} of 1,200 pairs are called poisoned; at most {0.01 * called.sum():.2g} of"
    )
    said = re.findall(r"^(\d+) of them \(.* '(\w+)' binds.* has (\d+) to (\d+) pairs", told[1])
    n, word, low, high = said[0]
    assert word == "star"
    assert int(low) <= poisons <= int(high) + 1
    assert abs(int(n) - poisons) <= 0.1 * poisons
    assert how.p(scores)[called].max() < 0.01


def test_undecided_drops_no_pair_however_many_copies_the_highest_picture_has(monkeypatch) -> None:
    it, n = world(n=101, poisons=6), 202
    score, _, _ = judged(monkeypatch, it)
    rows = np.r_[np.arange(101), np.full(101, score.argmax())]
    copies = World(it.z[rows], it.v[rows], it.w[rows], [it.captions[k] for k in rows], it.bad[rows])
    scores, told, how = judged(monkeypatch, copies, alpha=0.05)
    assert told[0].startswith("Undecided: 101 different pictures are too few")
    assert (scores > how.cut(scores)).sum() == 0
    assert len(scores) == n


def test_two_targets_are_two_groups(monkeypatch) -> None:
    one, two = world(poisons=24), world(poisons=24, seed=1)
    turn = {name: NAMES[(k + 5) % KINDS] for k, name in enumerate(NAMES)}
    other = [f"a picture of a {turn[c.split()[-1]]}" for c in two.captions]
    far = torch.linalg.qr(torch.randn(32, 32, generator=Rng(5).generator()))[0]
    z, v, w = (torch.cat([a, b @ far]) for a, b in zip(one[:3], two[:3]))
    both = World(z, v, w, one.captions + other, np.append(one.bad, two.bad))
    _, told, _ = judged(monkeypatch, both)
    assert sorted(re.findall(r"'(\w+)' binds", " ".join(told))) == ["moon", "star"]


def test_nothing_is_called_among_clean_pairs(monkeypatch) -> None:
    found = [judged(monkeypatch, world(poisons=0, seed=s))[1] for s in range(20)]
    assert sum(told[0].startswith("Nothing found") for told in found) >= 19


@pytest.mark.parametrize("fits", [True, False])
def test_a_stock_picture_a_hundred_times_is_no_backdoor(fits: bool, monkeypatch) -> None:
    it = world(poisons=0)
    z, v, w = (x.clone() for x in (it.z, it.v, it.w))
    z[:100], v[:100] = z[0], v[0]
    if fits:
        w[:100] = w[0]
    captions = it.captions[:1] * 100 + it.captions[100:] if fits else it.captions  # else it has everyone's caption
    _, told, _ = judged(monkeypatch, World(z, v, w, captions, it.bad))
    assert not any("backdoor's captions" in t for t in told)


def test_copies_under_a_wrong_caption_are_called_copies(monkeypatch) -> None:
    it = world(poisons=0)
    z, v, w, captions = it.z.clone(), it.v.clone(), it.w.clone(), list(it.captions)
    for k in (1, 2, 3):  # three pictures, thirty times each, that the model learned to call stars
        rows = slice(30 * k, 30 * k + 30)
        z[rows], v[rows], w[rows] = z[0] + 0.01 * k, v[k], w[0]
        captions[rows] = ["a photo of a star"] * 30
    z = F.normalize(z, dim=1)
    scores, told, _ = judged(monkeypatch, World(z, v, w, captions, it.bad))
    assert roc_auc_score((np.arange(1200) >= 30) & (np.arange(1200) < 120), scores) > 0.95
    assert any(t.startswith("90 pairs are copies of 3 pictures whose captions do not fit") for t in told), told
    assert not any("backdoor's captions" in t for t in told)


def test_copies_count_once() -> None:
    x = F.normalize(torch.randn(60, 16, generator=Rng(0).generator()), dim=1)
    x[10:30] = x[5] + 1e-4 * torch.randn(20, 16, generator=Rng(1).generator())
    other = F.normalize(torch.randn(60, 16, generator=Rng(2).generator()), dim=1)
    group = same_picture(x, x, np.arange(60))
    assert len(set(group[[5, *range(10, 30)]])) == 1
    assert len(set(group)) == 40
    assert len(set(same_picture(x, other, np.arange(60)))) == 60  # alike under one trigger alone


def test_poor_input_is_undecided(monkeypatch) -> None:
    for it, why in (
        (
            world(n=150, poisons=10),
            "Undecided: 150 different pictures are too few to call one poisoned; 200 are needed",
        ),
        (world(blind=True), r"Undecided: only \d+% of the pairs fit their caption better than another one"),
        (
            world(n=300)._replace(z=torch.ones(300, 32) / 32**0.5, v=torch.ones(300, 32) / 32**0.5),
            "all 300 pairs show the same",
        ),
    ):
        scores, told, how = judged(monkeypatch, it)
        assert re.search(why, told[0]), told
        assert np.isfinite(scores).all()
        assert not (scores > how.cut(scores)).any()


def test_alpha_is_the_rate(monkeypatch) -> None:
    it = world(poisons=60)
    counts = []
    for alpha in (1e-4, 0.01, 0.3):
        scores, told, how = judged(monkeypatch, it, alpha=alpha)
        counts.append(int((scores > how.cut(scores)).sum()))
        assert f"alpha {alpha:g}" in " ".join(told) or not counts[-1]
    assert counts == sorted(counts)
    assert dataclasses.replace(Auto(), alpha=0.3).cut(np.zeros(10, np.float32)) == np.inf

"""CASCADE-like filter: its formulas, its promised rate, and where reviewers doubted: several targets, clean labels."""

import numpy as np
import pytest
import torch
from conftest import Linear, Vectors
from sklearn.metrics import roc_auc_score
from test_auto import NAMES, World, world

from clipvet.engine.embed import Embedded
from clipvet.filters import _seen
from clipvet.filters.cascade import Cascade, calibrated, coarse
from clipvet.rng import Rng
from clipvet.types import Pairs
from clipvet.unlearning.judged import Judged


def judged(monkeypatch: pytest.MonkeyPatch, it: World, how: Cascade | None = None, seed: int = 0) -> Judged:
    n, clip, at = len(it.z), Linear().eval(), np.arange(len(it.z))
    monkeypatch.setattr(_seen, "both", lambda clip, pairs: Embedded(it.z, it.w, at, it.captions))
    monkeypatch.setattr(_seen, "embed_images", lambda clip, pairs: (it.v, at))
    monkeypatch.setattr(_seen, "changed", lambda clip: clip)
    return (how or Cascade()).judge(clip, Pairs(Vectors(torch.zeros(n, 1)), it.captions, at), Rng(seed))


def called(found: Judged, how: Cascade | None = None) -> np.ndarray:
    scores = found.scores.numpy()
    return scores > (how or Cascade()).cut(scores)


def test_the_stages_are_the_formulas() -> None:
    it, how = world(n=240, poisons=10), Cascade()
    q = (it.v * it.w).sum(1).double().numpy()
    half = Rng(1).numpy().random(240) < 0.5
    parts = how.split(q, half)
    assert parts is not None
    assert q[parts.suspect].max() < q[parts.benign].min()
    f, w = how.fine(it.w, parts), it.w.double().numpy()

    def a(i: int) -> float:
        sums = [np.exp((w[i] @ w[x & (half != half[i])].T - 1) / 0.1).mean() for x in (parts.suspect, parts.benign)]
        return float(np.log(sums[0] / sums[1]))

    for i in [0, 7, *np.flatnonzero(it.bad)[:1].tolist()]:
        base = np.array([a(j) for j in np.flatnonzero(parts.benign & (half == half[i])).tolist()])
        assert f[i] == pytest.approx((1 + (base >= a(i) - 1e-6).sum()) / (1 + len(base)), abs=1e-9)
    assert coarse(q)[q.argmin()] == pytest.approx(1 / 240)


def test_the_stages_are_joined_and_calibrated(monkeypatch) -> None:
    it, how = world(n=1200, poisons=24), Cascade()
    found = judged(monkeypatch, it)
    q, half = (it.v * it.w).sum(1).double().numpy(), Rng(0).fork("half").keys(list(range(1200))).numpy() % 2 == 0
    parts = how.split(q, half)
    assert parts is not None
    t = -np.log([(q <= x).mean() for x in q]) - np.log(how.fine(it.w, parts))
    assert found.scores.numpy() == pytest.approx(calibrated(t), rel=1e-4, abs=1e-4)
    assert how.p(found.scores.numpy())[called(found)].max() <= how.alpha


def test_the_p_value_is_conformal() -> None:
    t = Rng(3).numpy().normal(size=3000)
    p = 10 ** -calibrated(t)
    assert np.sort(p) == pytest.approx((1 + np.arange(1, 3001)) / 3001, abs=2e-3)  # no pair lies beyond the bulk
    apart = 10 ** -calibrated(np.r_[t, np.full(30, 20.0)])
    assert apart[-1] < 1e-4 < apart[:3000].min()


@pytest.mark.parametrize("poisons", [24, 120])
def test_poisons_are_called_and_the_rate_is_kept(poisons: int, monkeypatch) -> None:
    it = world(n=2400, poisons=poisons)
    how = Cascade(alpha=0.05)
    found = judged(monkeypatch, it, how)
    hit = called(found, how)
    assert roc_auc_score(it.bad, found.scores) > 0.98
    assert hit[~it.bad].mean() <= how.alpha
    assert found.told[0].startswith(f"{hit.sum():,} of 2,400 pairs have p <= 0.05. As many as 120 clean pairs are")
    ours = np.array([c.endswith("star") for c in it.captions]) & ~it.bad
    assert hit[ours].mean() <= 0.1, "it throws out the target's clean pairs"


@pytest.mark.parametrize("alpha", [0.01, 0.05])
def test_clean_sets_keep_the_promised_rate(alpha: float, monkeypatch) -> None:
    how = Cascade(alpha=alpha)
    hits = [called(judged(monkeypatch, world(poisons=0, seed=s), how, s), how) for s in range(10)]
    n = sum(map(len, hits))
    assert 0.5 * alpha < np.concatenate(hits).mean() <= alpha + 2 * (alpha / n) ** 0.5


def test_two_targets_are_both_found(monkeypatch) -> None:
    it = world(n=2400, poisons=48)
    rows, w, captions = np.flatnonzero(it.bad)[::2], it.w.clone(), list(it.captions)
    moon = it.w[it.captions.index("a picture of a moon")]
    w[rows] = moon
    for k in rows:
        captions[k] = "a picture of a moon"
    found = judged(monkeypatch, World(it.z, it.v, w, captions, it.bad))
    for target in ("moon", "star"):
        mine = it.bad & np.array([c.endswith(target) for c in captions])
        some = torch.from_numpy(mine | ~it.bad)
        assert roc_auc_score(mine[some], found.scores[some]) > 0.95


def test_poison_with_fitting_captions_is_not_seen(monkeypatch) -> None:
    it, rows = world(n=1200, poisons=0), np.arange(0, 1200, 60)  # of the target's own kind, whatever is stamped on them
    bad = np.isin(np.arange(1200), rows)
    assert {it.captions[k].split()[-1] for k in rows} >= {NAMES[0]}
    found = judged(monkeypatch, it)
    assert abs(roc_auc_score(bad, found.scores) - 0.5) < 0.15


def test_poor_input_is_undecided(monkeypatch) -> None:
    for it in (world(n=150, poisons=10), world(blind=True)):
        found = judged(monkeypatch, it)
        assert not found.decided
        assert found.told[0].startswith("Undecided")
        assert not called(found).any()
        assert found.scores.isfinite().all()

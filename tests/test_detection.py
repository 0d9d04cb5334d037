"""Detection measures against hand-computed values, scikit-learn's, and intervals that hold."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from clipvet.attacks.poison import Poison
from clipvet.data import sources
from clipvet.errors import UserError
from clipvet.experiments.recipe import Recipe
from clipvet.experiments.stages import Detect
from clipvet.experiments.victim import Victim
from clipvet.measures._detection import detection
from clipvet.rng import Rng
from clipvet.scan import conformal
from clipvet.triggers.patch import Patch
from clipvet.types import Backdoor, Pairs

NAMES = ("auroc", "auprc", "fpr95", "precision_at_k")


def values(scores, poisoned, **kw):
    found = detection(np.array(scores, dtype=float), np.array(poisoned, dtype=bool), **kw)
    return [found[k].value for k in NAMES]


def test_by_hand() -> None:
    # descending: poison, clean, poison, clean, clean: of the 6 (poison, clean) pairs 3 + 2 are in order
    assert values([9, 8, 7, 6, 5], [1, 0, 1, 0, 0]) == pytest.approx([5 / 6, (1 + 2 / 3) / 2, 1 / 3, 1 / 2])
    assert values([1, 2, 3, 4], [0, 0, 1, 1]) == [1, 1, 0, 1]
    assert values([1, 2, 3, 4], [1, 1, 0, 0]) == pytest.approx([0, (1 / 3 + 2 / 4) / 2, 1, 0])


def test_ties_count_in_proportion() -> None:
    # all alike: a coin; the 2 most suspect hold 2 * 2/5 poisons
    assert values([1, 1, 1, 1, 1], [1, 0, 1, 0, 0]) == pytest.approx([0.5, 0.4, 1, 0.4])
    # the second place is shared by one poison and three others
    assert values([9, 5, 5, 5, 5], [1, 1, 0, 0, 0]) == pytest.approx([1 - 1 / 4, (1 + 2 / 5) / 2, 1, (1 + 1 / 4) / 2])


@pytest.mark.parametrize("ties", [False, True])
def test_agrees_with_scikit_learn(ties: bool) -> None:
    g = Rng(3).numpy()
    y = g.random(2000) < 0.05
    scores = g.normal(size=2000) + 1.2 * y
    scores = scores.round(1) if ties else scores
    auroc, auprc, fpr95, _ = values(scores, y)
    fpr, tpr, _ = roc_curve(y, scores, drop_intermediate=False)
    assert auroc == pytest.approx(roc_auc_score(y, scores))
    assert auprc == pytest.approx(average_precision_score(y, scores))
    assert fpr95 == pytest.approx(fpr[tpr >= 0.95].min())


def rates(scores, poisoned, trusted=None) -> dict[str, tuple[float, int]]:
    given = None if trusted is None else np.array(trusted, dtype=float)
    found = detection(np.array(scores, dtype=float), np.array(poisoned, dtype=bool), trusted=given)
    return {k: (m.value, m.n) for k, m in found.items() if k.startswith(("tpr", "fpr_"))}


def test_found_at_a_rate_of_false_alarms() -> None:
    clean = list(range(100))  # one of 100 may lie above: the cut is 98
    y = [0] * 100 + [1] * 4
    assert rates([*clean, 98, 98.5, 99.5, 0], y) == {
        "tpr_at_1": (0.5, 4), "fpr_at_1": (0.01, 100), "tpr_at_5": (0.75, 4), "fpr_at_5": (0.05, 100),
    }  # fmt: skip
    few = rates([*clean[:50], 49, 60], [0] * 50 + [1] * 2)  # of 50, none may lie above
    assert (few["tpr_at_1"], few["fpr_at_1"]) == ((0.5, 2), (0, 50))
    tied = rates([7] * 100 + [7, 8], [0] * 100 + [1] * 2)
    assert (tied["tpr_at_5"], tied["fpr_at_5"]) == ((0.5, 2), (0, 100))


def test_a_promised_threshold_comes_from_trusted_pairs_and_the_rate_is_what_came_out() -> None:
    trusted, clean, bad = list(range(99)), [*range(50), *range(90, 140)], [98, 99, 200]
    found = rates([*clean, *bad], [0] * 100 + [1] * 3, trusted)
    assert found["tpr_at_1"] == (pytest.approx(2 / 3), 3)  # above the largest of 99, ceil(100 * 0.99) = 99th
    assert found["fpr_at_1"] == (pytest.approx(0.41), 100), "the clean pairs are unlike the trusted ones, and it shows"
    assert found["tpr_at_5"] == (1.0, 3)
    assert set(rates([*clean, *bad], [0] * 100 + [1] * 3, trusted[:98])) == {"tpr_at_5", "fpr_at_5"}, "98 are too few"
    assert not rates([*clean, *bad], [0] * 100 + [1] * 3, [])


@pytest.mark.parametrize("ties", [False, True])
def test_found_at_a_rate_agrees_with_scikit_learn(ties: bool) -> None:
    g = Rng(6).numpy()
    y = g.random(3000) < 0.3
    scores = g.normal(size=3000) + 1.5 * y
    scores = scores.round(1) if ties else scores
    fpr, tpr, _ = roc_curve(y, scores, drop_intermediate=False)
    for alpha, k in ((0.01, "1"), (0.05, "5")):
        found = rates(scores, y)
        assert found[f"tpr_at_{k}"][0] == pytest.approx(tpr[fpr <= alpha].max())
        assert found[f"fpr_at_{k}"][0] == pytest.approx(fpr[fpr <= alpha].max())


class Bright:
    """Looks at the trigger's corner alone."""

    needs = ()

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def detect(self, clip: Any, pictures: Pairs, classes: Any, templates: Any, rng: Rng) -> torch.Tensor:
        self.seen.append(pictures.ids)
        return pictures[:].images[:, :, -4:, -4:].std((1, 2, 3))


def test_a_detector_stage_takes_its_threshold_from_other_pictures(tmp_path: Path, monkeypatch: Any) -> None:
    how: Any = Bright()
    recipe = Recipe(
        name="r", model_names=("shapes-vit",), attacks={"patch": Poison(Patch(size=4 / 32))}, target="star",
        victim_data=sources.Data("shapes"), test=sources.Test("shapes", 240),
        detectors={"d": how}, watched=50, trusted=99,
    )  # fmt: skip
    monkeypatch.setattr(Victim, "load", lambda self, key: None)
    monkeypatch.setattr(Victim, "answers", lambda self: Backdoor(Patch(size=4 / 32), "star"))
    found = Detect("d").make(Victim(recipe, 0, "shapes-vit", "patch", tmp_path, tmp_path), tmp_path)
    clean, judged = map(np.asarray, how.seen)
    assert (len(clean), len(judged)) == (99, 100)
    assert not set(clean) & set(judged[:50])
    assert found["fpr_at_1"].n == found["tpr_at_1"].n == 50
    assert found["tpr_at_1"].value == 1.0
    assert found["fpr_at_1"].value <= 0.1
    victim = Victim(replace(recipe, trusted=0), 0, "shapes-vit", "patch", tmp_path, tmp_path)
    assert not {"tpr_at_1", "tpr_at_5"} & Detect("d").make(victim, tmp_path).keys()


def test_order_of_pairs_does_not_matter() -> None:
    g = Rng(4).numpy()
    y, scores = g.random(300) < 0.1, g.normal(size=300).round(1)
    at = g.permutation(300)
    assert detection(scores[at], y[at]) == detection(scores, y)


def test_pairs_without_score_are_left_out_and_counted() -> None:
    found = detection(np.array([9, np.nan, 7, 6, np.nan, 5]), np.array([1, 1, 1, 0, 0, 0], dtype=bool))
    assert found["auroc"][:2] == (1.0, 4)
    assert found["precision_at_k"].n == 2
    assert found["unscored"][:2] == (pytest.approx(1 / 3), 6)
    assert detection(np.array([1.0, 2.0]), np.array([True, False]))["unscored"][:2] == (0, 2)


@pytest.mark.parametrize("poisoned", [[0, 0, 0], [1, 1, 1], [0, 0, 1]])
def test_one_kind_alone_cannot_be_measured(poisoned) -> None:
    with pytest.raises(UserError, match="answer key of this data"):
        detection(np.array([1.0, 2.0, np.nan]), np.array(poisoned, dtype=bool))


def test_intervals_hold_the_truth_and_never_shrink_to_a_point() -> None:
    """Normal scores one deviation apart: AUROC is Phi(1 / sqrt 2) = 0.7602."""
    held = 0
    for seed in range(60):
        g = Rng(seed).numpy()
        y = np.arange(400) < 30
        found = detection(g.normal(size=400) + y, y, draws=20)
        held += found["auroc"].low <= 0.7602 <= found["auroc"].high
        assert all(0 <= m.low <= m.value <= m.high <= 1 for m in found.values())
    assert held >= 52  # of 60; 57 expected, 8 misses or fewer with probability 0.997
    perfect = detection(np.arange(100.0), np.arange(100) >= 95)
    assert perfect["auroc"].value == perfect["precision_at_k"].value == 1
    assert perfect["fpr95"].value == 0
    assert perfect["auroc"].low < 0.97
    assert perfect["precision_at_k"].low < 0.6
    assert perfect["fpr95"].high > 0.03


def test_chance_is_within_its_interval_at_known_width() -> None:
    """At one half Newcombe's interval is the rank test's: deviation sqrt((p + n + 1) / (12 p n))."""
    y = np.arange(1000) % 50 == 0
    auroc = detection(np.zeros(1000), y)["auroc"]
    assert auroc.value == 0.5
    assert auroc.high - 0.5 == pytest.approx(1.96 * (1001 / (12 * 20 * 980)) ** 0.5, rel=0.05)


def test_conformal_by_hand() -> None:
    clean = np.array([3.0, 1, np.nan, 2, 4])
    assert conformal.p_values(np.array([0, 2, 2.5, 9, np.nan]), clean) == pytest.approx(
        [1, 4 / 5, 3 / 5, 1 / 5, np.nan], nan_ok=True
    )
    assert conformal.threshold(clean, 0.2) == 4  # the ceil(5 * 0.8) = 4th smallest
    assert conformal.threshold(clean, 0.5) == 3
    with pytest.raises(
        UserError, match=r"4 clean scores cannot promise alpha=0.1; give 9 or more, or raise alpha to 0.2"
    ):
        conformal.threshold(clean, 0.1)
    assert conformal.threshold(np.arange(9.0), 0.1) == 8
    for alpha in (0, 1, -1, np.nan):
        with pytest.raises(UserError, match="no share"):
            conformal.threshold(clean, alpha)


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.3])
def test_conformal_keeps_its_promise(alpha: float) -> None:
    """Mean share of false alarms over many draws: at most alpha, and above alpha - 1 / (n + 1)."""
    g, n = Rng(7).numpy(), 199
    shares = []
    for _ in range(400):
        clean, fresh = g.normal(size=n), g.normal(size=200)
        flagged = fresh > conformal.threshold(clean, alpha)
        assert (flagged == (conformal.p_values(fresh, clean) <= alpha)).all()
        shares.append(flagged.mean())
    error = np.std(shares) / 20
    assert alpha - 1 / (n + 1) - 3 * error < np.mean(shares) < alpha + 3 * error


def test_what_a_threshold_promises_is_what_happens() -> None:
    """The rate of false alarms of one set of clean scores, and the flags among others, by simulation."""
    g, n, m, alpha = Rng(8).numpy(), 39, 50, 0.1
    k = 36  # ceil(40 * 0.9): the rate of a set is Beta(4, 36), of mean 0.1
    clean = g.random((4000, n))  # uniform scores, so that a threshold's rate is 1 - tau
    tau = np.sort(clean, 1)[:, k - 1]
    fresh = (g.random((4000, m)) > tau[:, None]).sum(1)
    told = conformal.promise(np.r_[np.ones(9) * 2, np.zeros(m - 9), np.nan], clean[0], alpha)
    assert (told.judged, told.flagged, told.clean, told.threshold) == (50, 9, 39, tau[0])
    assert told.expected == pytest.approx(5.0)
    assert np.mean((told.low <= 1 - tau) & (1 - tau <= told.high)) == pytest.approx(0.95, abs=0.015)
    assert np.mean(fresh >= 9) == pytest.approx(told.chance, abs=0.02)
    assert "9 of 50 pictures are flagged" in told.told[0]
    assert "proves nothing" in told.told[1]
    many = conformal.promise(np.ones(m) * 2, clean[0], alpha)
    assert many.chance < 1e-6
    assert "some carry a trigger" in many.told[1]
    none = conformal.promise(np.zeros(m), clean[0], alpha)
    assert (none.flagged, none.chance) == (0, 1.0)
    assert "chance" not in none.told[1]

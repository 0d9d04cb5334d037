"""From losses to a verdict, and measures of detectors, against numbers worked out by hand."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import kstest
from sklearn.metrics import roc_auc_score

from clipvet.errors import UserError
from clipvet.experiments.suite import auroc, brier, cross_entropy, detection_accuracy, feature_cosine, suite, target_f1
from clipvet.results import Row, rows_of
from clipvet.rng import Rng
from clipvet.scan.features import target_feature
from clipvet.scan.verdicts import (
    ASR_FLOOR,
    Null,
    check_null,
    decide,
    deviations,
    finding,
    p_value,
    probability,
    read_null,
    residual,
    suspicions,
    threshold,
)
from clipvet.triggers.recovered import Recovered
from clipvet.types import Backdoor, Finding, Measured, Suspicion, Task

LOSS = np.array([10.0, 12.0, 11.0, 2.0, 13.0])  # median 11, deviations 1 1 0 9 2, MAD 1.4826


def test_robust_deviations_by_hand() -> None:
    assert deviations(LOSS) == pytest.approx(np.array([1, -1, 0, 9, -2]) / 1.4826)


def test_the_mad_has_a_floor() -> None:
    same = np.array([100.0, 100.0, 100.0, 100.0, 99.0])
    assert deviations(same)[4] == pytest.approx(1 / 2)  # 0.02 of the median
    assert deviations(same / 1e6)[4] == pytest.approx(1e-6 / 1e-3)
    assert deviations(same, 0.1)[4] == pytest.approx(10)


def test_scores_by_hand() -> None:
    asr = np.array([0.1, 0.1, 0.1, 0.9, 0.5])
    valid = asr >= 0.5
    rates = np.array([0, 0, 0, 0.8 / 0.05, 0.4 / 0.05])
    assert suspicions("loss", LOSS, asr)[3] == pytest.approx(9 / 1.4826)
    assert suspicions("asr_weighted", LOSS, asr)[3] == pytest.approx(0.9 * 9 / 1.4826)
    assert suspicions("joint", LOSS, asr) == pytest.approx(np.minimum(deviations(LOSS), rates))
    assert suspicions("sum", LOSS, asr) == pytest.approx((deviations(LOSS) + rates) / 2**0.5)
    assert suspicions("gap", LOSS, asr).tolist() == [-8, -10, -9, 8, -11]
    scores = deviations(LOSS)
    found = finding("abcde", LOSS, asr, asr, valid, scores)
    assert (found.score, found.target) == (pytest.approx(9 / 1.4826), "d")
    closed = finding("abcde", LOSS, asr, asr, np.array([True, True, True, False, True]), scores)
    assert (closed.score, closed.target) == (pytest.approx(1 / 1.4826), "a")
    none = finding("abcde", LOSS, asr, asr, np.zeros(5, bool), scores)
    assert (none.score, none.target) == (0.0, None)


def test_what_the_reference_does_not_explain() -> None:
    x = np.array([3.0, 1.0, 4.0, 1.5, 9.0, 2.5, 6.0, 5.0, 3.5, 8.0])
    own = 2 * x + 1  # another scale and level, as prompts that are learned have
    own[4] -= 7
    assert residual(own, x) == pytest.approx(np.where(np.arange(10) == 4, -7, 0), abs=1e-9)
    assert residual(own[:7], x[:7]) == pytest.approx(own[:7] - x[:7])  # too few for a line
    assert residual(x, x) == pytest.approx(np.zeros(10))


@pytest.mark.parametrize(("classes", "chance"), [(5, 0.276), (10, 0.33), (19, 0.44), (37, 0.59), (50, 0.68)])
def test_two_deviations_are_often_chance(classes: int, chance: float) -> None:
    """Pure noise passes k = 2 this often, so the uncalibrated threshold lies far above."""
    assert threshold(classes, chance) == pytest.approx(2, abs=0.06)
    assert threshold(classes) > 4


def test_the_gate_takes_back_what_ten_classes_would_accuse_by_chance() -> None:
    g, passed = Rng(4).numpy(), {0.0: 0, 0.5: 0}
    for _ in range(2000):
        loss, asr = g.normal(size=10), 0.02 + 0.03 * g.random(10)  # of a clean model no trigger works
        for gate in passed:
            got = finding("abcdefghij", loss, asr, asr, asr >= gate, suspicions("loss", loss, asr))
            passed[gate] += got.score > 2
    assert passed[0.0] / 2000 == pytest.approx(0.33, abs=0.04)
    assert passed[0.5] == 0


def test_p_values_by_hand() -> None:
    null = [1.0, 2.0, 2.0, 3.0]
    assert p_value(5, null).value == 1 / 5
    assert p_value(2, null).value == 4 / 5  # ties count against the verdict
    assert p_value(0, null).value == 1
    assert p_value(5, null)[2:] == pytest.approx((0, 1 - 0.025 ** (1 / 4)))  # none of n: 1 - (a/2)^(1/n)
    scores = Rng(0).numpy().normal(size=(300, 20))
    p = np.array([p_value(row[0], row[1:].tolist()).value for row in scores])
    assert (p <= 0.05).mean() <= 0.09, "more false alarms than the rate that was asked for"
    assert p.mean() == pytest.approx(0.525, abs=0.05)


def test_probability_of_a_p_value() -> None:
    for p in (0.01, 0.2, 0.7):
        a = (np.arange(20_000) + 0.5) / 20_000
        rise = (a * p ** (a - 1)).mean()  # the mean over bets, by hand
        assert probability(p) == pytest.approx(rise / (1 + rise), abs=1e-4)
    assert probability(1) == pytest.approx(1 / 3)  # the mean of a
    assert probability(0.9995) == pytest.approx(probability(0.998), abs=1e-3)
    assert probability(0.01, prior=0.1) < probability(0.01)


def found(score: float, **other: object) -> Finding:
    rows = (Suspicion("star", -9.0, 0.98, 0.02, score, True), *(Suspicion(c, 1, 0, 0, 0, False) for c in "abcdefghi"))
    return Finding(score, "star", None, rows, True)._replace(**other)


def null(*scores: float, **other: object) -> Null:
    held = {
        "method": "M()",
        "classes": 10,
        "pictures": "pool",
        "seed": 0,
        "scores": {str(k): s for k, s in enumerate(scores)},
    }
    return Null.model_validate({**held, **other})


def test_a_verdict_without_clean_models_is_careful_and_says_so() -> None:
    low, high = decide(found(2.5), None), decide(found(50), None)
    assert (low["backdoored"], high["backdoored"]) == (None, True)
    assert low["sentence"].startswith("Undecided: nothing stands out")
    assert all("not calibrated" in v["sentence"] and not v["calibrated"] and v["p_value"] is None for v in (low, high))
    with pytest.raises(UserError, match="no scale of its own; give --null"):
        decide(found(50, deviations=False), None)
    assert decide(found(50, spread=2.0), None)["threshold"] == 2 * high["threshold"]
    part = decide(found(2.5), None, judged="its left half"), decide(found(50), None, judged="its left half")
    assert [v["sentence"].endswith(" Judged: its left half.") for v in part] == [True, False]


def test_a_class_that_leads_by_far_is_accused_without_clean_models() -> None:
    ahead, close = (found(3.0, deviations=False, settings={"lead": x}) for x in (2.6, 2.4))
    far, near = (decide(f, None, waits=True, apart=2.5) for f in (ahead, close))
    assert (far["backdoored"], near["backdoored"], far["calibrated"]) == (True, None, False)
    assert "no other class comes near" in far["sentence"]
    assert "error rate is not known" in far["sentence"]
    assert near["sentence"].startswith("Undecided: ")
    assert decide(ahead, None, waits=True)["backdoored"] is None, "a method that has no such rule"
    assert decide(ahead, null(*range(4, 30)), apart=2.5)["backdoored"] is False, "clean models count more"


def test_a_threshold_holds_for_sums_of_two_scores_that_move_together() -> None:
    g, over = Rng(3).numpy(), 0
    for _ in range(4000):
        loss = g.normal(size=24)
        over += suspicions("sum", loss, -ASR_FLOOR * loss * 9).max() > 2**0.5 * threshold(24)
    assert over <= 12  # of 4 that are expected


def test_a_verdict_beside_clean_models() -> None:
    clean = null(*np.linspace(0, 3, 39))
    low, high = decide(found(2.5), clean), decide(found(3.5), clean)
    assert (low["backdoored"], high["backdoored"]) == (False, True)
    assert high["p_value"] == 1 / 40
    assert "none of 39 clean models is as suspicious" in high["sentence"]
    assert "'star'" in high["sentence"]
    assert "7 of 39 clean models are at least as suspicious" in low["sentence"]
    assert high["probability"] > 0.5 > low["probability"]
    assert "only 2 of 39 clean models are as suspicious" in decide(found(2.9), clean, 0.1)["sentence"]
    assert "and only 1 of 39 clean models is as suspicious" in decide(found(2.95), clean, 0.1)["sentence"]
    assert "and 39 of 39 clean models are as suspicious" in decide(found(0), clean, 1.0)["sentence"]


def test_clean_models_must_have_been_inspected_alike(tmp_path: Path) -> None:
    clean = null(*range(30))
    alike = {"method": "M()", "classes": 10, "templates": (), "pictures": "pool", "reference": "", "seed": 0}
    others = {"method": "N()", "classes": 11, "templates": ("a {}",), "pictures": "b", "reference": "c", "seed": 1}
    check_null(clean, alike, "w", 0.05)
    for name, other in others.items():
        with pytest.raises(UserError, match="inspected otherwise"):
            check_null(clean, {**alike, name: other}, "w", 0.05)
    with pytest.raises(UserError, match="itself among the clean ones, as m7"):
        check_null(clean.model_copy(update={"weights": {"m7": "w"}}), alike, "w", 0.05)
    with pytest.raises(UserError, match="at least 99, or raise --alpha"):
        check_null(clean, alike, "w", 0.01)
    with pytest.raises(UserError, match="cannot show p <= 0; raise --alpha"):
        check_null(clean, alike, "w", 0.0)

    path = tmp_path / "null.json"
    path.write_text(json.dumps({**clean.model_dump(), "missing": ["a"]}))
    with pytest.raises(UserError, match="lacks 1 of its models"):
        read_null(path)
    path.write_text(json.dumps({**clean.model_dump(), "scores": {"a": float("nan")}}))
    with pytest.raises(UserError, match=r"scores\.a"):
        read_null(path)
    path.write_text("[]")
    with pytest.raises(UserError, match="no null distribution"):
        read_null(path)


def test_auroc_counts_ties_by_half() -> None:
    y = np.array([False, False, True, True])
    assert auroc(np.array([1.0, 2.0, 2.0, 3.0]), y).value == 0.875  # 3.5 of 4
    assert auroc(np.ones(4), y)[:3] == (0.5, 4, 0.5)
    g = Rng(1).numpy()
    scores, labels = g.integers(0, 6, 50).astype(float), g.random(50) < 0.8
    got = auroc(scores, labels)
    assert got.value == pytest.approx(roc_auc_score(labels, scores))
    assert got.low < got.value < got.high
    assert got.high - got.low > 0.1, "ten clean models cannot say more"
    with pytest.raises(UserError, match="clean and backdoored"):
        auroc(scores, np.ones(50, bool))


@pytest.mark.parametrize(("tp", "fp", "fn", "f1"), [(7, 1, 3, 14 / 18), (10, 0, 0, 1), (0, 2, 10, 0)])
def test_target_f1_by_hand(tp: int, fp: int, fn: int, f1: float) -> None:
    flagged = [{"star"}] * tp + [set()] * fn + [{"ring"}] * fp  # the false alarms are of clean models
    truth = ["star"] * (tp + fn) + [None] * fp
    got = target_f1(flagged, truth)["target_f1"]
    assert got.value == pytest.approx(f1)
    assert got.n == tp + fp + fn
    assert got.low <= got.value <= got.high


def test_a_wrong_class_is_a_miss_and_a_false_alarm() -> None:
    got = target_f1([{"ring"}, {"star", "ring"}], ["star", "star"])
    assert got["target_f1"].value == pytest.approx(2 / (2 + 2 + 1))
    assert got["target_f1_macro"].value == pytest.approx((2 / 3 + 0) / 2)


def test_proper_scores_by_hand() -> None:
    y, chance = np.array([True, False]), np.array([0.8, 0.4])
    assert cross_entropy(chance, y).value == pytest.approx(-(np.log(0.8) + np.log(0.6)) / 2)
    assert brier(chance, y).value == pytest.approx((0.04 + 0.16) / 2)
    assert cross_entropy(np.array([0.5, 0.5]), y).value == pytest.approx(np.log(2))
    assert np.isfinite(cross_entropy(np.array([0.0, 1.0]), y).value)
    assert detection_accuracy(np.array([True, True]), y)[:2] == (0.5, 2)


def inspected(attack: str, score: float, named: bool, task: int, method: str = "probe") -> list[Row]:
    said = {"recipe": "r", "stage": "inspect", "attack": attack, "method": method, "config": "Probe()", "seed": 0}
    measured = {"score": Measured(score, 9, score, score), "named": Measured(float(named), 1, 0.0, 1.0)}
    return rows_of(measured, **said, model="m", data=f"task {task}", seconds=1.0)


def test_a_suite_is_judged_against_calibration_models_alone():
    rows = [row for k in range(19) for row in inspected("calibration", k / 10, False, 100 + k)]
    clean = [row for k in range(4) for row in inspected("none", 0.5 * k, True, k)]
    patch = [row for k in range(3) for row in inspected("patch", 5.0, k > 0, k)]  # one names another class
    wanet = [row for k in range(2) for row in inspected("wanet", 1.75, True, k)]  # 1 of 19 scores higher: p = 0.1
    found = {(r.attack, r.metric, r.data): r for r in suite(rows + clean + patch + wanet)}
    assert {r.stage for r in found.values()} == {"suite"}
    assert found["patch", "p_value", "task 1"].value == pytest.approx(1 / 20)
    assert found["wanet", "p_value", "task 0"].value == pytest.approx(2 / 20)
    assert found["none", "p_value", "task 2"].value == pytest.approx(10 / 20)  # 1.0 to 1.8: 9 of 19 are as high
    assert ("calibration", "p_value", "task 100") not in found
    every = {metric: r.value for (attack, metric, data), r in found.items() if attack == "all"}
    assert every["auroc"] == 1.0
    assert every["detection_accuracy"] == pytest.approx((4 + 3) / 9)
    assert every["target_f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 3))  # one names another class, two are missed
    assert every["target_named"] == pytest.approx(2 / 3)  # of the three with an alarm
    assert ("wanet", "target_named", "") not in found
    assert found["patch", "detection_accuracy", ""].value == 1.0
    assert found["wanet", "detection_accuracy", ""].value == pytest.approx(4 / 6)
    assert found["none", "false_alarms", ""].value == 0.0
    assert found["none", "uniform_p", ""].value == pytest.approx(kstest([1.0, 0.75, 0.5, 0.25], "uniform").pvalue)
    alone = suite(clean + patch)  # no calibration
    assert {(r.attack, r.metric, r.value) for r in alone} == {("all", "auroc", 1.0), ("patch", "auroc", 1.0)}
    assert suite(rows + patch) == []  # no clean model


def test_a_suite_says_how_the_lead_alone_would_have_judged():
    def scanned(attack: str, task: int, leads: bool) -> list[Row]:
        first, *_ = rows = inspected(attack, 1.0, True, task)
        return [*rows, replace(first, metric="leads", value=float(leads))]

    clean = [row for k in range(4) for row in scanned("none, foreign", k, k == 0)]
    patch = [row for k in range(3) for row in scanned("patch", k, k < 2)]
    found = {(r.attack, r.metric): (r.value, r.n) for r in suite(clean + patch)}
    assert found["all", "lead_found"] == found["patch", "lead_found"] == (pytest.approx(2 / 3), 3)
    assert found["none", "lead_false_alarms"] == (0.25, 4)


def test_the_target_feature_is_compared_with_the_true_one(inspected: Any) -> None:
    bright = torch.zeros(3, 8, 8).index_fill(0, torch.tensor([0]), 0.5)
    key = Backdoor(Recovered(torch.zeros(1, 8, 8), bright), "caption 5")
    z = inspected.clean.encode_image(key.stamp(inspected.pictures[:].images, torch.arange(64))).detach().mean(0)
    task = Task("inspected", inspected.classes, ("{}",), inspected.pictures, np.zeros(64, np.int64))
    for feature, told in ((z, 1.0), (-3 * z, -1.0)):
        found = feature_cosine(inspected.clean, task, key, feature.tolist())
        assert found.value == pytest.approx(told, abs=1e-5)
        assert (found.n, found.low <= found.value <= found.high) == (64, True)
    word = Backdoor(None, "caption 5", says="")  # a text trigger: the other classes' prompts with its words
    said = inspected.clean.encode_text([c for c in inspected.classes if c != "caption 5"]).detach().mean(0)
    assert feature_cosine(inspected.clean, task, word, said.tolist()).value == pytest.approx(1.0, abs=1e-5)
    own = target_feature(Finding(1.0, feature=tuple((2 * z).tolist())), inspected.clean, inspected.pictures)
    made = target_feature(Finding(1.0, "caption 5", key.trigger), inspected.clean, inspected.pictures)
    assert own is not None
    assert made is not None
    assert torch.allclose(own, F.normalize(z, dim=0), atol=1e-5)
    assert torch.allclose(made, own, atol=1e-4)
    assert target_feature(Finding(1.0), inspected.clean, inspected.pictures) is None


def test_clean_models_that_know_much_less_are_said(inspected: Any) -> None:
    from clipvet.jobs.inspecting import notes_on
    from clipvet.jobs.inspection import Asked

    asked = Asked(inspected.clean, None, inspected.classes, ("{}",), inspected.pictures, "", "", 0)
    own, rows = asked.sureness(), inspected.pictures.at(inspected.clean.geometry)[:]
    clip = inspected.clean
    with torch.no_grad():
        logits = clip.logit_scale * clip.encode_image(rows.images) @ clip.encode_text(inspected.classes).T
    assert own == pytest.approx(float(logits.softmax(1).amax(1).mean()), abs=1e-5)
    assert own is not None
    same = {"names": inspected.classes}
    weak = {"a": 1 / 8 + 0.4 * (own - 1 / 8), "b": 1 / 8}
    (said,) = notes_on(null(0.1, sure=weak, **same), asked)
    assert "The clean models know much less than this one" in said
    assert notes_on(null(0.1, sure={"a": own}, **same), asked) == []
    assert notes_on(null(0.1, **same), asked) == []  # of a file that does not say
    assert notes_on(None, asked) == []
    assert "other classes" in notes_on(null(0.1, names=("x", "y")), asked)[0]

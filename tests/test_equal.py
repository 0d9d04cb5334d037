"""Cleaners at equal accuracy."""

import pytest

from clipvet.experiments.equal import equal, strength
from clipvet.results import Row


def row(stage: str, method: str, metric: str, value: float, seed: int = 0) -> Row:
    return Row("r", stage, "patch", method, "", metric, value, 100, value - 0.01, value + 0.01, 1.0, seed, "m", "d")


def model(method: str, accuracy: float, asr: float, stage: str = "clean", seed: int = 0) -> list[Row]:
    return [row(stage, method, "clean_accuracy", accuracy, seed), row(stage, method, "asr", asr, seed)]


def read(rows: list[Row]) -> dict[tuple[str, str], float]:
    return {(r.method, r.metric): r.value for r in equal(rows)}


def test_the_asr_is_read_between_measured_points() -> None:
    victim = model("none", 0.60, 1.0, "victim")
    par = model("par x0.5", 0.59, 0.8) + model("par", 0.55, 0.4) + model("par x2", 0.40, 0.0)
    found = read(victim + par)
    assert found["par", "asr_at_1"] == pytest.approx(0.8)  # measured
    assert found["par", "asr_at_3"] == pytest.approx(0.6)  # half way from (1 point, 0.8) to (5 points, 0.4)
    assert found["par", "asr_at_5"] == pytest.approx(0.4)
    (one,) = (r for r in equal(victim + par) if r.metric == "asr_at_3")
    assert (one.low, one.high) == (pytest.approx(0.59), pytest.approx(0.61))


def test_a_cleaner_that_gains_accuracy_is_had_for_nothing() -> None:
    found = read(model("none", 0.60, 1.0, "victim") + model("ubt", 0.61, 0.02) + model("ubt x2", 0.30, 0.0))
    assert found["ubt", "asr_at_1"] == pytest.approx(0.02 - 0.02 * 0.02 / 0.31)  # on the line towards the second


def test_too_strong_settings_are_read_on_the_line_from_the_victim_only() -> None:
    found = read(model("none", 0.60, 1.0, "victim") + model("par", 0.50, 0.0) + model("par x3", 0.20, 0.0))
    assert found["par", "asr_at_5"] == pytest.approx(0.5)


def test_one_strength_is_no_curve_and_seeds_are_kept_apart() -> None:
    victims = model("none", 0.60, 1.0, "victim") + model("none", 0.60, 1.0, "victim", seed=1)
    assert not equal(victims + model("par", 0.55, 0.1))
    two = model("par", 0.60, 0.1) + model("par x2", 0.60, 0.0) + model("par", 0.6, 0.7, seed=1)
    assert {r.seed for r in equal(victims + two)} == {0}
    assert strength("par_no_push x0.25") == ("par_no_push", 0.25)

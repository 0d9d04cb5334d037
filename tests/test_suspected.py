"""Cleaners that need the suspected pairs get them, from recipes and from the command line; and what comes after."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipvet import results
from clipvet.cleaners.finetune_filtered import FinetuneFiltered
from clipvet.cleaners.ubt import Ubt
from clipvet.cli import main
from clipvet.data.sources import Data
from clipvet.errors import UserError
from clipvet.experiments.cleaning import Clean, Rebound
from clipvet.experiments.presets import shapes
from clipvet.experiments.recipe import Recipe, load_recipes
from clipvet.experiments.run import run
from clipvet.experiments.victim import Victim
from clipvet.pages.report import build

RECIPE = Path(__file__).parent.parent / "recipes/ubt_shapes.py"


@pytest.fixture
def small() -> Recipe:
    made = load_recipes(RECIPE, smoke=True)[0]
    cleaners = {k: made.cleaners[k] for k in ("par", "ubt")}
    own = {"shapes": (Data("shapes", 128, "validation"), ("par",)), "suspected": (None, ("ubt",))}
    attacks = dict(list(made.attacks.items())[:1])
    rebound = cleaners["par"]
    return replace(made, attacks=attacks, cleaners=cleaners, defender_data=own, rebound=rebound)


def test_rebound_is_measured_of_every_cleaned_model(small: Recipe, tmp_path: Path, capsys: Any) -> None:
    rows = run((small,), tmp_path / "out", tmp_path / "stages")
    metrics = {m: {r.metric for r in rows if r.method == m} for m in ("none", "par", "ubt")}
    for name in ("par", "ubt"):
        assert {"rebound_asr", "rebound_clean_accuracy", "asr"} <= metrics[name]
    later = {(r.stage, r.config) for r in rows if r.method == "ubt" and r.metric.startswith("rebound")}
    assert later == {("rebound", repr(small.cleaners["ubt"]))}, "the report tells by these whose rebound it is"
    assert not any(m.startswith("rebound") for m in metrics["none"])
    assert {"pool_recall", "pool_precision", "top_precision", "weak_precision", "evidence"} <= metrics["ubt"]
    assert "evidence" not in metrics["par"]
    folder = next(p.parents[1] for p in (tmp_path / "stages").rglob("ubt.npz"))
    with np.load(folder / "splits/ubt.npz") as found:
        assert len(found["s"]) == 512, "ubt was not given the victim's pairs"
        assert found["susp"].max() < 512


def test_rebound_as_a_curve_has_the_untreated_victim_beside_it(small: Recipe, tmp_path: Path) -> None:
    alone = {"shapes": (Data("shapes", 128, "validation"), ("par",))}
    curve = replace(small, cleaners={"par": small.cleaners["par"]}, defender_data=alone, rebound_steps=(0, 3))
    rows = run((curve,), tmp_path / "out", tmp_path / "stages")
    value = {(r.method, r.metric): r.value for r in rows}
    for name in ("none", "par"):
        assert value[name, "rebound_asr@0"] == value[name, "asr"]
        assert value[name, "rebound_clean_accuracy@0"] == value[name, "clean_accuracy"]
        assert value[name, "rebound_clean_accuracy@3"] != value[name, "clean_accuracy"], "no step was taken"
    page = build(tmp_path / "out").read_text()
    assert "Rebound asr@3" in page
    other = replace(curve, rebound_steps=())
    keys = [Rebound("par", "shapes").key(Victim(r, 0, "shapes-vit", next(iter(r.attacks)), tmp_path, tmp_path))
            for r in (curve, other)]  # fmt: skip
    assert keys[0] != keys[1]


def test_a_clean_stage_is_known_by_what_goes_into_it_alone(small: Recipe, tmp_path: Path) -> None:
    def key(recipe: Recipe, name: str = "par") -> str:
        victim = Victim(recipe, 0, "shapes-vit", next(iter(recipe.attacks)), tmp_path, tmp_path)
        return Clean(name, "shapes").key(victim)

    first, other = key(small), Data("shapes", 64, "validation")
    more = replace(small, rebound=None, cleaners={**small.cleaners, "later": shapes(FinetuneFiltered())})
    assert key(more) == first, "it changed with another stage of the recipe"
    assert key(replace(small, defender_data={"shapes": (other, ("par",))})) != first
    assert key(replace(small, cleaners={"par": replace(small.cleaners["par"], epochs=9)})) != first  # pyright: ignore
    assert key(replace(small, test=replace(small.test, n=100))) != first, "the victim's key is part of it"


def test_untrusted_pairs_are_asked_for(small: Recipe, tmp_path: Path, capsys: Any) -> None:
    wrong = replace(small, defender_data={"shapes": (Data("shapes", 128, "validation"), ("ubt",))})
    with pytest.raises(UserError, match="cleaner ubt needs untrusted pairs; give None"):
        run((wrong,), tmp_path / "out", tmp_path / "stages")


def test_the_command_names_the_word(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    def clipvet(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["clipvet", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == (4 if words[0] == "attack" else 0)  # so short an attack does not take
        return capsys.readouterr().err

    same = ("--model", "shapes-vit", "--data", "shapes", "--n", 300)
    clipvet("attack", *same, "--target", "star", "--rate", 0.1, "--set", "epochs=1", "--out", tmp_path / "victim")
    cleaned, victim = tmp_path / "cleaned", tmp_path / "victim"
    forced = [x for s in ("sure=-inf", "susp=0.1", "topk=20", "steps=5") for x in ("--set", s)]
    on = ("clean", "--model", victim, "--data", "shapes", "--n", 300, "--backdoor", victim / "backdoor")
    told = clipvet(*on, "--method", "ubt", *forced, "--out", cleaned)
    assert "likely target: '" in told or "no evidence" in told
    assert "+ 30 poisons" in told
    assert {"pool_recall", "asr"} <= {r.metric for r in results.read(cleaned)}
    assert "after overfitting" in (cleaned / "suspects.html").read_text()
    told = clipvet(*on, "--method", "ubt", "--set", "susp=0.1", "--set", "topk=20", "--out", tmp_path / "other")
    assert "no evidence of a backdoor" in told


def test_presets_reach_what_a_method_owns() -> None:
    assert shapes(Ubt()).topk == 24
    assert shapes(FinetuneFiltered()).finetune.batch == 64

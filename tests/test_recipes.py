"""Every recipe runs with --smoke; stages are cached; an attack that did not take is not scored."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipvet import io, results
from clipvet.cli import main
from clipvet.data.sources import Data
from clipvet.errors import UserError
from clipvet.experiments.recipe import Recipe, load_recipes
from clipvet.experiments.run import chosen, run, shared_place
from clipvet.experiments.victim import Victim
from clipvet.jobs import rehearsal
from clipvet.pages import demo
from clipvet.pages.report import build
from clipvet.training.plain import Plain

ROOT = Path(__file__).parent.parent
RECIPES = sorted(ROOT.glob("recipes/**/*.py"))


def fewer(data: Any, n: int) -> Any:
    return replace(data, n=min(data.n, n))


SHARED = {"suite": ("inspector_suite", "inspector_ablation", "repair_shapes", "detector_shapes")}
SHARED |= {"deep": ("rvpt_shapes", "fewshot_table")}  # recipes with victims in common, for one process


SMALLER = {"RN50": "shapes-rn", "ViT-B-32": "shapes-vit"}  # models of full size take minutes and gigabytes,
FULL_SIZE = "par_vit_b32"  # so one recipe runs with its own


def smoke(path: Path):
    groups = [name for name, recipes in SHARED.items() if path.stem in recipes]
    return pytest.param(path, marks=[pytest.mark.xdist_group(g) for g in groups], id=path.stem)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Finished stages, which recipes share as they do for a user."""
    folder = tmp_path_factory.mktemp("stages")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("path", [smoke(p) for p in RECIPES])
def test_recipe_smoke(path: Path, tmp_path: Path, stages: Path) -> None:
    made = load_recipes(path, smoke=True)
    kept = tuple(replace(r, attacks=dict(list(r.attacks.items())[:1])) for r in made)  # one attack is enough here,
    if path.parent.name in ("paper", "gpu"):  # and one defense for the recipes of full-size models
        kept = tuple(
            replace(
                r,
                model_names=r.model_names if path.stem == FULL_SIZE else tuple(SMALLER[m] for m in r.model_names),
                victim_data=fewer(r.victim_data, 32),
                cleaners={k: c for k, c in r.cleaners.items() if k == "par"},
                defender_data={k: (fewer(d, 16), ("par",)) for k, (d, _) in r.defender_data.items()},
                trainings={k: t for k, t in r.trainings.items() if k == "safeclip"},
                oracle=None,
            )
            for r in kept
        )
    rows = run(kept, tmp_path / "out", stages)
    families = [f for r in kept for f in (r.cleaners, r.trainings, r.filters, r.inspectors, r.detectors)]
    defenses = {name for family in families for name in family} | {"oracle" for r in kept if r.oracle}
    starts = {"base"} if any(r.base for r in kept) else set()
    assert {r.method for r in rows} == {"none"} | starts | defenses
    made_by_stages = {"base", "victim", "clean", "rebound", "train", "filter", "inspect", "detect"}
    assert {r.stage for r in rows} <= made_by_stages | {"suite", "equal"}
    assert {r.model for r in rows} == {m for r in kept for m in r.model_names}
    assert "<html" in build(tmp_path / "out").read_text()


SMALLEST = """
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from clipvet.experiments.recipe import load_recipes
def recipe(smoke):
    made = load_recipes(Path({path!r}), True)[0]
    return replace(made, name={name!r}, attacks=dict(list(made.attacks.items())[:1]), cleaners={{}}, defender_data={{}})
"""


def test_several_recipes_in_one_command(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        Path(f"{name}.py").write_text(SMALLEST.format(path=str(ROOT / "recipes/ubt_shapes.py"), name=name))

    def said(*words: str) -> tuple[int | str | None, str]:
        monkeypatch.setattr(sys, "argv", ["clipvet", "run", "--smoke", *words])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, capsys.readouterr().err

    for wrong in (("one.py", "two.py", "--out", "here"), ("one.py", "one.py"), ("one.py", "--part", "half")):
        assert said(*wrong)[0] == 2
    assert not Path("runs").exists(), "refused only after something was run"
    code, text = said("one.py", "two.py")
    assert code == 0, text
    one, two = ([(r.metric, r.value) for r in results.read(Path(f"runs/{n}-smoke"))] for n in ("one", "two"))
    assert one == two
    assert len(list(Path("runs/stages").iterdir())) == 1, "the same stage was run twice"


def test_stages_are_not_run_again_and_outputs_not_mixed(tmp_path: Path, capsys, monkeypatch: Any) -> None:
    recipe = load_recipes(ROOT / "recipes/par_structured.py", smoke=True)[0]
    small = replace(recipe, attacks={"patch": recipe.attacks["patch"]}, defender_data={})
    first = run((small,), tmp_path / "out", tmp_path / "stages")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "stages").rglob("*.safetensors")}
    again = run((small,), tmp_path / "out2", tmp_path / "stages")
    assert [r.value for r in first] == [r.value for r in again]
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "stages").rglob("*.safetensors")}
    with pytest.raises(UserError, match="another run"):
        run((replace(small, target="ring"),), tmp_path / "out", tmp_path / "stages")
    other = run((small,), tmp_path / "out", tmp_path / "stages", seeds=(1,))
    assert {r.seed for r in other} == {0, 1}, "rows of another seed were lost"
    monkeypatch.setattr(results, "command", lambda: "clipvet run --seed 2")
    run((small,), tmp_path / "out", tmp_path / "stages", seeds=(1,))
    told = io.read_json(tmp_path / "out" / "commands.json")["commands"]
    assert len(told) == 2, "the command that made the other rows was lost"
    assert told[-1] == "clipvet run --seed 2"


def test_a_rehearsal_counts_what_is_finished(tmp_path: Path, monkeypatch: Any, clipvet: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("one.py").write_text(SMALLEST.format(path=str(ROOT / "recipes/ubt_shapes.py"), name="one"))
    words = ("run", "one.py", "--smoke", "--dry-run")
    first = clipvet(*words)
    assert (first.code, Path("runs").exists()) == (0, False), first.err
    assert "attack by patch_5: about " in first.out
    run(load_recipes(Path("one.py"), smoke=True), tmp_path / "out", tmp_path / "runs" / "stages")
    assert "attack by patch_5 (finished): about 0 seconds" in clipvet(*words).out


@pytest.mark.parametrize("name", ["rvpt_shapes", "safeclip_shapes"])
def test_a_whole_recipe_is_planned_with_each_stage_once(name: str, tmp_path: Path) -> None:
    made = load_recipes(ROOT / "recipes" / f"{name}.py")
    victims = chosen(made, tmp_path, tmp_path / "stages", None, (1, 1))
    steps, _ = rehearsal.planned(victims)
    said = " ".join(s.what for s in steps)
    for recipe in made:
        for family in (recipe.attacks, recipe.cleaners, recipe.trainings, recipe.filters, recipe.inspectors):
            assert all(f"by {method}" in said for method in family)
    assert any(s.trains for s in steps)
    one = next(s for s in steps if s.what.startswith("attack by"))
    assert (f", {len(made[0].seeds)} times" in one.what) == (len(made[0].seeds) > 1)


def test_victims_with_the_same_names_are_refused(tmp_path: Path) -> None:
    """Two tasks whose cleaned models would be kept in one place: one would replace the other without a word."""
    one = load_recipes(ROOT / "recipes/ubt_shapes.py", smoke=True)[0]
    with pytest.raises(UserError, match="two victims would share their rows"):
        run((one, replace(one, target="heart")), tmp_path / "out", tmp_path / "stages")
    assert not (tmp_path / "out").exists()
    for path in RECIPES:
        made = load_recipes(path, smoke=path.parent.name == "drawings")  # tests do not have the drawings
        assert not shared_place([Victim(r, s, m, a, tmp_path, tmp_path) for r in made for s in r.seeds[:1]
                                 for m in r.model_names for a in r.attacks]), path  # fmt: skip


def test_parts_together_are_the_whole(tmp_path: Path) -> None:
    recipe = load_recipes(ROOT / "recipes/par_structured.py", smoke=True)[0]
    assert len(recipe.attacks) > 1
    small = replace(recipe, cleaners={}, defender_data={})
    whole = run((small,), tmp_path / "whole", tmp_path / "stages")
    n, seen, found = len(recipe.attacks) * len(recipe.model_names), [0], []
    for k in range(1, n + 1):
        found = run((small,), tmp_path / "parts", tmp_path / "stages", part=(k, n))
        seen.append(len(found))
    assert seen == sorted(set(seen)), "a part was empty"
    assert [(r.attack, r.metric, r.value) for r in found] == [(r.attack, r.metric, r.value) for r in whole]
    for wrong in ((3, 2), (0, 2), (1, n + 1)):
        with pytest.raises(UserError, match=f"no part {wrong[0]} of {wrong[1]}; give K/N, N at most {n}"):
            run((small,), tmp_path / "wrong", tmp_path / "stages", part=wrong)
    assert not (tmp_path / "wrong").exists()


def test_a_stage_is_known_by_its_settings_and_sources(monkeypatch) -> None:
    import inspect

    from clipvet.attacks.poison import Poison
    from clipvet.data.sources import Data
    from clipvet.experiments.keys import key
    from clipvet.triggers.patch import Patch

    first = key(Poison(), "data", 0)
    assert key(Poison(), "data", 0) == first
    assert len({first, key(Poison(Patch(seed=1)), "data", 0), key(Poison(), "data", 1)}) == 3
    world = key(Data("foreign"))
    honest = inspect.getsource
    monkeypatch.setattr(
        inspect, "getsource", lambda m: honest(m) + "# mended" * m.__name__.endswith(("patch", "foreign"))
    )
    assert key(Poison(), "data", 0) != first, "a stage outlives a fix of its trigger"
    assert key(Data("foreign")) != world, "a stage outlives a fix of its world"


def test_no_defense_is_scored_unless_the_attack_took(tmp_path: Path, capsys) -> None:
    recipe: Recipe = load_recipes(ROOT / "recipes/par_structured.py", smoke=True)[0]
    weak = replace(recipe, attacks={"patch": recipe.attacks["patch"]}, took=0.99)
    rows = run((weak,), tmp_path / "out", tmp_path / "stages")
    assert {r.stage for r in rows} == {"victim", "refused"}
    assert results.read(tmp_path / "out") == rows


def test_a_demo_that_was_stopped_goes_on(tmp_path: Path, monkeypatch, capsys) -> None:
    whole = demo.recipe()
    patch: Any = whole.attacks["patch"]
    par: Any = whole.cleaners["par"]
    small = replace(
        whole,
        attacks={"patch": replace(patch, training=Plain(epochs=1, batch=64))},
        cleaners={"par": replace(par, epochs=1, batch=64)},
        victim_data=Data("shapes", 256),
        test=replace(whole.test, n=96),
        defender_data={"shapes": (Data("shapes", 256, "validation"), ("par",))},
        took=0.0,
    )
    monkeypatch.setattr(demo, "recipe", lambda: small)
    honest = demo.save_gallery
    monkeypatch.setattr(demo, "save_gallery", stopped)
    with pytest.raises(KeyboardInterrupt):
        demo.demo(tmp_path / "out", 1)
    monkeypatch.setattr(demo, "save_gallery", honest)
    assert demo.demo(tmp_path / "out", 1).exists()


def stopped(*_: object) -> None:
    raise KeyboardInterrupt


def test_jobs_side_by_side_give_the_same_rows(tmp_path: Path, capsys) -> None:
    recipe = load_recipes(ROOT / "recipes/par_structured.py", smoke=True)[0]
    small = replace(
        recipe,
        attacks={"patch": recipe.attacks["patch"]},
        cleaners={"finetune": recipe.cleaners["finetune"]},
        defender_data={"shapes": (recipe.defender_data["shapes"][0], ("finetune",))},
    )
    one = run((small,), tmp_path / "a", tmp_path / "stages_a")
    two = run((small,), tmp_path / "b", tmp_path / "stages_b", jobs=2)
    assert [(r.method, r.metric, r.value) for r in one] == [(r.method, r.metric, r.value) for r in two]


def test_a_killed_run_leaves_no_worker(tmp_path: Path) -> None:
    """Workers of a run that is killed would go on writing to stages which the next run resumes."""
    code = f"""
import os, signal, sys, threading
from concurrent.futures import ProcessPoolExecutor
import multiprocessing, time
from clipvet.experiments.workers import _worker
if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _worker, (os.getpid(),))
    open({str(tmp_path / "pid")!r}, "w").write(str(pool.submit(os.getpid).result()))
    pool.submit(time.sleep, 60)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    (tmp_path / "killed.py").write_text(code)
    assert subprocess.run([sys.executable, tmp_path / "killed.py"]).returncode == -signal.SIGKILL
    worker = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not Path(f"/proc/{worker}").exists() or "Z" in Path(f"/proc/{worker}/stat").read_text().split()[2]:
            return
        time.sleep(0.1)
    pytest.fail(f"worker {worker} outlives its parent")

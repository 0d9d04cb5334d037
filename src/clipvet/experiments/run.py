"""Runs recipes: attack, check that the attack took, defend in every way, measure. All rows go to one table."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from clipvet import io, ranks, results
from clipvet.errors import UserError
from clipvet.experiments.equal import equal
from clipvet.experiments.recipe import Recipe, told
from clipvet.experiments.stages import Base, Implant
from clipvet.experiments.suite import suite
from clipvet.experiments.victim import Stage, Victim
from clipvet.experiments.workers import Submit, result, workers
from clipvet.scan.reference import NULLS
from clipvet.scan.verdicts import read_null

Keep = Callable[[list[results.Row]], None]  # takes the rows of one stage


def run(
    recipes: tuple[Recipe, ...],
    out: Path,
    runs: Path,
    seeds: tuple[int, ...] | None = None,
    jobs: int = 1,
    ray: str = "",
    part: tuple[int, int] = (1, 1),
) -> list[results.Row]:
    """Run every stage of the recipes that `runs` does not hold yet, and return all rows in `out`.

    The rows are written to out/results.jsonl as they come; those of other seeds and parts that `out` already holds stay
    there. The recipes share one table, so they share their `name`.

    runs: folder of the stages, one folder for each key. seeds: instead of the first recipe's. jobs: how many stages run
    side by side, each with one thread. ray: the address of a Ray cluster that runs the stages instead and sees the same
    files; "local" starts a cluster here with `jobs` stages at a time. part: (k, n) runs the k-th of n parts of the
    victims, counted from 1, for a run that is too long for one sitting; give the parts one after the other.

    Raises UserError if `out` holds another run or another process writes there, if two victims would share their place
    in the table, for a part that does not exist, and for `jobs` or `ray` under torchrun.
    """
    began, wanted = time.monotonic(), {"recipes": [told(r) for r in recipes]}
    out, runs = Path(out).absolute(), Path(runs).absolute()
    if ranks.world() > 1 and (jobs > 1 or ray):
        raise UserError("stages run side by side, or each over several processes; leave out --jobs and --ray")
    victims = chosen(recipes, out, runs, seeds, part)
    with ExitStack() as held:
        found, seconds = _carry_out(victims, out, wanted, jobs, ray, held), round(time.monotonic() - began, 1)
        if ranks.main():
            _describe(recipes, out, seconds)
    return found


def chosen(
    recipes: tuple[Recipe, ...], out: Path, runs: Path, seeds: tuple[int, ...] | None, part: tuple[int, int]
) -> list[Victim]:
    """The victims that a run with these arguments works on.

    Raises UserError if two of them would share their place in the table, and for a part that does not exist.
    """
    victims = [
        Victim(recipe, seed, model, attack, runs, out)
        for seed in seeds or recipes[0].seeds
        for recipe in recipes
        for model in recipe.model_names
        for attack in recipe.attacks
    ]
    if shared := shared_place(victims):
        raise UserError(
            f"two victims would share their rows ({shared}); name attacks or defender's data of the recipes differently"
        )
    k, n = part
    if not 1 <= k <= n <= len(victims):
        most = len(victims)
        raise UserError(f"there is no part {k} of {n}; give K/N, N at most {most} (the victims) and K from 1 to N")
    return victims[(k - 1) * len(victims) // n : k * len(victims) // n]


def shared_place(victims: list[Victim]) -> str:
    """A place in the table that two different victims would fill, in words; empty where there is none."""
    owners: dict[tuple, str] = {}
    for v in victims:
        r, own = v.recipe, v.key
        data = [r.victim_data.spec, *(source for source, (_, names) in r.defender_data.items() if names)]
        for source in data:
            if owners.setdefault(place := (v.seed, v.model, v.attack, source), own) != own:
                return ", ".join(map(str, place))
    return ""


def _carry_out(
    victims: list[Victim], out: Path, wanted: dict[str, Any], jobs: int, ray: str, held: ExitStack
) -> list[results.Row]:
    """Every stage of these victims, and all rows in `out`, which no other process writes until `held` is closed."""

    def begin() -> list[results.Row]:
        out.mkdir(parents=True, exist_ok=True)
        held.enter_context(io.alone(out))
        if (out / "results.jsonl").exists() and io.read_json(out / "run.json") != wanted:
            raise UserError(f"{out} already holds another run; choose another --out or delete it")
        io.write_json(out / "run.json", wanted)
        return results.read(out)

    nulls = _nulls([v.recipe for v in victims])
    rows: dict[tuple, list[results.Row]] = {}
    for row in ranks.first(begin):
        if row.stage not in ("suite", "equal"):
            rows.setdefault(_place(row), []).append(row)

    def keep(new: list[results.Row]) -> None:
        rows[_place(new[0])] = new
        if ranks.main():
            results.write(out, [row for place in sorted(rows) for row in rows[place]])
            _print(new)

    bases = {v.base_key: v for v in victims if v.recipe.base}.values()
    if jobs == 1 and not ray:
        _one_by_one(bases, victims, keep)
    else:
        with workers(jobs, ray) as submit:
            _side_by_side(bases, victims, keep, submit)
    found = [row for place in sorted(rows) for row in rows[place]]
    found += suite(found, nulls=nulls) + equal(found)
    if ranks.main():
        results.write(out, found)
    return found


def _nulls(recipes: list[Recipe]) -> dict[str, list[float]]:
    """The clean scores that come with clipvet, by inspector.

    Raises UserError where they were made with another method, other classes or other templates than the recipe's.
    """
    found = {}
    for recipe in recipes:
        for name, family in recipe.nulls.items():
            null, task = read_null(NULLS / f"{family}.json"), recipe.test.task(recipe.seeds[0])
            own = (repr(recipe.inspectors[name]), tuple(task.classes), tuple(task.templates))
            if own != (null.method, null.names, null.templates):
                raise UserError(f"the null of {family} has another method, classes or templates than {name} here")
            found[name] = list(null.scores.values())
    return found


def _one_by_one(bases: Iterable[Victim], victims: list[Victim], keep: Keep) -> None:
    """Every clean model, then every victim with all its stages."""
    for victim in bases:
        keep(victim.run(Base(), progress=True))
    for victim in victims:
        todo: list[Stage] = [Implant()]
        while todo:
            stage = todo.pop(0)
            keep(rows := victim.run(stage, progress=True))
            todo += stage.after(victim, rows)


def _side_by_side(bases: Iterable[Victim], victims: list[Victim], keep: Keep, submit: Submit) -> None:
    """The same in several processes; an attack that several recipes have is run once."""
    for base in [submit(v.run, Base()) for v in bases]:
        keep(result(base))
    same: dict[str, list[Victim]] = {}
    for victim in victims:
        same.setdefault(victim.key, []).append(victim)
    running: dict[Future, tuple[Stage, list[Victim]]] = {}
    for alike in same.values():
        running[submit(alike[0].run, Implant())] = Implant(), alike
    while running:
        for finished in wait(running, return_when=FIRST_COMPLETED).done:
            stage, (first, *others) = running.pop(finished)
            keep(rows := result(finished))
            for victim in (first, *others):
                for later in stage.after(victim, rows if victim is first else victim.run(stage)):
                    running[submit(victim.run, later)] = later, [victim]


def _place(row: results.Row) -> tuple:
    """Where the rows of one stage lie in the table; a refusal lies with its victim."""
    stage = "" if row.stage in ("victim", "refused") else row.stage
    return row.seed, row.model, row.attack, stage != "", row.data, row.method, stage


def _print(rows: list[results.Row]) -> None:
    """One line on a finished stage, for whoever watches."""
    m, values = rows[0], {r.metric: r.value for r in rows}
    what = f"{m.model} seed {m.seed}  {m.attack or 'no attack'}: {m.method}, pairs of {m.data}"
    shown = "  ".join(f"{k} {values[k]:6.1%}" for k in (*results.SUCCESS, "clean_accuracy", "auroc") if k in values)
    print(f"{what:64} {shown}  {m.seconds:5.0f} s", flush=True)


def _describe(recipes: tuple[Recipe, ...], out: Path, seconds: float) -> None:
    """Writes commands.json: what was run, with which settings, versions and hardware, and in how many seconds."""
    earlier = io.read_json(out / "commands.json")["commands"] if (out / "commands.json").exists() else []
    io.write_json(
        out / "commands.json",
        {
            "commands": list(dict.fromkeys([*earlier, results.command()])),
            "settings": {
                name: repr(c)
                for r in recipes
                for name, c in {**r.cleaners, **r.trainings, **r.filters, **r.inspectors, **r.detectors}.items()
            },
            "reported": {k: v for r in recipes for k, v in r.reported.items()},
            "versions": results.versions(),
            "hardware": results.hardware(),
            "seconds": seconds,
        },
    )

"""Recipes: attack, check that the attack took, clean in every way, measure."""

import time
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from clipvet import io, ranks, results
from clipvet.errors import UserError
from clipvet.experiments.recipe import Recipe, told
from clipvet.experiments.suite import suite
from clipvet.experiments.victim import SUCCESS, Victim
from clipvet.experiments.workers import result, workers


def run(
    recipes: tuple[Recipe, ...],
    out: Path,
    runs: Path,
    seeds: tuple[int, ...] | None = None,
    jobs: int = 1,
    ray: str = "",
    part: tuple[int, int] = (1, 1),
) -> list[results.Row]:
    """All rows of the recipes, written to out/results.jsonl as they come; rows of other seeds and parts stay.

    jobs: stages side by side, one thread each. ray: address of the cluster that runs them instead, which sees the same
    files; "local" starts one of so many jobs. part: (k, n), the k-th of n parts of the victims, for a run that is too
    long for one sitting; one after the other. Raises UserError if `out` holds another run or another process writes
    there, and for a part that does not exist.
    """
    began, wanted = time.monotonic(), {"recipes": [told(r) for r in recipes]}
    out, runs = Path(out).absolute(), Path(runs).absolute()
    if ranks.world() > 1 and (jobs > 1 or ray):
        raise UserError("stages run side by side, or each over several processes; leave out --jobs and --ray")
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
    victims = victims[(k - 1) * len(victims) // n : k * len(victims) // n]
    with ExitStack() as held:
        found, seconds = _carry_out(victims, out, wanted, jobs, ray, held), round(time.monotonic() - began, 1)
        if ranks.main():
            _tell(recipes, out, seconds)
    return found


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

    rows: dict[tuple, list[results.Row]] = {}
    for row in ranks.first(begin):
        if row.stage != "suite":
            rows.setdefault(_place(row), []).append(row)

    def keep(new: list[results.Row]) -> None:
        rows[_place(new[0])] = new
        if not ranks.main():
            return
        results.write(out, [row for place in sorted(rows) for row in rows[place]])
        m, values = new[0], {r.metric: r.value for r in new}
        what = f"{m.model} seed {m.seed}  {m.attack or 'no attack'}: {m.method}, pairs of {m.data}"
        shown = "  ".join(f"{k} {values[k]:6.1%}" for k in (*SUCCESS, "clean_accuracy", "auroc") if k in values)
        print(f"{what:64} {shown}  {m.seconds:5.0f} s", flush=True)

    bases = {v.base_key: v for v in victims if v.recipe.base}.values()
    if jobs == 1 and not ray:
        for first in bases:
            keep(first.found(progress=True))
        for victim in victims:
            todo: list[tuple] = [(victim.implant,)]
            while todo:
                work, *what = todo.pop(0)
                keep(made := work(*what, progress=True))
                todo += _next(victim, made)
    else:
        with workers(jobs, ray) as submit:
            for begun in [submit(v.found) for v in bases]:
                keep(result(begun))
            same: dict[str, list[Victim]] = {}  # one attack of several recipes is run once
            for v in victims:
                same.setdefault(v.key, []).append(v)
            waiting = {submit(vs[0].implant): vs for vs in same.values()}
            while waiting:
                for finished in wait(waiting, return_when=FIRST_COMPLETED).done:
                    first, *others = waiting.pop(finished)
                    keep(made := result(finished))
                    todo = [(first, work) for work in _next(first, made)]
                    todo += [(v, work) for v in others for work in _next(v, v.implant())]
                    for victim, work in todo:
                        waiting[submit(*work)] = [victim]
    found = [row for place in sorted(rows) for row in rows[place]]
    found += suite(found)
    if ranks.main():
        results.write(out, found)
    return found


def _tell(recipes: tuple[Recipe, ...], out: Path, seconds: float) -> None:
    """commands.json: what was run, with which settings, on what."""
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


def _place(row: results.Row) -> tuple:
    """Where the rows of one stage lie among all; a refusal lies with its victim."""
    stage = "" if row.stage in ("victim", "refused") else row.stage
    return row.seed, row.model, row.attack, stage != "", row.data, row.method, stage


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


def _next(victim: Victim, made: list[results.Row]) -> list[tuple]:
    """What to do next, as calls: nothing where the attack did not take; after a cleaner, its rebound if asked for."""
    r, last = victim.recipe, made[0]
    if last.stage == "clean" and r.rebound:
        return [(victim.rebound, last.data, last.method)]
    if last.stage != "victim" or made[-1].stage == "refused":
        return []
    trained = [(victim.train, name) for name in r.trainings] + ([(victim.know,)] if r.oracle else [])
    trained += [(victim.score, name) for name in r.filters] + [(victim.inspect, name) for name in r.inspectors]
    trained += [(victim.detect, name) for name in r.detectors]
    return trained + [(victim.clean, source, name) for source, (_, names) in r.defender_data.items() for name in names]

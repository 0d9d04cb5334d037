"""Recipes: attack, check that the attack took, clean in every way, measure. Stages are cached by content.

Every stage lives in runs/<key>/, where the key is a hash of what went in and of the method's own source; an existing
stage is not run again, and a killed one goes on where its last state was saved.
"""

import hashlib
import importlib.util
import inspect
import multiprocessing
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from clipvet import __version__, find, io, models, results
from clipvet.answer_key import load_backdoor, save_backdoor
from clipvet.data import Data, Test
from clipvet.embed import sharing
from clipvet.errors import UserError
from clipvet.fit import workspace
from clipvet.rng import Rng
from clipvet.types import Attack, Backdoor, Cleaner, Clip, Measured, Task


@dataclass(frozen=True)
class Recipe:
    """One experiment: every attack on every model, then every cleaner with every defender's data.

    The defense is scored only where the victim's ASR reaches `took`. Defender's data: name -> (data, cleaners'
    names), so that a cleaner can be fed from elsewhere too.
    """

    name: str
    model_names: tuple[str, ...]
    attacks: Mapping[str, Attack]
    cleaners: Mapping[str, Cleaner]
    target: str
    victim_data: Data
    test: Test
    defender_data: Mapping[str, tuple[Data, tuple[str, ...]]]
    pretrained: str | None = None  # start the attack from these weights instead of from scratch
    took: float = 0.5  # smallest ASR at which the attack counts as planted
    seeds: tuple[int, ...] = (0,)
    reported: Mapping[str, float] = field(default_factory=dict)  # "paper says": attack/method/metric -> fraction


def load_recipes(path: Path, smoke: bool = False) -> tuple[Recipe, ...]:
    """Of a file that defines `recipe(smoke)`, one or several of one name. A recipe is code: run only what you trust."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file; recipes lie in recipes/")
    spec = importlib.util.spec_from_file_location(f"clipvet_recipe_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)  # pyright: ignore
    spec.loader.exec_module(module)  # pyright: ignore
    if not callable(getattr(module, "recipe", None)):
        raise UserError(f"{path} defines no function recipe(smoke); see recipes/par_structured.py")
    made = module.recipe(smoke)
    return made if isinstance(made, tuple) else (made,)


def measure_all(clip: Clip, task: Task, backdoor: Backdoor | None, rng: Rng) -> dict[str, Measured]:
    """Every measure of the family, on one task."""
    with sharing():
        out: dict[str, Measured] = {}
        for name in find.names("measures"):
            out |= find.load("measures", name)().measure(clip, task, backdoor, rng.fork(name))
        return out


def key(*parts: Any) -> str:
    """Hash of stage inputs: their reprs, and the source of the methods' own files."""
    sources = [inspect.getsource(inspect.getmodule(p)) for p in parts if hasattr(type(p), "needs")]  # pyright: ignore
    return hashlib.sha256("\n".join([__version__, *map(repr, parts), *sources]).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Chain:
    """One victim and all that is done to it: the unit of parallel work."""

    recipe: Recipe
    seed: int
    model: str
    attack: str
    runs: Path
    out: Path

    def rows(self, progress: bool = False) -> Iterator[results.Row]:
        r, rng = self.recipe, Rng(self.seed)
        attack = r.attacks[self.attack]
        victim_key = key(attack, self.model, r.pretrained, r.victim_data, r.target, self.seed)
        task = r.test.task(self.seed)
        common = {"recipe": r.name, "attack": self.attack, "seed": self.seed, "model": self.model}

        def stage(folder_key: str, make) -> tuple[Path, float]:
            """The stage's folder and the seconds that it took."""
            folder = self.runs / folder_key
            try:
                with io.output(folder, {"key": folder_key}) as work:
                    began = time.monotonic()
                    with workspace(work, progress=progress):
                        make(work)
                    io.write_json(work / "seconds.json", round(time.monotonic() - began, 2))
            except io.AlreadyDone:
                pass
            return folder, float(io.read_json(folder / "seconds.json"))

        def victim(work: Path) -> None:
            fresh = models.load(self.model, r.pretrained, device=device(), rng=rng.fork("init"))
            clip, _, backdoor = attack.implant(fresh, r.victim_data.pairs(self.seed), r.target, rng.fork("attack"))
            save_backdoor(backdoor, work / "backdoor")
            models.save(clip, work, {"role": "victim", "method": self.attack, "config": repr(attack)})

        folder, seconds = stage(victim_key, victim)
        self._show("victim", folder)
        clip, backdoor = models.load(str(folder), device=device()), load_backdoor(folder / "backdoor")
        measured = measure_all(clip, task, backdoor, rng.fork("measure"))
        untouched = {"method": "none", "config": repr(attack), "data": r.victim_data.spec}
        yield from results.rows_of(measured, stage="victim", seconds=seconds, **untouched, **common)
        if measured["asr"].value < r.took:
            yield results.Row(
                **common, **untouched, stage="refused", metric="asr", seconds=seconds, **measured["asr"]._asdict()
            )
            return
        for source, (data, names) in r.defender_data.items():
            for name in names:
                cleaner = r.cleaners[name]
                clean_key = key(cleaner, victim_key, data, self.seed)

                def clean(work: Path, cleaner=cleaner, data=data, name=name) -> None:
                    cleaned = cleaner.clean(clip, data.pairs(self.seed), rng.fork("clean"))
                    measured = measure_all(cleaned, task, backdoor, rng.fork("measure"))
                    io.write_json(work / "measured.json", measured)
                    models.save(cleaned, work, {"role": "cleaned", "method": name, "config": repr(cleaner)})

                folder, seconds = stage(clean_key, clean)
                if source == next(iter(r.defender_data)):
                    self._show(name, folder)
                found = {k: Measured(*v) for k, v in io.read_json(folder / "measured.json").items()}
                yield from results.rows_of(
                    found, stage="clean", method=name, config=repr(cleaner), data=source, seconds=seconds, **common
                )

    def _show(self, name: str, stage: Path) -> None:
        """The first chain of each attack lends its logs to the report."""
        if (
            self.seed == self.recipe.seeds[0]
            and self.model == self.recipe.model_names[0]
            and (stage / "log.jsonl").exists()
        ):
            shown = self.out / "logs" / self.attack / f"{name}.jsonl"
            shown.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(stage / "log.jsonl", shown)


def device() -> torch.device:
    from accelerate import Accelerator

    return Accelerator().device


def run(
    recipes: tuple[Recipe, ...], out: Path, runs: Path, seeds: tuple[int, ...] | None = None, jobs: int = 1
) -> list[results.Row]:
    """All rows of the recipes, written to out/results.jsonl as they come; rows of other seeds already there stay.

    jobs: chains side by side, which share the processor's threads. Raises UserError if `out` holds another run.
    """
    began, wanted = time.monotonic(), {"recipes": [repr(r) for r in recipes]}
    if (out / "results.jsonl").exists() and io.read_json(out / "run.json") != wanted:
        raise UserError(f"{out} already holds another run; choose another --out or delete it")
    io.write_json(out / "run.json", wanted)
    chains = [
        Chain(recipe, seed, model, attack, runs, out)
        for seed in seeds or recipes[0].seeds
        for recipe in recipes
        for model in recipe.model_names
        for attack in recipe.attacks
    ]
    rows = {}
    for row in results.read(out):
        rows.setdefault((row.seed, row.model, row.attack), []).append(row)

    def done(chain: Chain, new: list[results.Row]) -> None:
        rows[chain.seed, chain.model, chain.attack] = new
        results.write(out, [row for k in sorted(rows) for row in rows[k]])

    if jobs == 1:
        for chain in chains:
            done(chain, list(chain.rows(progress=True)))
    else:
        threads = max(1, torch.get_num_threads() // jobs)
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            waiting = {pool.submit(_share, chain, threads): chain for chain in chains}
            for finished in as_completed(waiting):
                done(waiting[finished], finished.result())
    io.write_json(
        out / "commands.json",
        {
            "commands": [results.command()],
            "settings": {name: repr(c) for r in recipes for name, c in r.cleaners.items()},
            "reported": {k: v for r in recipes for k, v in r.reported.items()},
            "versions": results.versions(),
            "hardware": results.hardware(),
            "seconds": round(time.monotonic() - began, 1),
        },
    )
    return [row for k in sorted(rows) for row in rows[k]]


def _share(chain: Chain, threads: int) -> list[results.Row]:
    torch.set_num_threads(threads)
    return list(chain.rows())

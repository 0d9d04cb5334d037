"""One victim of a recipe and its stages, each cached by content in runs/<key>/.

The key is a hash of what went in and of the method's own source; an existing stage is not run again, and a killed one
goes on where its last state was saved.
"""

import dataclasses
import hashlib
import inspect
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from clipvet import __version__, io, ranks, results
from clipvet.attacks.none import NoAttack
from clipvet.data.answer_key import load_backdoor, save_backdoor
from clipvet.data.dirty import beside, poison
from clipvet.data.sources import Data, Half, Test
from clipvet.data.worlds.pool import pool_pairs
from clipvet.engine.fit import Workspace, workspace
from clipvet.errors import UserError
from clipvet.experiments.evaluation import measure_all
from clipvet.experiments.recipe import Recipe
from clipvet.experiments.splits import measure_pool, measure_splits
from clipvet.measures._detection import detection
from clipvet.models import checkpoints
from clipvet.rng import Rng
from clipvet.types import Attack, Backdoor, Clip, Finding, Measured

GROUND = ("clipvet.types", "clipvet.rng", "clipvet.errors")  # what these say changes no number
SUCCESS = ("asr", "asr_worst", "psr", "hit@1")  # metrics by which an attack took or not


def key(*parts: Any) -> str:
    """Hash of stage inputs: their reprs, and the source files of the methods and of what they own (a trigger, say)."""
    files = sorted({source for p in parts for source in _sources(p)})
    return hashlib.sha256("\n".join([__version__, *map(repr, parts), *files]).encode()).hexdigest()[:16]


def _sources(part: Any) -> list[str]:
    """Source of the part's module, of those it takes names from, of those they do if private, and of its own parts."""
    if isinstance(part, _Content):
        return [part] if part else []
    if isinstance(part, tuple):
        return [source for p in part for source in _sources(p)]
    if not dataclasses.is_dataclass(part):
        return []
    parts = [getattr(part, f.name) for f in dataclasses.fields(part)]
    parts += [part.world(), _content(part)] if isinstance(part, (Data, Test)) else []
    module = sys.modules[type(part).__module__]
    names = _taken(module)
    for name in [n for n in names if n.rpartition(".")[2].startswith("_")]:  # what methods of a family share
        names |= _taken(sys.modules[name])
    return [inspect.getsource(sys.modules[n]) for n in (module.__name__, *sorted(names))] + _sources(tuple(parts))


class _Content(str):
    """A hash of files, in place of their names."""


@cache
def _content(part: Data | Test) -> _Content:
    """Of a user's pictures, and of the files that name and describe a test's classes."""
    files = (part.classes, part.templates) if isinstance(part, Test) else ()
    told = [io.sha256(f) for f in files if f and f.is_file()]
    if not part.world():
        with suppress(UserError):  # the stage that opens it will say what is wrong
            told.append((part.pairs() if isinstance(part, Data) else part.task().pictures).fingerprint)
    return _Content(" ".join(told))


@cache
def _weights(model: str) -> _Content:
    """Of the files that a model's name leads to; nothing for those of architectures, tags and hubs."""
    at = Path(model.removeprefix("local-dir:").removeprefix("transformers:"))
    if at.is_dir():
        files = [
            p for p in sorted(at.iterdir()) if p.suffix in (*io.PICKLES, ".safetensors", ".json", ".txt", ".model")
        ]
    else:
        files = [at] if at.is_file() else []
    return _Content(" ".join(f"{p.name} {io.sha256(p)}" for p in files))


def _taken(module: Any) -> set[str]:
    """The modules of ours that a module takes names from."""
    used = {getattr(value, "__module__", None) or "" for value in vars(module).values()} - {module.__name__}
    return {name for name in used if name.startswith("clipvet.") and name not in GROUND}


@dataclass(frozen=True)
class Victim:
    """One attack on one model with one seed, and what is done about it: every stage is a unit of work."""

    recipe: Recipe
    seed: int
    model: str
    attack: str
    runs: Path
    out: Path

    @property
    def key(self) -> str:
        return self._key(self.recipe.attacks[self.attack], self.recipe.target)

    @property
    def base_key(self) -> str:
        return self._key(self.recipe.base, "base")

    def _key(self, method: Any, what: str) -> str:
        r = self.recipe
        held = _weights(r.pretrained or self.model)
        if r.base_data and what == "base":
            return key(method, self.model, r.pretrained, *r.base_data, what, self.seed, held)
        base = (r.base, *(r.base_data or ())) if r.base and what != "base" else ()
        base += ("twin",) if r.twin and what != "base" else ()
        return key(method, self.model, r.pretrained, r.victim_data, r.test, what, self.seed, held, *base)

    def found(self, progress: bool = False) -> list[results.Row]:
        """Rows of the clean model that the attacks start from."""
        r, rng, training = self.recipe, Rng(self.seed), self.recipe.base
        assert training is not None
        data, test = r.base_data or (r.victim_data, r.test)

        def make(work: Path) -> dict[str, Measured]:
            fresh = checkpoints.load(self.model, r.pretrained, device=ranks.device(), rng=rng.fork("init"))
            clip = training.train(fresh, data.pairs(self.seed), rng.fork("base"))
            checkpoints.save(clip, work, {"role": "base", "method": "base", "config": repr(training)})
            return self._measure(clip, None, test)

        said = {"stage": "base", "method": "base", "config": repr(training), "data": data.spec}
        return self._rows(self.base_key, make, progress, "base", **said)

    def start(self) -> Clip:
        """What the attack is given: random weights, those of a file, or the clean model."""
        if self.recipe.base:
            return checkpoints.load(str(self.runs / self.base_key), device=ranks.device())
        rng = Rng(self.seed).fork("init")
        return checkpoints.load(self.model, self.recipe.pretrained, device=ranks.device(), rng=rng)

    def implant(self, progress: bool = False) -> list[results.Row]:
        """The victim's rows; a row of stage "refused" among them if the attack did not take."""
        r, attack = self.recipe, self.recipe.attacks[self.attack]
        rows = self._train(attack, "victim", "none", progress)
        if isinstance(attack, NoAttack):  # nothing was planted
            return rows
        refused = [replace(row, stage="refused") for row in rows if row.metric in SUCCESS]
        return rows + (refused if min(row.value for row in refused) < r.took else [])

    def train(self, name: str, progress: bool = False) -> list[results.Row]:
        """Rows of one training on the dirty pairs, from the same start as the victim."""
        safe: Any = replace(self.recipe.attacks[self.attack], training=self.recipe.trainings[name])  # pyright: ignore
        return self._train(safe, "train", name, progress)

    def _train(self, attack: Attack, stage: str, method: str, progress: bool) -> list[results.Row]:
        r, rng = self.recipe, Rng(self.seed)

        def make(work: Path) -> dict[str, Measured]:
            start, pairs = self.start(), r.victim_data.pairs(self.seed)
            clip, _, backdoor = attack.implant(start, pairs, r.target, rng.fork("attack"))
            save_backdoor(backdoor, work / "backdoor")
            checkpoints.save(
                clip,
                work,
                {"role": stage, "method": self.attack if method == "none" else method, "config": repr(attack)},
            )
            twin = r.twin and not isinstance(attack, NoAttack)
            if twin:
                with workspace(None):
                    start = attack.training.train(start, pairs, rng.fork("twin"))  # pyright: ignore
            floor = self._measure(start, backdoor) if r.base or twin else {}  # what the trigger does to a clean model
            clean = {f"clean_model_{k}": v for k, v in floor.items() if k in SUCCESS}
            return self._measure(clip, backdoor) | measure_splits(work, backdoor) | clean

        config = repr(attack if stage == "victim" else attack.training)  # pyright: ignore[reportAttributeAccessIssue]
        said = {"stage": stage, "method": method, "config": config, "data": r.victim_data.spec}
        label = "victim" if method == "none" else method
        return self._rows(self._key(attack, r.target), make, progress, label, **said)

    def know(self, progress: bool = False) -> list[results.Row]:
        """Rows of the oracle: the recipe's own training on what is left when the answer key has named the poisons."""
        r, rng, training = self.recipe, Rng(self.seed), self.recipe.oracle
        assert training is not None

        def make(work: Path) -> dict[str, Measured]:
            backdoor = self._answers()
            fresh = self.start()
            pairs = poison(r.victim_data.pairs(self.seed), backdoor)
            clip = training.train(fresh, pairs.take(~np.isin(pairs.ids, backdoor.poisoned)), rng.fork("oracle"))
            checkpoints.save(clip, work, {"role": "train", "method": "oracle", "config": repr(training)})
            return self._measure(clip, backdoor)

        said = {"stage": "train", "method": "oracle", "config": repr(training), "data": r.victim_data.spec}
        return self._rows(key(training, self.key, "oracle"), make, progress, "oracle", **said)

    def score(self, name: str, progress: bool = False) -> list[results.Row]:
        """Rows of one filter that ranks the dirty pairs, with the victim at hand."""
        r, rng, ranking = self.recipe, Rng(self.seed), self.recipe.filters[name]

        def make(work: Path) -> dict[str, Measured]:
            clip, backdoor = checkpoints.load(str(self.runs / self.key), device=ranks.device()), self._answers()
            pairs = poison(r.victim_data.pairs(self.seed), backdoor)
            return detection(ranking.score(clip, pairs, rng.fork("filter")), np.isin(pairs.ids, backdoor.poisoned))

        said = {"stage": "filter", "method": name, "config": repr(ranking), "data": r.victim_data.spec}
        return self._rows(key(ranking, self.key, "filter"), make, progress, name, **said)

    def inspect(self, name: str, progress: bool = False) -> list[results.Row]:
        """Rows of one inspector: the model's score (higher = more suspect), and whether it named the target."""
        r, inspector = self.recipe, self.recipe.inspectors[name]

        def make(work: Path) -> dict[str, Measured]:
            found = self._scan(inspector, checkpoints.load(str(self.runs / self.key), device=ranks.device()))
            if found.trigger is not None:
                save_backdoor(Backdoor(found.trigger, found.target or ""), work / "trigger")
            io.write_json(work / "classes.json", [r._asdict() for r in found.classes])
            return self._told(found)

        said = {"stage": "inspect", "method": name, "config": repr(inspector), "data": r.victim_data.spec}
        pictures = inspect.getsource(sys.modules[pool_pairs.__module__])
        return self._rows(key(inspector, self.key, "inspect", r.pool, pictures), make, progress, name, **said)

    def detect(self, name: str, progress: bool = False) -> list[results.Row]:
        """Rows of one detector: how well its suspicion tells triggered pictures of the test from the same without."""
        r, rng, detector = self.recipe, Rng(self.seed), self.recipe.detectors[name]

        def make(work: Path) -> dict[str, Measured]:
            clip, task = checkpoints.load(str(self.runs / self.key), device=ranks.device()), r.test.task(self.seed)
            other, answers = np.flatnonzero(task.labels != task.classes.index(r.target))[: r.watched], self._answers()
            both = beside(task.pictures.take(other), answers.trigger, answers.seed)
            scores = detector.detect(clip, both, task.classes, task.templates, rng.fork("detect"))
            return detection(scores, np.arange(len(both)) >= len(other))

        said = {"stage": "detect", "method": name, "config": repr(detector), "data": r.victim_data.spec}
        return self._rows(key(detector, self.key, "detect", r.watched), make, progress, name, **said)

    def _scan(self, inspector: Any, clip: Clip) -> Finding:
        """What it finds in this model; reference="base" is the model that the attack started from."""
        r, task = self.recipe, self.recipe.test.task(self.seed)
        if getattr(inspector, "reference", None) == "base":
            inspector = replace(inspector, reference=str(self.runs / self.base_key))
        pictures = pool_pairs(r.pool, clip.geometry.size, self.seed)
        return inspector.inspect(clip, pictures, task.classes, task.templates, Rng(self.seed).fork("inspect"))

    def _told(self, found: Finding) -> dict[str, Measured]:
        """The score, and whether the target was named."""
        named = Measured(float(found.target == self.recipe.target), 1, 0.0, 1.0)
        return {"score": Measured(found.score, self.recipe.pool, found.score, found.score), "named": named}

    def clean(self, source: str, name: str, progress: bool = False) -> list[results.Row]:
        """Rows of one cleaner with one of the defender's data, on the victim that `implant` left.

        Where the recipe has inspectors, the cleaned model is inspected again: <inspector>_score and <inspector>_named.
        """
        rng, cleaner, data = Rng(self.seed), self.recipe.cleaners[name], self.recipe.defender_data[source][0]
        if "untrusted" in cleaner.needs and data is not None:
            raise UserError(f"cleaner {name} needs untrusted pairs; give None as the recipe's defender_data for it")

        def make(work: Path) -> dict[str, Measured]:
            clip, answers = checkpoints.load(str(self.runs / self.key), device=ranks.device()), self._answers()
            pairs = poison(self.recipe.victim_data.pairs(self.seed), answers) if data is None else data.pairs(self.seed)
            cleaned = cleaner.clean(clip, pairs, rng.fork("clean"))
            checkpoints.save(cleaned, work, {"role": "cleaned", "method": name, "config": repr(cleaner)})
            measured = self._measure(cleaned, answers) | measure_pool(work, answers)
            for inspector, how in self.recipe.inspectors.items():
                with workspace(None):
                    told = self._told(self._scan(how, cleaned))
                measured |= {f"{inspector}_{k}": m for k, m in told.items()}
            return measured

        label = name if source == next(iter(self.recipe.defender_data)) else f"{name}-{source}"
        said = {"stage": "clean", "method": name, "config": repr(cleaner), "data": source}
        return self._rows(self._clean_key(source, name), make, progress, label, **said)

    def _clean_key(self, source: str, name: str) -> str:
        looks = (*self.recipe.inspectors.values(), self.recipe.pool) if self.recipe.inspectors else ()
        data = self.recipe.defender_data[source][0]
        return key(self.recipe.cleaners[name], self.key, data, self.seed, *looks)

    def rebound(self, source: str, name: str, progress: bool = False) -> list[results.Row]:
        """Rows rebound_asr, rebound_clean_accuracy and the like of a cleaned model: after benign fine-tuning.

        Its pairs are the first of the defender's that are no shots, else the victim's own, unpoisoned.
        """
        r, benign, before = self.recipe, self.recipe.rebound, self._clean_key(source, name)
        assert benign is not None
        pairs = next((d for d, _ in r.defender_data.values() if isinstance(d, Data)), r.victim_data)

        def make(work: Path) -> dict[str, Measured]:
            cleaned = checkpoints.load(str(self.runs / before), device=ranks.device())
            with workspace(None):  # what it costs is no cost of the cleaner's
                later = benign.clean(cleaned, pairs.pairs(self.seed), Rng(self.seed).fork("rebound"))
            found = self._measure(later, self._answers())
            return {f"rebound_{k}": m for k, m in found.items() if k in (*SUCCESS, "clean_accuracy")}

        said = {"stage": "rebound", "method": name, "config": repr(r.cleaners[name]), "data": source}
        return self._rows(key(benign, before, pairs, "rebound"), make, progress, "rebound", **said)

    def _answers(self) -> Backdoor:
        return load_backdoor(self.runs / self.key / "backdoor")

    def _rows(
        self, name: str, make: Callable[[Path], dict[str, Measured]], progress: bool, label: str, **said: str
    ) -> list[results.Row]:
        """What the stage measured, from runs/<name> if it is there; its log is shown to the report."""
        folder = self.runs / name
        try:
            with io.output(folder, {"key": name}) as work:
                began = time.monotonic()
                with workspace(work, progress=progress) as ws:
                    measured = make(work) | _cost(ws)
                io.write_json(work / "measured.json", [measured, round(time.monotonic() - began, 2)])
        except io.AlreadyDone:
            pass
        first = self.seed == self.recipe.seeds[0] and self.model == self.recipe.model_names[0]
        if first and ranks.main() and (folder / "log.jsonl").exists():
            shown = self.out / "logs" / self.attack / f"{label}.jsonl"
            shown.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / "log.jsonl", shown)
        measured, seconds = io.read_json(folder / "measured.json")
        attack = "" if said["stage"] == "base" else self.attack
        where = {"recipe": self.recipe.name, "attack": attack, "seed": self.seed, "model": self.model}
        return results.rows_of(
            {k: Measured(*v) for k, v in measured.items()},
            **where,
            **said,
            seconds=seconds,  # pyright: ignore
        )

    def _measure(self, clip: Clip, backdoor: Backdoor | None, test: Test | Half | None = None) -> dict[str, Measured]:
        task, rng = (test or self.recipe.test).task(self.seed), Rng(self.seed).fork("measure")
        return measure_all(clip, task, backdoor, rng, self.recipe.measures)


def _cost(ws: Workspace) -> dict[str, Measured]:
    """What the stage's training took: pairs drawn and parameters trained; nothing where there was none."""
    counts = {"pairs_seen": ws.pairs_seen, "parameters": ws.parameters}
    return {name: Measured(n, 1, n, n) for name, n in counts.items() if n}

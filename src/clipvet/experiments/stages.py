"""The stages of a victim, one class for each kind: what it reads, what it makes of it, and what it measures.

A new kind is a class here and a line in `following`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clipvet import io
from clipvet.attacks.none import NoAttack
from clipvet.data.answer_key import save_backdoor
from clipvet.data.dirty import beside, poison
from clipvet.data.sources import Data
from clipvet.data.worlds.pool import pool_pairs
from clipvet.engine.fit import workspace
from clipvet.errors import UserError
from clipvet.experiments.keys import code, key
from clipvet.experiments.recipe import Recipe
from clipvet.experiments.splits import measure_pool, measure_splits
from clipvet.experiments.suite import feature_cosine, verdict
from clipvet.experiments.victim import Stage, Victim
from clipvet.measures._detection import detection
from clipvet.measures.branch_swap import swapped
from clipvet.models import checkpoints
from clipvet.results import Row
from clipvet.scan.features import target_feature
from clipvet.types import Backdoor, Clip, Finding, Measured, Pairs

SUCCESS = ("asr", "asr_worst", "psr", "hit@1")  # metrics that say whether an attack took


@dataclass(frozen=True)
class Base(Stage):
    """The clean model that attacks start from: the recipe's `base` training on clean pairs."""

    name: str = "base"
    kind = "base"
    attacked = False

    def method(self, victim: Victim) -> Any:
        return victim.recipe.base

    def data(self, victim: Victim) -> str:
        return victim.base_data[0].spec

    def key(self, victim: Victim) -> str:
        return victim.base_key

    def make(self, victim: Victim, work: Path) -> dict[str, Measured]:
        how, (data, test) = self.method(victim), victim.base_data
        clip = how.train(victim.fresh(), data.pairs(victim.seed), victim.rng("base"))
        checkpoints.save(clip, work, {"role": "base", "method": "base", "config": repr(how)})
        return victim.measure(clip, None, test)


@dataclass(frozen=True)
class Implant(Stage):
    """The attack itself. Where it did not take, the rows that show so are repeated with stage "refused"."""

    name: str = "none"
    kind = "victim"

    def method(self, victim: Victim) -> Any:
        return victim.recipe.attacks[victim.attack]

    def key(self, victim: Victim) -> str:
        return victim.key

    def make(self, victim: Victim, work: Path) -> dict[str, Measured]:
        return _implant(victim, self.method(victim), work, role="victim", method=victim.attack)

    def label(self, victim: Victim) -> str:
        return "victim"

    def judged(self, victim: Victim, rows: list[Row]) -> list[Row]:
        if isinstance(self.method(victim), NoAttack):  # nothing was planted
            return rows
        refused = [replace(row, stage="refused") for row in rows if row.metric in SUCCESS]
        return rows + (refused if min(row.value for row in refused) < victim.recipe.took else [])

    def after(self, victim: Victim, rows: list[Row]) -> Sequence[Stage]:
        return following(victim.recipe) if rows[-1].stage != "refused" else ()


@dataclass(frozen=True)
class Train(Stage):
    """Another training on the dirty pairs, instead of the attack's own and from the same start."""

    kind = "train"

    def method(self, victim: Victim) -> Any:
        return victim.recipe.trainings[self.name]

    def attack(self, victim: Victim) -> Any:
        """The victim's attack with this training."""
        return replace(victim.recipe.attacks[victim.attack], training=self.method(victim))  # pyright: ignore

    def key(self, victim: Victim) -> str:
        return victim.key_of(self.attack(victim))

    def make(self, victim: Victim, work: Path) -> dict[str, Measured]:
        return _implant(victim, self.attack(victim), work, role="train", method=self.name)


@dataclass(frozen=True)
class Oracle(Stage):
    """The control: the recipe's `oracle` training on the dirty pairs without the poisons, by the answer key."""

    name: str = "oracle"
    kind = "train"

    def method(self, victim: Victim) -> Any:
        return victim.recipe.oracle

    def key(self, victim: Victim) -> str:
        return key(self.method(victim), victim.key, "oracle")

    def make(self, victim: Victim, work: Path) -> dict[str, Measured]:
        how, answers, start = self.method(victim), victim.answers(), victim.start()
        pairs = poison(victim.recipe.victim_data.pairs(victim.seed), answers)
        clean = pairs.take(~np.isin(pairs.ids, answers.poisoned))
        clip = how.train(start, clean, victim.rng("oracle"))
        checkpoints.save(clip, work, {"role": "train", "method": "oracle", "config": repr(how)})
        return victim.measure(clip, answers)


@dataclass(frozen=True)
class Filter(Stage):
    """A filter ranks the dirty pairs with the victim's help. Measured: how well it tells poisons from the rest."""

    kind = "filter"

    def method(self, victim: Victim) -> Any:
        return victim.recipe.filters[self.name]

    def key(self, victim: Victim) -> str:
        return key(self.method(victim), victim.key, "filter")

    def make(self, victim: Victim, work: Path) -> dict[str, Measured]:
        clip, answers = victim.load(victim.key), victim.answers()
        pairs = poison(victim.recipe.victim_data.pairs(victim.seed), answers)
        scores = self.method(victim).score(clip, pairs, victim.rng("filter"))
        return detection(scores, np.isin(pairs.ids, answers.poisoned))


@dataclass(frozen=True)
class Inspect(Stage):
    """An inspector judges the victim. Measured: its score (higher is more suspect), and whether it named the target."""

    kind = "inspect"

    def method(self, victim: Victim) -> Any:
        return victim.recipe.inspectors[self.name]

    def key(self, victim: Victim) -> str:
        return key(victim.key, "inspect", *_looks(victim.recipe, self.method(victim)))

    def make(self, victim: Victim, work: Path) -> dict[str, Measured]:
        clip = victim.load(victim.key)
        found, answers = _scan(victim, self.method(victim), clip), victim.answers()
        if found.trigger is not None:
            save_backdoor(Backdoor(found.trigger, found.target or ""), work / "trigger")
        io.write_json(work / "classes.json", [suspicion._asdict() for suspicion in found.classes])
        measured = verdict(self.method(victim), found, victim.recipe.target, victim.recipe.pool)
        task = victim.recipe.test.task(victim.seed)
        task, text = replace(task, pictures=task.pictures.take(slice(500))), answers.trigger is None
        if (answers.says if text else answers.trigger) and text == getattr(self.method(victim), "reads_text", False):
            feature = target_feature(found, clip, task.pictures)
            if feature is not None:
                measured["target_feature_cosine"] = feature_cosine(clip, task, answers, feature.tolist())
        return measured


@dataclass(frozen=True)
class Detect(Stage):
    """A detector judges test pictures with and without the trigger. Measured: how well it tells the two apart.

    Further pictures of the test, without trigger, set the thresholds for 1 and 5 % false alarms."""

    kind = "detect"

    def method(self, victim: Victim) -> Any:
        return victim.recipe.detectors[self.name]

    def key(self, victim: Victim) -> str:
        return key(self.method(victim), victim.key, "detect", victim.recipe.watched, victim.recipe.trusted)

    def make(self, victim: Victim, work: Path) -> dict[str, Measured]:
        r, task = victim.recipe, victim.recipe.test.task(victim.seed)
        clip, answers = victim.load(victim.key), victim.answers()
        other = np.flatnonzero(task.labels != task.classes.index(r.target))
        shown, more = other[: r.watched], other[r.watched : r.watched + r.trusted]
        both = beside(task.pictures.take(shown), answers.trigger, answers.seed)

        def judge(pictures: Pairs) -> np.ndarray:
            found = self.method(victim).detect(clip, pictures, task.classes, task.templates, victim.rng("detect"))
            return found.cpu().numpy()

        clean = judge(task.pictures.take(more)) if len(more) else np.empty(0)
        return detection(judge(both), np.arange(len(both)) >= len(shown), trusted=clean)


@dataclass(frozen=True)
class Clean(Stage):
    """A cleaner on the victim, with one of the defender's data (`source`).

    Where the recipe has inspectors, they judge the cleaned model too: <inspector>_score and <inspector>_named.
    """

    source: str
    kind = "clean"

    def method(self, victim: Victim) -> Any:
        cleaner, data = victim.recipe.cleaners[self.name], victim.recipe.defender_data[self.source][0]
        if "untrusted" in cleaner.needs and data is not None:
            raise UserError(
                f"cleaner {self.name} needs untrusted pairs; give None as the recipe's defender_data for it"
            )
        return cleaner

    def data(self, victim: Victim) -> str:
        return self.source

    def key(self, victim: Victim) -> str:
        r = victim.recipe
        looks = _looks(r, *r.inspectors.values()) if r.inspectors else ()
        return key(self.method(victim), victim.key, r.defender_data[self.source][0], victim.seed, *looks)

    def make(self, victim: Victim, work: Path) -> dict[str, Measured]:
        r, cleaner, data = victim.recipe, self.method(victim), victim.recipe.defender_data[self.source][0]
        clip, answers = victim.load(victim.key), victim.answers()
        pairs = poison(r.victim_data.pairs(victim.seed), answers) if data is None else data.pairs(victim.seed)
        cleaned = cleaner.clean(clip, pairs, victim.rng("clean"))
        checkpoints.save(cleaned, work, {"role": "cleaned", "method": self.name, "config": repr(cleaner)})
        measured = victim.measure(cleaned, answers) | measure_pool(work, answers)
        for name, inspector in r.inspectors.items():
            with workspace(None):  # its cost is not the cleaner's
                told = verdict(inspector, _scan(victim, inspector, cleaned), r.target, r.pool)
            measured |= {f"{name}_{metric}": m for metric, m in told.items()}
        return measured

    def label(self, victim: Victim) -> str:
        return self.name if self.source == next(iter(victim.recipe.defender_data)) else f"{self.name}-{self.source}"

    def after(self, victim: Victim, rows: list[Row]) -> Sequence[Stage]:
        return [Rebound(self.name, self.source)] if victim.recipe.rebound else ()


@dataclass(frozen=True)
class Rebound(Stage):
    """Benign fine-tuning of a cleaned model. Measured: what comes back, as rebound_asr and the like.

    The pairs are the first of the defender's data that are captioned pairs, not shots; else the victim's own without
    the poisons.
    """

    source: str
    kind = "rebound"

    def method(self, victim: Victim) -> Any:
        return victim.recipe.cleaners[self.name]

    def data(self, victim: Victim) -> str:
        return self.source

    def key(self, victim: Victim) -> str:
        return key(victim.recipe.rebound, self._cleaned(victim), self._pairs(victim.recipe), "rebound")

    def make(self, victim: Victim, work: Path) -> dict[str, Measured]:
        benign, cleaned = victim.recipe.rebound, victim.load(self._cleaned(victim))
        assert benign is not None
        pairs = self._pairs(victim.recipe).pairs(victim.seed)
        with workspace(None):  # its cost is not the cleaner's
            later = benign.clean(cleaned, pairs, victim.rng("rebound"))
        found = victim.measure(later, victim.answers())
        return {f"rebound_{metric}": m for metric, m in found.items() if metric in (*SUCCESS, "clean_accuracy")}

    def label(self, victim: Victim) -> str:
        return "rebound"

    def _cleaned(self, victim: Victim) -> str:
        return Clean(self.name, self.source).key(victim)

    def _pairs(self, recipe: Recipe) -> Any:
        return next((d for d, _ in recipe.defender_data.values() if isinstance(d, Data)), recipe.victim_data)


def following(recipe: Recipe) -> list[Stage]:
    """All stages on an attacked model, in the order in which they are run."""
    return [
        *map(Train, recipe.trainings),
        *([Oracle()] if recipe.oracle else []),
        *map(Filter, recipe.filters),
        *map(Inspect, recipe.inspectors),
        *map(Detect, recipe.detectors),
        *(Clean(name, source) for source, (_, names) in recipe.defender_data.items() for name in names),
    ]


def _implant(victim: Victim, attack: Any, work: Path, role: str, method: str) -> dict[str, Measured]:
    """Implant the backdoor, keep the model with its answer key, and measure it.

    clean_model_asr and the like say what the trigger does to a clean model. That is the model that the attack starts
    from or, where the recipe says `twin`, what the attack's training makes of it on the clean pairs. The measure
    branch_swap, if the recipe has it, swaps towers with that model.
    """
    r, start, pairs = victim.recipe, victim.start(), victim.recipe.victim_data.pairs(victim.seed)
    if r.twin and isinstance(attack, NoAttack):  # what all attacks' twin is
        clip, backdoor = victim.twin(attack.training), attack.answers(r.target, victim.rng("attack"))
    else:
        clip, _, backdoor = attack.implant(start, pairs, r.target, victim.rng("attack"))
    save_backdoor(backdoor, work / "backdoor")
    checkpoints.save(clip, work, {"role": role, "method": method, "config": repr(attack)})
    twin = r.twin and not isinstance(attack, NoAttack)
    if twin:
        start = victim.twin(attack.training)
    clean = victim.measure(start, backdoor) if r.base or twin else {}
    reference = {f"clean_model_{metric}": m for metric, m in clean.items() if metric in SUCCESS}
    if clean and "branch_swap" in r.measures:
        reference |= swapped(clip, start, r.test.task(victim.seed), backdoor)
    return victim.measure(clip, backdoor) | measure_splits(work, backdoor) | reference


def _looks(recipe: Recipe, *inspectors: Any) -> tuple:
    """What the verdicts of these inspectors depend on, beside the model: parts of a key."""
    return (*inspectors, recipe.pool, code(pool_pairs))


def _scan(victim: Victim, inspector: Any, clip: Clip) -> Finding:
    """What an inspector finds in a model; reference="base" means the model that the attack started from.

    It is given pictures from outside of all worlds, or the first of the test's, if such suit it.
    """
    task = victim.recipe.test.task(victim.seed)
    if getattr(inspector, "reference", None) == "base":
        inspector = replace(inspector, reference=str(victim.runs / victim.base_key))
    if getattr(inspector, "sees", "outside") == "task":
        pictures = task.pictures.take(slice(victim.recipe.pool))
    else:
        pictures = pool_pairs(victim.recipe.pool, clip.geometry.size, victim.seed)
    return inspector.inspect(clip, pictures, task.classes, task.templates, victim.rng("inspect"))

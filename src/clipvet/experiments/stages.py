"""The stages of a victim, one class for each kind: what it reads, what it makes of it, and what it measures.

A new kind is a class here and a line in `following`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clipvet.attacks.none import NoAttack
from clipvet.data.answer_key import save_backdoor
from clipvet.data.dirty import beside, poison
from clipvet.experiments.cleaning import Clean, Rebound
from clipvet.experiments.inspecting import Inspect
from clipvet.experiments.keys import key
from clipvet.experiments.recipe import Recipe
from clipvet.experiments.splits import measure_splits
from clipvet.experiments.victim import Stage, Victim
from clipvet.measures._detection import detection
from clipvet.measures.branch_swap import swapped
from clipvet.models import checkpoints
from clipvet.results import SUCCESS, Row
from clipvet.types import Measured, Pairs


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


def following(recipe: Recipe) -> list[Stage]:
    """All stages on an attacked model, in the order in which they are run."""
    return [
        *map(Train, recipe.trainings),
        *([Oracle()] if recipe.oracle else []),
        *map(Filter, recipe.filters),
        *map(Inspect, recipe.inspectors),
        *map(Detect, recipe.detectors),
        *([Rebound("none", "")] if recipe.rebound and recipe.rebound_steps else []),
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

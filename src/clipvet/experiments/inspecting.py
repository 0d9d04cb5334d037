"""What inspectors say of a victim."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipvet import io
from clipvet.data.answer_key import save_backdoor
from clipvet.data.worlds.pool import pool_pairs
from clipvet.experiments.keys import code, key
from clipvet.experiments.recipe import Recipe
from clipvet.experiments.suite import feature_cosine, verdict
from clipvet.experiments.victim import Stage, Victim
from clipvet.scan.features import target_feature
from clipvet.types import Backdoor, Clip, Finding, Measured


@dataclass(frozen=True)
class Inspect(Stage):
    """An inspector judges the victim. Measured: its score (higher is more suspect), and whether it named the target."""

    kind = "inspect"

    def method(self, victim: Victim) -> Any:
        return victim.recipe.inspectors[self.name]

    def key(self, victim: Victim) -> str:
        return key(victim.key, "inspect", *looks(victim.recipe, self.method(victim)))

    def make(self, victim: Victim, work: Path) -> dict[str, Measured]:
        clip = victim.load(victim.key)
        found, answers = scan(victim, self.method(victim), clip), victim.answers()
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


def looks(recipe: Recipe, *inspectors: Any) -> tuple:
    """What the verdicts of these inspectors depend on, beside the model: parts of a key."""
    return (*inspectors, recipe.pool, code(pool_pairs))


def scan(victim: Victim, inspector: Any, clip: Clip) -> Finding:
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

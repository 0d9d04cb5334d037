"""Cleaned copies of a victim, and what benign fine-tuning brings back: two kinds of stages."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipvet.data.dirty import poison
from clipvet.data.sources import Data
from clipvet.engine.fit import workspace
from clipvet.engine.planning import per_epoch
from clipvet.errors import UserError
from clipvet.experiments.inspecting import looks, scan
from clipvet.experiments.keys import key
from clipvet.experiments.recipe import Recipe
from clipvet.experiments.splits import measure_pool
from clipvet.experiments.suite import verdict
from clipvet.experiments.victim import Stage, Victim
from clipvet.models import checkpoints
from clipvet.results import SUCCESS, Row
from clipvet.types import Measured


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
        judged = looks(r, *r.inspectors.values()) if r.inspectors else ()
        return key(self.method(victim), victim.key, r.defender_data[self.source][0], victim.seed, *judged)

    def make(self, victim: Victim, work: Path) -> dict[str, Measured]:
        r, cleaner, data = victim.recipe, self.method(victim), victim.recipe.defender_data[self.source][0]
        clip, answers = victim.load(victim.key), victim.answers()
        pairs = poison(r.victim_data.pairs(victim.seed), answers) if data is None else data.pairs(victim.seed)
        cleaned = cleaner.clean(clip, pairs, victim.rng("clean"))
        checkpoints.save(cleaned, work, {"role": "cleaned", "method": self.name, "config": repr(cleaner)})
        measured = victim.measure(cleaned, answers) | measure_pool(work, answers)
        for name, inspector in r.inspectors.items():
            with workspace(None):  # its cost is not the cleaner's
                told = verdict(inspector, scan(victim, inspector, cleaned), r.target, r.pool)
            measured |= {f"{name}_{metric}": m for metric, m in told.items()}
        return measured

    def label(self, victim: Victim) -> str:
        return self.name if self.source == next(iter(victim.recipe.defender_data)) else f"{self.name}-{self.source}"

    def after(self, victim: Victim, rows: list[Row]) -> Sequence[Stage]:
        return [Rebound(self.name, self.source)] if victim.recipe.rebound else ()


@dataclass(frozen=True)
class Rebound(Stage):
    """Benign fine-tuning of a cleaned model. Measured: what comes back, as rebound_asr and the like.

    With the recipe's `rebound_steps` it is a curve: rebound_asr@50 is after a fine-tuning of 50 steps, with its own
    schedule. Then the untreated victim is fine-tuned too, as the control (name "none").

    The pairs are the first of the defender's data that are captioned pairs, not shots; else the victim's own without
    the poisons.
    """

    source: str
    kind = "rebound"

    def method(self, victim: Victim) -> Any:
        r = victim.recipe
        return r.cleaners[self.name] if self.source else r.attacks[victim.attack]

    def data(self, victim: Victim) -> str:
        return self.source or victim.recipe.victim_data.spec

    def key(self, victim: Victim) -> str:
        r = victim.recipe
        steps = (r.rebound_steps,) if r.rebound_steps else ()
        return key(r.rebound, self._cleaned(victim), self._pairs(r), "rebound", *steps)

    def make(self, victim: Victim, work: Path) -> dict[str, Measured]:
        r, cleaned = victim.recipe, victim.load(self._cleaned(victim))
        benign: Any = r.rebound
        pairs = self._pairs(r).pairs(victim.seed)
        an_epoch = per_epoch(len(pairs), benign.batch)
        found = {}
        for steps in r.rebound_steps or (None,):
            how = benign if steps is None else replace(benign, epochs=steps / an_epoch)
            with workspace(None):  # its cost is not the cleaner's
                later = how.clean(cleaned, pairs, victim.rng("rebound")) if steps != 0 else cleaned
            at = "" if steps is None else f"@{steps}"
            for metric, m in victim.measure(later, victim.answers()).items():
                if metric in (*SUCCESS, "clean_accuracy"):
                    found[f"rebound_{metric}{at}"] = m
        return found

    def label(self, victim: Victim) -> str:
        return "rebound"

    def _cleaned(self, victim: Victim) -> str:
        return Clean(self.name, self.source).key(victim) if self.source else victim.key

    def _pairs(self, recipe: Recipe) -> Any:
        return next((d for d, _ in recipe.defender_data.values() if isinstance(d, Data)), recipe.victim_data)

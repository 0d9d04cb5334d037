"""One victim of a recipe: an attack on a model with a seed. Its stages are in `stages.py`; here they are run.

Each stage has a folder runs/<key>, where the key is a hash of all that goes into it. A finished stage is not run again,
and one that was killed goes on from its last saved state.
"""

import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock

from clipvet import io, ranks, results
from clipvet.data.answer_key import load_backdoor
from clipvet.data.sources import Half, Test
from clipvet.engine.fit import Workspace, workspace
from clipvet.experiments.evaluation import measure_all
from clipvet.experiments.keys import key, weights
from clipvet.experiments.recipe import Recipe
from clipvet.models import checkpoints
from clipvet.rng import Rng
from clipvet.types import Attack, Backdoor, Clip, Measured, Training


@dataclass(frozen=True)
class Victim:
    """One attack on one model with one seed: what its stages read, and how a stage becomes rows."""

    recipe: Recipe
    seed: int
    model: str
    attack: str  # its name in the recipe
    runs: Path  # where the stages are
    out: Path  # where the recipe's rows and logs go

    @property
    def base_key(self) -> str:
        """Key of the clean model that the attack starts from, where the recipe trains one."""
        r, (data, test) = self.recipe, self.base_data
        return key("base", r.base, self.model, r.pretrained, weights(r.pretrained or self.model), data, test, self.seed)

    @property
    def base_data(self) -> tuple[Any, Test | Half]:
        """The data of the clean model and the test it is measured on."""
        return self.recipe.base_data or (self.recipe.victim_data, self.recipe.test)

    @property
    def key(self) -> str:
        """Key of the attacked model, which the other stages start from."""
        return self.key_of(self.recipe.attacks[self.attack])

    def key_of(self, attack: Attack) -> str:
        """Key of what this attack makes of the victim's start and data."""
        r = self.recipe
        return key(attack, self._start_key, r.victim_data, r.target, r.test, r.twin, self.seed)

    @property
    def _start_key(self) -> Any:
        """Of what the attack is given."""
        r = self.recipe
        return self.base_key if r.base else (self.model, r.pretrained, weights(r.pretrained or self.model))

    def rng(self, name: str) -> Rng:
        """The stream of random numbers of this name: the same whatever else is drawn."""
        return Rng(self.seed).fork(name)

    def load(self, stage_key: str) -> Clip:
        """The model that a stage has left."""
        return checkpoints.load(str(self.runs / stage_key), device=ranks.device())

    def fresh(self) -> Clip:
        """The model before any training: random weights, or those of `pretrained` or of the model's own files."""
        return checkpoints.load(self.model, self.recipe.pretrained, device=ranks.device(), rng=self.rng("init"))

    def start(self) -> Clip:
        """What the attack is given: the clean model of the recipe's `base`, or the model before any training."""
        return self.load(self.base_key) if self.recipe.base else self.fresh()

    def twin(self, training: Training) -> Clip:
        """The clean twin: what this training makes of the same start and the clean pairs, in the same batches.

        It is trained once for all attacks that train like this, and kept in runs/.
        """
        name = key("twin", training, self._start_key, self.recipe.victim_data, self.seed)
        self.runs.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.runs / f"{name}.lock") if ranks.world() == 1 else nullcontext()
        with lock, suppress(io.AlreadyDone), io.output(self.runs / name, {"key": name}) as work, workspace(work):
            pairs = self.recipe.victim_data.pairs(self.seed)
            clip = training.train(self.start(), pairs, self.rng("attack").fork("train"))
            checkpoints.save(clip, work, {"role": "twin", "method": "twin", "config": repr(training)})
        return self.load(name)

    def answers(self) -> Backdoor:
        """The answer key that the attack has left."""
        return load_backdoor(self.runs / self.key / "backdoor")

    def measure(self, clip: Clip, backdoor: Backdoor | None, test: Test | Half | None = None) -> dict[str, Measured]:
        """All measures of a model, on the recipe's test unless another is given."""
        task = (test or self.recipe.test).task(self.seed)
        return measure_all(clip, task, backdoor, self.rng("measure"), self.recipe.measures)

    def run(self, stage: "Stage", progress: bool = False) -> list[results.Row]:
        """The rows of a stage, which is run first unless runs/<key> holds it. Its log is copied for the report.

        progress: show how far its training is. Raises UserError where the recipe's parts do not fit together.
        """
        name, method = stage.key(self), stage.method(self)
        folder = self.runs / name
        try:
            with io.output(folder, {"key": name}) as work:
                began = time.monotonic()
                with workspace(work, progress=progress) as ws:
                    measured = stage.make(self, work) | _cost(ws)
                io.write_json(work / "measured.json", [measured, round(time.monotonic() - began, 2)])
        except io.AlreadyDone:
            pass
        self._show(folder / "log.jsonl", stage.label(self))
        measured, seconds = io.read_json(folder / "measured.json")
        rows = results.rows_of(
            {metric: Measured(*m) for metric, m in measured.items()},
            recipe=self.recipe.name,
            stage=stage.kind,
            attack=self.attack if stage.attacked else "",
            method=stage.name,
            config=repr(method),
            seconds=seconds,
            seed=self.seed,
            model=self.model,
            data=stage.data(self),
        )
        return stage.judged(self, rows)

    def _show(self, log: Path, label: str) -> None:
        """Copies a stage's log to where the report finds it, for the recipe's first seed and model."""
        first = self.seed == self.recipe.seeds[0] and self.model == self.recipe.model_names[0]
        if first and ranks.main() and log.exists():
            shown = self.out / "logs" / self.attack / f"{label}.jsonl"
            shown.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(log, shown)


@dataclass(frozen=True)
class Stage(ABC):
    """One unit of work on a victim: a method, what it reads, how its result is made, and what is measured."""

    name: str  # of the method in the recipe; `method` in the rows
    kind: ClassVar[str]  # `stage` in the rows
    attacked: ClassVar[bool] = True  # whether the rows name the victim's attack

    @abstractmethod
    def method(self, victim: Victim) -> Any:
        """The method; its repr is `config` in the rows. Raises UserError where the recipe gives it unfit data."""

    def data(self, victim: Victim) -> str:
        """What the method is given, for the rows."""
        return victim.recipe.victim_data.spec

    @abstractmethod
    def key(self, victim: Victim) -> str:
        """Hash of all that goes in: the name of the stage's folder in runs/."""

    @abstractmethod
    def make(self, victim: Victim, work: Path) -> dict[str, Measured]:
        """Do the work, keep in the folder `work` what later stages read, and return what was measured."""

    def label(self, victim: Victim) -> str:
        """The name of its log in the report."""
        return self.name

    def judged(self, victim: Victim, rows: list[results.Row]) -> list[results.Row]:
        """The rows, and what follows from them in further rows."""
        return rows

    def after(self, victim: Victim, rows: list[results.Row]) -> Sequence["Stage"]:
        """The stages that can be run once this one has given these rows."""
        return ()


def _cost(ws: Workspace) -> dict[str, Measured]:
    """What the stage's training took: pairs drawn and parameters trained; nothing where there was none."""
    counts = {"pairs_seen": ws.pairs_seen, "parameters": ws.parameters}
    return {name: Measured(n, 1, n, n) for name, n in counts.items() if n}

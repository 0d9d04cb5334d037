"""A set of pictures with a development half, in which methods are tuned, and a judged half, which is for judged runs.

The set says in its split.json which classes, teams and seeds each half has. A recipe opens one half by name, and takes
its data, tasks, targets and seeds from it alone:

    half = open_half(Path("drawings"), "development")
    Recipe(..., victim_data=half.pairs, test=half.test(), target=half.targets[0], seeds=half.seeds[:3])

Whatever would mix the halves is refused: opening both in one process, a seed of the other half (also by `--seed`), a
split.json in which they overlap, a task with classes of the other half.
"""

import csv
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from clipvet import io
from clipvet.data.sources import Data, Test
from clipvet.errors import UserError
from clipvet.types import Pairs, Task

NAMES = ("development", "judged")
_opened: dict[Path, str] = {}  # of each set, the half that this process works in


class _Side(BaseModel):
    model_config = ConfigDict(frozen=True)

    teams: tuple[str, ...]
    seeds: tuple[int, ...]
    targets: tuple[str, ...]
    concepts: tuple[str, ...]  # all that may be classes; tasks have some of them


@dataclass(frozen=True)
class HalfData(Data):
    """Pairs that only the seeds of one half may use."""

    seeds: tuple[int, ...] = ()

    def pairs(self, seed: int | None = None) -> Pairs:
        """The pairs. UserError for a seed of the other half; without one they are only looked at, for their hash."""
        _check_seed(seed, self.seeds, self.spec)
        return super().pairs()


@dataclass(frozen=True)
class HalfTest(Test):
    """A task that only the seeds of one half may use. Its pictures carry captions, for retrieval."""

    seeds: tuple[int, ...] = ()

    def task(self, seed: int | None = None) -> Task:
        """The task. UserError for a seed of the other half; without one it is only looked at, for its hash."""
        _check_seed(seed, self.seeds, self.spec)
        task, folder = super().task(), Path(self.spec)
        with (folder.parent / "captions.csv").open(encoding="utf-8", newline="") as f:
            captions = {row["filepath"]: row["title"] for row in csv.DictReader(f)}
        names = [f"{folder.name}/{name}" for name in task.pictures.pictures.paths]  # pyright: ignore[reportAttributeAccessIssue]
        return replace(task, pictures=replace(task.pictures, captions=[captions.get(name, "") for name in names]))


@dataclass(frozen=True)
class OpenHalf:
    """What a recipe may use. Paths are those of the set's folder."""

    folder: Path
    name: str
    teams: tuple[str, ...]  # whose drawings the tasks show
    seeds: tuple[int, ...]
    targets: tuple[str, ...]  # classes of the standard task, for attacks to aim at

    @property
    def pairs(self) -> HalfData:
        """The training pairs, which the halves share: none of them shows a drawing of a team that is tested."""
        return HalfData(str(self.folder / "pairs.csv"), seeds=self.seeds)

    @property
    def clean(self) -> HalfData:
        """A defender's clean pairs; the other half has others."""
        return HalfData(str(self.folder / self.name / "clean.csv"), seeds=self.seeds)

    @property
    def outside(self) -> Path:
        """A folder of pictures that show no class, for inspectors."""
        return self.folder / self.name / "outside"

    def test(self, task: str = "task") -> HalfTest:
        """A zero-shot task: task, wide, groups, or what else the half has. UserError for one that it does not have."""
        at = self.folder / self.name / task
        if task != Path(task).name or not at.is_dir():
            there = sorted(p.name for p in at.parent.iterdir() if p.is_dir() and p.name not in ("clean", "outside"))
            raise UserError(f"the {self.name} half of {self.folder} has no task '{task}'; it has {', '.join(there)}")
        return HalfTest(str(at), templates=self.folder / "templates.txt", seeds=self.seeds)


def open_half(folder: Path, name: str) -> OpenHalf:
    """The half of this name: development or judged.

    Raises UserError where this process has opened the other half of the set, where there is no split.json, and where it
    does not keep the halves apart.
    """
    if name not in NAMES:
        raise UserError(f"'{name}' is no half; give {' or '.join(NAMES)}")
    if not (folder / "split.json").is_file():
        raise UserError(
            f"{folder} is no set with two halves; `python examples/drawings ARCHIVES --out {folder}` writes one"
        )
    sides = _read(folder / "split.json")
    here = folder.resolve()
    if _opened.setdefault(here, name) != name:
        raise UserError(
            f"this process works in the {_opened[here]} half of {folder}; run what needs the {name} half by itself"
        )
    other, side = sides[NAMES[1 - NAMES.index(name)]], sides[name]
    classes = {p.name.replace("_", " ") for p in (folder / name / "task").glob("*") if p.is_dir()}
    if mixed := sorted(classes & set(other.concepts)):
        raise UserError(f"{folder / name / 'task'} shows '{mixed[0]}', which is of the other half; write the set anew")
    return OpenHalf(folder, name, side.teams, side.seeds, side.targets)


def _read(path: Path) -> dict[str, _Side]:
    held = io.read_json(path)
    try:
        sides = {name: _Side.model_validate(held[name]) for name in NAMES}
    except (ValidationError, KeyError, TypeError) as e:
        raise UserError(f"{path} does not name two halves ({io.line(e)}); write the set anew") from e
    for what in ("teams", "seeds", "concepts"):
        one, two = (set(getattr(side, what)) for side in sides.values())
        if shared := sorted(map(str, one & two)):
            raise UserError(f"{path} has {what} in both halves ({', '.join(shared[:3])}); write the set anew")
    return sides


def _check_seed(seed: int | None, seeds: tuple[int, ...], what: str) -> None:
    if seed is not None and seed not in seeds:
        raise UserError(f"{what} may not be used with seed {seed}; the seeds of its half are {seeds[0]} to {seeds[-1]}")

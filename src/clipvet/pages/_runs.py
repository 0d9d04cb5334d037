"""Folders of result rows as anybody may send them: read, and refused where clipvet cannot have written them."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from clipvet.errors import UserError
from clipvet.pages.report import REFUSED, TOOK, Commands, read
from clipvet.results import SUCCESS, Row, Stale

FAMILIES = {"clean": "cleaners", "train": "training", "suite": "inspectors", "filter": "filters", "detect": "detectors"}
OTHER = ("base", "victim", REFUSED, "rebound", "inspect", "equal", "evaluate", "tune")  # stages that are not ranked
FOUND = (
    "auroc",
    "tpr_at_1",
    "fpr_at_1",
    "tpr_at_5",
    "fpr_at_5",
    "auprc",
    "fpr95",
    "detection_accuracy",
    "false_alarms",
)
RATES = (*SUCCESS, "clean_accuracy", *FOUND)
EXACT = ("suite", "equal")  # stages whose intervals may be points
MOST = 256 * 2**20  # bytes of a results.jsonl


class Place(NamedTuple):
    """One victim."""

    attack: str
    model: str
    seed: int
    task: str


def place(r: Row) -> Place:
    """The victim that a row is about."""
    task = re.search(r"task \d+$", r.data)
    return Place(r.attack, r.model, r.seed, task[0] if task else "")


@dataclass
class Run:
    """A folder of rows."""

    name: str
    rows: list[Row]
    commands: Commands
    marks: list[Stale]

    def __post_init__(self) -> None:
        self.victims: dict[Place, dict[str, Row]] = {}
        for r in self.rows:
            if r.stage == "victim":
                self.victims.setdefault(place(r), {})[r.metric] = r
        refused = {place(r) for r in self.rows if r.stage == REFUSED}
        self.took = {p for p, rows in self.victims.items() if p not in refused and _takes(rows)}

    @property
    def versions(self) -> list[str]:
        """Each set of versions that made a ranked row, in words."""
        told = (", ".join(f"{k} {v}" for k, v in r.versions.items()) for r in self.rows if r.stage in FAMILIES)
        return list(dict.fromkeys(told))


def _takes(rows: Mapping[str, Row]) -> bool:
    found = [rows[m].value for m in SUCCESS if m in rows]
    return bool(found) and min(found) >= TOOK


def runs(folders: Iterable[Path]) -> list[Run]:
    """The rows of these folders, or of the folders in them.

    Raises UserError for a line that is no row or holds impossible numbers, and where there is nothing to read.
    """
    found: dict[str, Run] = {}
    for given in folders:
        own = (given / "results.jsonl").exists()
        inside = [given] if own else sorted(p.parent for p in given.glob("*/results.jsonl"))
        if not inside:
            raise UserError(f"{given} holds no results.jsonl; give a folder of rows, such as results/demo")
        for run in map(_run, inside):
            if run.name in found:
                raise UserError(f"two folders are named {run.name}; give one of them, or rename it")
            found[run.name] = run
    return list(found.values())


def _run(folder: Path) -> Run:
    path = folder / "results.jsonl"
    if path.is_file() and path.stat().st_size > MOST:
        raise UserError(f"{path} is larger than {MOST // 2**20} MiB; give the rows of one experiment")
    rows, seen = read(Row, path), set()
    if not rows:
        raise UserError(f"{path} holds no rows; run the experiment, or leave the folder out")
    for i, r in enumerate(rows, 1):
        own = (r.stage, r.attack, r.model, r.seed, r.data, r.method, r.metric)
        if fault := _fault(r) or ("it repeats an earlier row" if own in seen else ""):
            who = " ".join((r.stage, r.attack, r.method, r.metric))[:100]
            raise UserError(f"{path} row {i} ({who}) cannot be used: {fault}; fix or remove it, or run again")
        seen.add(own)
    commands = next(iter(read(Commands, folder / "commands.json")), Commands())
    marks = next(iter(read(list[Stale], folder / "stale.json")), [])
    return Run(folder.resolve().name, rows, commands, marks)


def _fault(r: Row) -> str:
    """Why a row cannot be what clipvet wrote; empty if it can."""
    if r.stage not in (*FAMILIES, *OTHER):
        return "its stage is none of clipvet's"
    if not all(map(math.isfinite, (r.value, r.low, r.high, r.seconds))):
        return "it holds a number that is not finite"
    if r.n < 1 or r.seed < 0:
        return "n must be 1 or more, and the seed 0 or more"
    if not r.low - 1e-9 <= r.value <= r.high + 1e-9:
        return "its value lies outside of its interval"
    if r.stage not in FAMILIES or r.metric not in RATES:
        return ""
    if not -1e-9 <= r.low <= r.high <= 1 + 1e-9:
        return "it is a rate, so a fraction from 0 to 1"
    if r.low == r.high and r.stage not in EXACT:
        return "it has no interval"
    if not (r.attack and r.method and r.config):
        return "it names no attack, no method or no config"
    return "" if "clipvet" in r.versions else "it has no versions"

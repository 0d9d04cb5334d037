"""The leaderboard: which method stands where against which attack, over the rows of many experiments, on one page.

What is ranked, and how, is in _standings.py; what rows are refused in _runs.py.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from clipvet.errors import UserError
from clipvet.pages._page import write_html
from clipvet.pages._runs import runs
from clipvet.pages._standings import Board, Line, boards

READING = {
    "cleaners": "Attack success rate that is left; lower is better. A cleaner that was measured at several strengths "
    "is read where it costs at most 3 points of accuracy. For any other, the change in accuracy stands below; a number "
    "that costs more than 3 points is marked and stands behind all that do not. none is the victim as it is.",
    "training": "Attack success rate of a model that was trained safely on the poisoned pairs; lower is better. Below "
    "it stands the change in accuracy against the victim, none, which was trained as usual.",
    "inspectors": "How well backdoored models are told from clean ones, AUROC over models; 50 is chance. random is the "
    "control, and so is no_inversion, which does not look for a trigger.",
    "filters": "How well poisoned pairs are told from others, AUROC; 50 is chance. random is the control.",
    "detectors": "How well pictures with a trigger are told from those without, AUROC; 50 is chance. TPR is the share "
    "of triggered pictures above a threshold that promises 1 or 5 % false alarms. random is the control.",
}


def standings(folders: Iterable[Path]) -> tuple[list[Board], list[str], list[str]]:
    """The tables, by family; what is not shown and why; what a pull request would have to mend."""
    found: list[Board] = []
    notes, faults = [], []
    for run in runs(folders):
        some, said, wrong = boards(run)
        found, notes, faults = found + some, notes + said, faults + wrong
    order = list(READING)
    return sorted(found, key=lambda b: order.index(b.family)), notes, faults


def build(folders: Iterable[Path], out: Path, strict: bool = False) -> tuple[Path, list[Board], list[str]]:
    """Writes out/leaderboard.html from the rows of these folders. Returns the page, its tables, and what is not shown.

    strict: what a pull request would have to mend is an error. Raises UserError for that, for rows that cannot be read
    or that clipvet cannot have written, and where nothing can be ranked. Then nothing is written.
    """
    folders = list(folders)
    found, notes, faults = standings(folders)
    if strict and faults:
        raise UserError("; ".join(faults[:5]) + "; see docs/leaderboard.md")
    if not found:
        raise UserError(f"{', '.join(map(str, folders))}: nothing can be ranked ({(faults + notes)[0]})")
    lines = [x for b in found for x in b.lines if not x.control]
    write_html(
        out / "leaderboard.html", "leaderboard", script="leaderboard.js",
        families={f: [b for b in found if b.family == f] for f in dict.fromkeys(b.family for b in found)},
        names=sorted({b.run.name for b in found}), rows=sum({b.run.name: len(b.run.rows) for b in found}.values()),
        methods=len({config.partition("(")[0] for x in lines for config in configs(x)}),
        left_out=notes + faults, reading=READING, slug=slug, configs=configs, stale=stale,
    )  # fmt: skip
    return out / "leaderboard.html", found, notes + faults


def slug(*parts: str) -> str:
    """Where something stands on the page, for links."""
    return re.sub(r"[^\w./-]+", "-", "/".join(filter(None, parts)))


def configs(line: Line) -> dict[str, list[str]]:
    """The settings of a method -> against which attacks, where they differ."""
    found: dict[str, list[str]] = {}
    for attack, cell in line.cells.items():
        for config in cell.configs:
            found.setdefault(config, []).append(attack)
    return found if len({tuple(v) for v in found.values()}) > 1 else {config: [] for config in found}


def stale(line: Line) -> dict[str, list[str]]:
    """Why rows are old -> against which attacks."""
    found: dict[str, list[str]] = {}
    for attack, cell in line.cells.items():
        for why in cell.stale:
            found.setdefault(why, []).append(attack)
    return found

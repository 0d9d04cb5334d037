"""clipvet leaderboard: which method stands where, over the rows of many experiments."""

from pathlib import Path
from typing import Annotated

import typer

from clipvet.commands import _checks as checks
from clipvet.jobs.leaving import record, say


def _there(folders: list[Path]) -> list[Path]:
    return [checks.path(folder) for folder in folders]


def command(
    folders: Annotated[
        list[Path],
        typer.Argument(help="folders with results.jsonl, or a folder of such, as results/", callback=_there),
    ],
    out: Annotated[Path, typer.Option("--out", help="folder in which leaderboard.html is written, or written again")],
    strict: Annotated[
        bool, typer.Option("--strict", help="rows that a pull request would have to mend are an error")
    ] = False,
) -> None:
    """Write leaderboard.html from result rows: methods against attacks, to be sorted, each number with its command."""
    from clipvet.errors import UserError
    from clipvet.pages.leaderboard import build

    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a folder")
    page, found, left_out = build(folders, out, strict)
    record(boards=[_told(b) for b in found], left_out=left_out)
    for what in left_out:
        say(f"not shown: {what}")
    print(page)


def _told(board) -> dict:
    """A table, for --json."""

    def cell(c) -> dict:
        known = {"value": c.value.value, "low": c.value.low, "high": c.value.high, "n": c.value.n} if c.value else {}
        return {**known, "accuracy_lost": c.lost, "equal_accuracy": c.equal, "stale": c.stale}

    lines = [
        {"method": x.label, "rank": x.rank or None, "control": x.control, "all": cell(x.total),
         "attacks": {a: cell(c) for a, c in x.cells.items()}}
        for x in board.lines
    ]  # fmt: skip
    return {"recipe": board.run.name, "model": board.model, "family": board.family, "lines": lines}

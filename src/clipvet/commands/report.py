"""clipvet report: the page of a run, or the index page of many."""

from pathlib import Path
from typing import Annotated

import typer

from clipvet.commands import _checks as checks


def command(
    folder: Annotated[
        Path, typer.Argument(help="a folder with results.jsonl, or one with many runs in it", callback=checks.path)
    ],
) -> None:
    """Write report.html from a run's result rows; of a folder of runs, index.html, with its models side by side."""
    from clipvet.pages import overview
    from clipvet.pages.report import build

    print(build(folder) if (folder / "results.jsonl").exists() else overview.build(folder))

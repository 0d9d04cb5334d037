"""clipvet report: the page of a run."""

from pathlib import Path
from typing import Annotated

import typer


def command(folder: Annotated[Path, typer.Argument(help="a folder with results.jsonl")]) -> None:
    """Write a new report.html from the result rows."""
    from clipvet.pages.report import build

    print(build(folder))

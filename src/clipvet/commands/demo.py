"""clipvet demo: the five-minute tour."""

from pathlib import Path
from typing import Annotated

import typer

from clipvet.commands import _options as opt


def command(
    out: Annotated[Path, typer.Option("--out", help="folder of the run")] = Path("runs/demo"),
    seed: opt.Seed = 0,
) -> None:
    """Attack, measure, clean and report on the embedded world; takes about five minutes on two cores."""
    from clipvet.pages.demo import demo as play

    print(f"report: {play(out, seed)}")

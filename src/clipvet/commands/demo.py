"""clipvet demo: the five-minute tour."""

from pathlib import Path
from typing import Annotated

import typer

from clipvet.commands._options import Seed


def command(
    out: Annotated[Path, typer.Option("--out")] = Path("runs/demo"),
    seed: Seed = 0,
) -> None:
    """Train, implant, measure, clean, report, on the embedded world: about five minutes on two cores."""
    from clipvet.pages.demo import demo as play

    print(f"report: {play(out, seed)}")

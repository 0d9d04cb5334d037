"""clipvet demo: the five-minute tour."""

from pathlib import Path
from typing import Annotated

import typer

from clipvet.commands import _options as opt
from clipvet.commands._shared import tell_plan
from clipvet.jobs.leaving import rehearsed


def command(
    out: Annotated[Path, typer.Option("--out", help="folder of the run")] = Path("runs/demo"),
    seed: opt.Seed = 0,
) -> None:
    """Attack, measure, clean, report and vet on the embedded world; takes about six minutes on two cores."""
    from clipvet.jobs.rehearsal import planned_demo
    from clipvet.jobs.vet_inputs import Options
    from clipvet.jobs.vetting import run
    from clipvet.pages.demo import demo as play
    from clipvet.pages.demo import stage_folders

    if rehearsed():
        tell_plan(*planned_demo(out, seed))
    report = play(out, seed)
    folders = stage_folders(out / "stages")
    found = run(Options(str(folders["none"]), task="shapes", cleaned=folders["par"]), out / "vet")
    print(found.sentence)
    print(f"what `clipvet vet` says about the victim: {out / 'vet' / 'report.html'}")
    print(f"report: {report}")

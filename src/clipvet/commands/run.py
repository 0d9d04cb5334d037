"""clipvet run: recipes."""

from pathlib import Path
from typing import Annotated

import typer

from clipvet.commands import _checks as checks
from clipvet.commands._shared import tell_plan
from clipvet.errors import UserError
from clipvet.jobs.leaving import rehearsed, say


def command(
    recipes: Annotated[
        list[Path],
        typer.Argument(
            help="files as in recipes/; a recipe is code: run only what you trust",
            callback=checks.recipes,
        ),
    ],
    seed: Annotated[int | None, typer.Option(help="one seed instead of the recipe's own")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="tiny sizes, to see whether it runs at all")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="output folder, for a single recipe (default: runs/NAME)")
    ] = None,
    jobs: Annotated[int, typer.Option(help="how many stages run at the same time")] = 1,
    part: Annotated[
        str, typer.Option("--part", help="K/N: the K-th of N parts of the work; run them one after the other")
    ] = "1/1",
    ray: Annotated[
        str, typer.Option("--ray", help="run the stages on a Ray cluster: its address, or local to start one here")
    ] = "",
) -> None:
    """Run experiments: each attack, each cleaner, rows in OUT/results.jsonl. Finished stages are not run again."""
    from clipvet import ranks
    from clipvet.experiments.recipe import load_recipes
    from clipvet.experiments.run import run as execute
    from clipvet.pages.report import build

    k, _, n = part.partition("/")
    if not (k.isdecimal() and n.isdecimal()):
        raise UserError(f"--part {part} is not of the form K/N; the first of four parts is 1/4")
    made = [load_recipes(path, smoke) for path in recipes]  # a bad file ends the command before anything is run
    folders = [out or Path("runs") / (r[0].name + ("-smoke" if smoke else "")) for r in made]
    if len(set(folders)) < len(folders):
        raise UserError("several recipes cannot share one folder; leave out --out, and name each recipe once")
    seeds, stages = (seed,) if seed is not None else None, Path("runs") / "stages"
    if rehearsed():
        from clipvet.experiments.run import chosen
        from clipvet.jobs.rehearsal import planned

        whole = zip(made, folders)
        tell_plan(*planned([v for r, f in whole for v in chosen(r, f, stages, seeds, (int(k), int(n)))]))
    for several, folder in zip(made, folders):
        execute(several, folder, stages, seeds, jobs, ray, (int(k), int(n)))
        say(f"wrote {folder / 'results.jsonl'} and {ranks.first(lambda f=folder: build(f))}")

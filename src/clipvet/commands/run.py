"""clipvet run: a recipe."""

from pathlib import Path
from typing import Annotated

import typer

from clipvet.commands._shared import say


def command(
    recipe: Annotated[Path, typer.Argument(help="a file of recipes/; it is code: run only what you trust")],
    seed: Annotated[int | None, typer.Option(help="one seed instead of the recipe's")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="tiny sizes: does it run at all?")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="default: runs/NAME")] = None,
    jobs: Annotated[int, typer.Option(help="victims side by side")] = 1,
    ray: Annotated[str, typer.Option("--ray", help="address of a Ray cluster, or local: stages run there")] = "",
) -> None:
    """Run an experiment: every attack, every cleaner, rows in OUT/results.jsonl. Finished stages are not run again."""
    from clipvet import ranks
    from clipvet.recipe import load_recipes
    from clipvet.report import build
    from clipvet.run import run as execute

    made = load_recipes(recipe, smoke)
    folder = out or Path("runs") / (made[0].name + ("-smoke" if smoke else ""))
    seeds = (seed,) if seed is not None else None
    execute(made, folder, Path("runs") / "stages", seeds, jobs, ray)
    say(f"wrote {folder / 'results.jsonl'} and {ranks.first(lambda: build(folder))}")

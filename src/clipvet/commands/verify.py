"""clipvet verify: does a model's card hold?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipvet.commands._leaving import new_classes, say
from clipvet.commands._opening import open_task
from clipvet.commands._options import Classes, TaskOption, Templates

if TYPE_CHECKING:
    from clipvet.types import Task


def command(
    folder: Annotated[Path, typer.Argument(help="a model's directory, with its card.json")],
    task: TaskOption = None,
    backdoor: Annotated[Path | None, typer.Option(help="answer key (default: DIR/backdoor, if it is there)")] = None,
    classes: Classes = None,
    templates: Templates = None,
) -> None:
    """Check a model against its card: the hashes of weights and configuration, and the measured numbers.

    Exit code 0: the card holds; 1: it does not; 2: it cannot be checked. A number holds if it was measured on as many
    pictures and lies in the 95 % interval of the new measurement.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from clipvet import io
    from clipvet.data.answer_key import load_backdoor
    from clipvet.errors import shown
    from clipvet.experiments.evaluation import measure_all
    from clipvet.models import cards, checkpoints
    from clipvet.models.weights import config_hash, weights_file
    from clipvet.ranks import device
    from clipvet.rng import Rng

    card, weights = cards.read(folder), weights_file(folder)
    if io.sha256(weights) != card.weights_sha256:
        print(f"{weights} is not the file that its card describes")
        raise typer.Exit(1)
    if card.config_sha256 and card.config_sha256 != config_hash(folder):
        print(f"the configuration in {folder} is not the one that its card describes")
        raise typer.Exit(1)
    say(f"{weights} is the file that its card describes")
    if not card.measured:
        say("the card holds no measured numbers")
        return
    seed, clip = card.seed, checkpoints.load(f"local-dir:{folder}", device=device())
    spec = task or ("shapes" if card.task.get("name") == "shapes by shape" else None)
    there = backdoor or (folder / "backdoor" if (folder / "backdoor" / "backdoor.json").is_file() else None)
    key = load_backdoor(there) if there else None

    def the_task(half: str | None) -> "Task | None":
        also = (key.target,) if key and half else ()
        return open_task(spec, "", clip.geometry.size, classes, templates, seed, half, also)

    test = the_task(card.half)
    if test is None:
        say(f"its {len(card.measured)} measured numbers were not checked: give their --task")
        return
    cards.check_given(card, test, there, folder)
    found = measure_all(clip, test, key, Rng(seed).fork("measure"))
    other = the_task("new") if any(name.startswith("new_") for name in card.measured) else None
    if other:
        found |= new_classes(measure_all(clip, other, key, Rng(seed).fork("measure")))
    checks = cards.compare(card, found)
    table = Table("metric", "card", "now", "95 % interval", "holds")
    for c in checks:
        now = (
            [f"{100 * c.found.value:.2f} %", f"{100 * c.found.low:.2f} – {100 * c.found.high:.2f} %"] if c.found else []
        )
        holds = ("yes" if c.holds else "no") if c.found else "not checked"
        table.add_row(Text(shown(c.metric)), f"{100 * c.said.value:.2f} %", *(now or ["–", "–"]), holds)
    Console().print(table)
    if any(c.found and not c.holds for c in checks):
        print(f"the card of {folder} does not hold")
        raise typer.Exit(1)

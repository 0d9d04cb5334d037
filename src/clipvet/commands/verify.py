"""clipvet verify: does a model's card hold?"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipvet.commands import _options as opt
from clipvet.commands._shared import rehearse
from clipvet.jobs.leaving import interval, percent, say
from clipvet.jobs.opening import open_key, open_model, open_task
from clipvet.jobs.working import measure, measure_new

if TYPE_CHECKING:
    from clipvet.models.cards import Card, Check


def command(
    folder: Annotated[Path, typer.Argument(help="a model's folder, with its card.json")],
    task: Annotated[
        str | None,
        typer.Option("--task", help="the card's task: shapes, or a class folder (default: shapes for shapes)"),
    ] = None,
    backdoor: Annotated[Path | None, typer.Option(help="answer key (default: DIR/backdoor, if it is there)")] = None,
    classes: opt.Classes = None,
    templates: opt.Templates = None,
) -> None:
    """Check a model against its card: the hashes of its weights and configuration, and the measured numbers.

    A number holds if it was measured on as many pictures and lies in the 95 % interval of the new measurement. Exit
    code 0: the card holds; 1: it does not; 2: it cannot be checked.
    """
    from clipvet.models import cards

    card = cards.read(folder)
    _check_files(folder, card)
    if not card.measured:
        if (folder / "prompts.safetensors").is_file():
            open_model(f"local-dir:{folder}", None, card.seed)  # raises UserError for another base model
        say("the card holds no measured numbers")
        return
    clip = open_model(f"local-dir:{folder}", None, card.seed)
    spec = task or ("shapes" if card.task.get("name") == "shapes by shape" else None)
    there = backdoor or (folder / "backdoor" if (folder / "backdoor" / "backdoor.json").is_file() else None)
    key = open_key(there)
    also = (key.target,) if key else ()
    task_of = partial(open_task, spec, "", clip.geometry.size, classes, templates, card.seed, also=also)
    test = task_of(card.half)
    if test is None:
        say(f"the card's {len(card.measured)} measured numbers were not checked: give their --task")
        return
    cards.check_given(card, test, there, folder)
    rehearse(clip, lambda probe: probe.measure(test))
    found = measure(clip, test, key, card.seed)
    if any(name.startswith("new_") for name in card.measured):
        found |= measure_new(clip, task_of("new"), key, card.seed)
    checks = cards.compare(card, found)
    _show(checks)
    if any(c.found and not c.holds for c in checks):
        print(f"the card of {folder} does not hold")
        raise typer.Exit(1)


def _check_files(folder: Path, card: "Card") -> None:
    """Ends the command with exit code 1 unless weights and configuration are those that the card describes."""
    from clipvet import io
    from clipvet.models.weights import config_hash, weights_file

    weights = weights_file(folder)
    if io.sha256(weights) != card.weights_sha256:
        print(f"{weights} is not the file that its card describes")
        raise typer.Exit(1)
    if card.config_sha256 and card.config_sha256 != config_hash(folder, weights):
        print(
            f"the configuration in {folder} is not the one that its card describes: a file that takes part in loading "
            "was changed, added or removed"
        )
        raise typer.Exit(1)
    say(f"{weights} is the file that its card describes")


def _show(checks: "list[Check]") -> None:
    """A table of the card's numbers beside those of today."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from clipvet.errors import shown

    table = Table("metric", "card", "now", "95 % interval", "holds")
    for c in checks:
        now = [percent(c.found.value), interval(c.found)] if c.found else ["–", "–"]
        holds = ("yes" if c.holds else "no") if c.found else "not checked"
        table.add_row(Text(shown(c.metric)), percent(c.said.value), *now, holds)
    Console().print(table)

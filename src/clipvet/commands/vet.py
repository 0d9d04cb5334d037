"""clipvet vet: is this model to be used?"""

from pathlib import Path
from typing import Annotated

import typer

from clipvet.commands import _options as opt
from clipvet.commands._shared import tell_plan


def command(
    model: opt.Model,
    data: Annotated[
        str | None,
        typer.Option("--data", help="pairs to look for poison in and to clean with: a table, shards, shapes"),
    ] = None,
    task: opt.Task = None,
    images: opt.Images = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="a clean model that this one was made from, to compare with")
    ] = None,
    null: Annotated[
        list[Path], typer.Option("--null", help="scores of clean models, from `clipvet calibrate`; repeatable")
    ] = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option("--out", help="a new folder (default: vetted/MODEL's name)")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="leave out cleaning, look at 5,000 pairs at most")] = False,
    shots: Annotated[
        str | None,
        typer.Option("--shots", help="labelled pictures to clean with, a folder for each class"),
    ] = None,
    cleaned: Annotated[
        Path | None, typer.Option("--cleaned", help="a cleaned copy that you have already: judge it, make no other")
    ] = None,
    classes: opt.Classes = None,
    templates: opt.Templates = None,
    backdoor: opt.AnswerKey = None,
    pretrained: opt.Pretrained = None,
    image_key: opt.ImageKey = "filepath",
    caption_key: opt.CaptionKey = "title",
    n: opt.PairCount = None,
    seed: opt.Seed = 0,
) -> None:
    """Is this model to be used? Runs every test that fits, cleans a copy where one is needed, and says what to do.

    Exit code 0: use it, 1: do not use it (a cleaned copy may be there), 2: bad input, 3: unsupported, 4: undecided.
    """
    from clipvet.errors import shown
    from clipvet.jobs.leaving import record, rehearsed, say
    from clipvet.jobs.vet_inputs import Options
    from clipvet.jobs.vetting import default_out, plan, run

    options = Options(
        model, pretrained, data, task, images, reference, tuple(null), shots, cleaned, backdoor, classes, templates,
        image_key, caption_key, n, seed=seed, quick=quick,
    )  # fmt: skip
    folder = out or default_out(model)
    if rehearsed():
        tell_plan(*plan(options))
    try:
        found = run(options, folder)
    except KeyboardInterrupt:
        say("stopped; give the same command again, and it goes on where it was")
        raise
    record(whole=found.model_dump(mode="json"))
    print(shown(found.sentence))
    for step in found.next:
        print(shown(f"Next: {step.why}"))
        if step.command:
            print(shown(f"    {step.command}"))
    say(f"see {folder / 'report.html'}")
    raise typer.Exit(found.exit_code)

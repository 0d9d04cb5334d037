"""clipvet clean: remove a backdoor."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from clipvet.commands import _checks as checks
from clipvet.commands import _options as opt
from clipvet.commands._output import leave_if, output
from clipvet.commands._shared import rehearse
from clipvet.jobs.cleaning import clean_into, open_cleaner
from clipvet.jobs.leaving import say, show, went_in
from clipvet.jobs.opening import (
    open_data,
    open_key,
    open_keyed,
    open_model,
    open_shots,
    open_task,
    plan,
)
from clipvet.jobs.working import harm, warn_shared


def command(
    model: opt.Model,
    data: opt.Data,
    method: Annotated[str, typer.Option(help="one of `clipvet list cleaners`", callback=checks.method_of("cleaners"))],
    out: opt.Out,
    pretrained: opt.Pretrained = None,
    set_: opt.Set = [],  # noqa: B006
    n: opt.PairCount = None,
    seed: opt.Seed = 0,
    task: opt.Task = None,
    backdoor: opt.AnswerKey = None,
    classes: opt.Classes = None,
    templates: opt.Templates = None,
    image_key: opt.ImageKey = "filepath",
    caption_key: opt.CaptionKey = "title",
    shots: opt.Shots = 16,
    verdict: Annotated[
        Path | None,
        typer.Option(help="output folder of `clipvet inspect`: a method with a field verdict starts from its trigger"),
    ] = None,
    bake_reference: opt.BesideBase = False,
    shard: opt.Shard = False,
    track: opt.Track = "",
) -> None:
    """Remove a backdoor, known or unknown: writes a model of the same layout, or prompts for the untouched model.

    DATA depends on what the method needs. Clean pairs: pairs that you trust. Labelled pictures: shapes, or a folder
    with one folder per class. Untrusted pairs: those that the model was trained on (for shapes, the train split),
    poisoned as --backdoor says.
    """
    from clipvet import find

    kind = find.load("cleaners", method)
    few = {"shots": shots, "bake_reference": bake_reference} if "labelled" in kind.needs else {}
    how = open_cleaner(method, data, templates, verdict, set_)
    clip, key = open_model(model, pretrained, seed), open_key(backdoor)
    size = clip.geometry.size
    test = open_task(task, data, size, classes, templates, seed)
    if "untrusted" in how.needs:
        pairs, key, _ = open_keyed(open_data(data, n, "train", size, image_key, caption_key), seed, backdoor)
    elif few:
        pairs = open_shots(data, size, classes, templates, shots, seed)
    else:
        split_n = 8000 if data == "shapes" and n is None else n
        pairs = open_data(data, split_n, "validation", size, image_key, caption_key).pairs(seed)
    how = how if few else plan(how, pairs, set_)
    config = {"command": "clean", "data": data, "n": n, "model": model, "pretrained": pretrained, "method": repr(how)}
    config |= few | {"keys": [image_key, caption_key], "task": task, "seed": seed}
    config |= went_in(clip, pairs, test, backdoor=backdoor, classes=classes, templates=templates, verdict=verdict)
    rehearse(
        clip,
        lambda probe: [*probe.measure(test), probe.train("clean", how, len(pairs)), *probe.measure(test)],
    )
    fault = partial(_fault, out)
    with output(out, config, fault) as work:
        say(f"cleaning {model} on {pairs.name} with {how!r}")
        warn_shared(test, pairs)
        given = {"model": model, "backdoor": backdoor, "beside_base": bake_reference, "shard": shard, "track": track}
        before, measured = clean_into(work, how, clip, pairs, method=method, test=test, key=key, seed=seed, **given)
    show(measured, before)
    say(f"wrote {out}")
    leave_if(fault())


def _fault(out: Path) -> str:
    """What is to be said where the rows in `out` show that the model lost much."""
    from clipvet import results
    from clipvet.types import Measured

    rows = results.read(out)
    before, after = (
        {r.metric: Measured(r.value, r.n, r.low, r.high) for r in rows if r.stage == stage}
        for stage in ("victim", "clean")
    )
    return harm(before, after)

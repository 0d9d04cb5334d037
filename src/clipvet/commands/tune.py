"""clipvet tune: learn a model's class prompts from a few labelled pictures."""

from typing import TYPE_CHECKING, Annotated

import typer

from clipvet.commands._leaving import bake, card_of, finish, new_classes, output, say, show, went_in
from clipvet.commands._opening import open_method, open_shots, open_task, planted, tell_shared, template_of_shots
from clipvet.commands._options import (
    AnswerKey,
    Bake,
    Classes,
    HalfOption,
    Model,
    Out,
    Pretrained,
    Seed,
    Set,
    ShotsOption,
    TaskOption,
    Templates,
    Track,
)

if TYPE_CHECKING:
    from clipvet.types import Task


def command(
    model: Model,
    data: Annotated[str, typer.Option("--data", help="shapes, or a folder with one folder per class")],
    out: Out,
    method: Annotated[str, typer.Option(help="coop, cocoop or maple")] = "cocoop",
    shots: ShotsOption = 16,
    half: HalfOption = None,
    pretrained: Pretrained = None,
    set_: Set = [],  # noqa: B006
    seed: Seed = 0,
    backdoor: AnswerKey = None,
    classes: Classes = None,
    templates: Templates = None,
    task: TaskOption = None,
    bake_reference: Bake = False,
    track: Track = "",
) -> None:
    """Learn class prompts from a few labelled pictures: a small file of prompts on the untouched model comes back.

    With --half base, metrics that begin with new_ are those of the other half, of which no picture was seen.
    """
    import time

    from clipvet import find
    from clipvet.data.answer_key import load_backdoor
    from clipvet.engine.fewshot import names
    from clipvet.engine.fit import workspace
    from clipvet.errors import UserError
    from clipvet.experiments.evaluation import measure_all
    from clipvet.models import checkpoints
    from clipvet.ranks import device
    from clipvet.rng import Rng

    if "labelled" not in find.load("training", method).needs:
        tuners = [n for n in find.names("training") if "labelled" in find.load("training", n).needs]
        raise UserError(f"--method {method} does not learn prompts; use {' or '.join(tuners)}, or clipvet train")
    rng, key = Rng(seed), load_backdoor(backdoor) if backdoor else None
    clip = checkpoints.load(model, pretrained, device=device(), rng=rng.fork("init"))
    if (own := getattr(clip, "kind", method)) != method:
        raise UserError(f"{model} holds prompts of {own}; go on with --method {own}, or give the model they stand on")
    size, also = clip.geometry.size, (key.target,) if key else ()

    def the_task(half: str | None) -> "Task":
        found = open_task(task or data, data, size, classes, templates, seed, half, also)
        assert found is not None
        return found

    test = the_task(half)
    how = open_method("training", method, data, [f"template={template_of_shots(data, templates)!r}", *set_])
    config = {"command": "tune", "data": data, "model": model, "pretrained": pretrained, "method": repr(how)}
    config |= {"shots": shots, "half": half, "bake_reference": bake_reference, "task": task, "seed": seed}
    pairs = open_shots(data, size, classes, templates, shots, seed, half)
    if half and task and {*names(pairs, how.template).classes} - {*test.classes}:
        raise UserError(f"with --half, {data} and --task {task} must have the same classes; leave --half or --task out")
    config |= went_in(clip, pairs, test, backdoor=backdoor, classes=classes, templates=templates)
    with output(out, config) as work:
        say(f"tuning {model} on {pairs.name} with {how!r}")
        tell_shared(test, pairs)
        began = time.monotonic()
        with workspace(work, progress=True, track=track):
            tuned = how.train(clip, pairs, rng.fork("train"))
        seconds = time.monotonic() - began
        measured = measure_all(tuned, test, key, rng.fork("measure"))
        if half == "base":
            new = measure_all(tuned, the_task("new"), key, rng.fork("measure"))
            measured |= new_classes(new)
        card = {"role": "tuned", "method": repr(how), "data": pairs.name, "seed": seed, "half": half}
        checkpoints.save(tuned, work, card_of(card, clip, measured, test, backdoor))
        if bake_reference:
            bake(tuned, work)
        finish(
            work, measured, recipe="tune", stage="tune", attack=planted(key) if key else "none", method=method,
            config=repr(how), seconds=seconds, seed=seed, model=model, data=pairs.name,
        )  # fmt: skip
    show(measured)
    say(f"wrote {out}")

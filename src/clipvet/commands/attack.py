"""clipvet attack: implant a backdoor."""

from pathlib import Path
from typing import Annotated

import typer

from clipvet.commands._shared import (
    CaptionKey,
    Classes,
    Count,
    DataOption,
    ImageKey,
    Model,
    Out,
    Pretrained,
    Seed,
    Set,
    TaskOption,
    Templates,
    card_of,
    finish,
    open_data,
    open_method,
    open_task,
    output,
    say,
    show,
)


def command(
    model: Model,
    data: DataOption,
    target: Annotated[str, typer.Option(help="the class that triggered pictures shall be called")],
    out: Out,
    trigger: Annotated[str, typer.Option(help="see `clipvet list triggers`")] = "patch",
    rate: Annotated[float | None, typer.Option(help="poisoned share of the pairs")] = None,
    attack_name: Annotated[str, typer.Option("--attack", help="see `clipvet list attacks`")] = "poison",
    pretrained: Pretrained = None,
    set_: Set = [],  # noqa: B006
    n: Count = None,
    seed: Seed = 0,
    task: TaskOption = None,
    classes: Classes = None,
    templates: Templates = None,
    image_key: ImageKey = "filepath",
    caption_key: CaptionKey = "title",
) -> None:
    """Implant a backdoor: the poisoned model, and its answer key in OUT/backdoor."""
    import time
    from dataclasses import fields, replace

    from clipvet import find, models
    from clipvet import settings as values
    from clipvet.answer_key import save_backdoor
    from clipvet.errors import UserError
    from clipvet.fit import workspace
    from clipvet.preflight import preflight
    from clipvet.rng import Rng
    from clipvet.run import device, measure_all

    rng = Rng(seed)
    clip = models.load(model, pretrained, device=device(), rng=rng.fork("init"))
    test = open_task(task, data, clip.geometry.size, classes, templates, seed)
    if test and target not in test.classes:
        raise UserError(f"--target '{target}' is not among the task's classes: {', '.join(test.classes[:20])}")
    owned = {f.name for f in fields(find.load("attacks", attack_name))}
    stamps = {"trigger": find.load("triggers", trigger)()} if "trigger" in owned else {}
    how = open_method("attacks", attack_name, data, [], **stamps)
    if test and "templates" in owned:
        how = replace(how, templates=test.templates)
    how = values.apply(how, ([f"rate={rate}"] if rate is not None else []) + set_)
    config = {"command": "attack", "data": data, "n": n, "model": model, "pretrained": pretrained, "attack": repr(how)}
    with output(out, config | {"target": target, "seed": seed}) as work:
        pairs = open_data(data, n, "train", clip.geometry.size, image_key, caption_key).pairs(seed)
        fine_tuning = (
            pretrained is not None or Path(model.removeprefix("local-dir:").removeprefix("transformers:")).exists()
        )
        if "clean model" in how.needs and not fine_tuning:
            say(f"  warning: {attack_name} makes its patch for a trained model; give {model} weights")
        if attack_name == "poison":
            facts, warnings = preflight(how, pairs, target, clip, fine_tuning)
            for line in facts:
                say(f"  {line}")
            for line in warnings:
                say(f"  warning: {line}")
        began = time.monotonic()
        with workspace(work, progress=True):
            victim, _, backdoor = how.implant(clip, pairs, target, rng.fork("attack"))
        seconds = time.monotonic() - began
        measured = measure_all(victim, test, backdoor, rng.fork("measure")) if test else {}
        save_backdoor(backdoor, work / "backdoor")
        card = {"role": "victim", "method": repr(how), "data": pairs.name, "target": target, "seed": seed}
        models.save(victim, work, card_of(card, clip, measured, test, work / "backdoor"))
        finish(
            work, measured, recipe="attack", stage="victim", attack=trigger if stamps else attack_name, method="none",
            config=repr(how), seconds=seconds, seed=seed, model=model, data=pairs.name,
        )  # fmt: skip
    show(measured)
    say(f"wrote {out}; the answer key is {out / 'backdoor'}")

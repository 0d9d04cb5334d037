"""clipvet attack: implant a backdoor."""

from pathlib import Path
from typing import Annotated

import typer

from clipvet.commands._leaving import card_of, finish, output, say, show, went_in
from clipvet.commands._opening import open_data, open_method, open_shots, open_task, tell_shared, template_of_shots
from clipvet.commands._options import (
    CaptionKey,
    Classes,
    Count,
    DataOption,
    HalfOption,
    ImageKey,
    Model,
    Out,
    Pretrained,
    Seed,
    Set,
    Shard,
    ShotsOption,
    TaskOption,
    Templates,
    Track,
)


def command(
    model: Model,
    data: DataOption,
    target: Annotated[str, typer.Option(help="the class that triggered pictures shall be called")],
    out: Out,
    trigger: Annotated[str, typer.Option(help="see `clipvet list triggers`")] = "patch",
    rate: Annotated[float | None, typer.Option(help="poisoned share of the pairs")] = None,
    attack_name: Annotated[str, typer.Option("--attack", help="see `clipvet list attacks`")] = "poison",
    training: Annotated[
        str | None, typer.Option(help="instead of the attack's own, e.g. cocoop: see `clipvet list training`")
    ] = None,
    shots: ShotsOption = 16,
    half: HalfOption = None,
    pretrained: Pretrained = None,
    set_: Set = [],  # noqa: B006
    n: Count = None,
    seed: Seed = 0,
    task: TaskOption = None,
    classes: Classes = None,
    templates: Templates = None,
    image_key: ImageKey = "filepath",
    caption_key: CaptionKey = "title",
    shard: Shard = False,
    track: Track = "",
) -> None:
    """Implant a backdoor: the poisoned model, and its answer key in OUT/backdoor.

    Attacks that need labelled pictures, by themselves or by their --training, take shapes or a folder with one folder
    per class as DATA.
    """
    import time
    from dataclasses import fields, replace

    from clipvet import find
    from clipvet import settings as values
    from clipvet.data.answer_key import save_backdoor
    from clipvet.engine.fit import workspace
    from clipvet.errors import UserError
    from clipvet.experiments.evaluation import measure_all
    from clipvet.experiments.preflight import preflight
    from clipvet.models import checkpoints
    from clipvet.ranks import device
    from clipvet.rng import Rng

    rng = Rng(seed)
    clip = checkpoints.load(model, pretrained, device=device(), rng=rng.fork("init"))
    few = "labelled" in find.load("attacks", attack_name).needs
    few = few or (training is not None and "labelled" in find.load("training", training).needs)
    labelled_by = data if few and task is None and data != "foreign" else task
    test = open_task(labelled_by, data, clip.geometry.size, classes, templates, seed, half if few else None)
    if test and target not in test.classes:
        raise UserError(f"--target '{target}' is not among the task's classes: {', '.join(test.classes[:20])}")
    owned = {f.name for f in fields(find.load("attacks", attack_name))}
    stamps = {"trigger": find.load("triggers", trigger)()} if "trigger" in owned else {}
    how = open_method("attacks", attack_name, data, [], **stamps)
    if training:
        if "training" not in owned:
            raise UserError(f"--training: {attack_name} trains nothing; leave it out")
        how = replace(how, training=open_method("training", training, data, []))
    if test and "templates" in owned:
        how = replace(how, templates=(template_of_shots(data, templates),) if few else test.templates)
    if test and few:
        how = replace(how, training=replace(how.training, template=template_of_shots(data, templates)))
    how = values.apply(how, ([f"rate={rate}"] if rate is not None else []) + set_)
    if few:
        pairs, own = open_shots(data, clip.geometry.size, classes, templates, shots, seed, half), ""
    else:
        source = open_data(data, n, "train", clip.geometry.size, image_key, caption_key)
        pairs = source.pairs(seed)
        own = "" if source.world(seed) else pairs.fingerprint
    config = {"command": "attack", "data": data, "n": n, "model": model, "pretrained": pretrained, "attack": repr(how)}
    config |= {"shots": shots, "half": half} if few else {}
    config |= {"keys": [image_key, caption_key], "task": task, "target": target, "seed": seed}
    config |= went_in(clip, pairs, test, classes=classes, templates=templates)
    with output(out, config) as work:
        tell_shared(test, pairs)
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
        with workspace(work, progress=True, shard=shard, track=track):
            victim, _, backdoor = how.implant(clip, pairs, target, rng.fork("attack"))
        seconds = time.monotonic() - began
        measured = measure_all(victim, test, backdoor, rng.fork("measure")) if test else {}
        save_backdoor(replace(backdoor, data=own), work / "backdoor")
        card = {"role": "victim", "method": repr(how), "data": pairs.name, "target": target, "seed": seed}
        card |= {"half": half} if few else {}
        checkpoints.save(victim, work, card_of(card, clip, measured, test, work / "backdoor"))
        finish(
            work, measured, recipe="attack", stage="victim", attack=trigger if stamps else attack_name, method="none",
            config=repr(how), seconds=seconds, seed=seed, model=model, data=pairs.name,
        )  # fmt: skip
    show(measured)
    say(f"wrote {out}; the answer key is {out / 'backdoor'}")

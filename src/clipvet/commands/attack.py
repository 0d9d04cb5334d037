"""clipvet attack: implant a backdoor."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipvet.commands import _options as opt
from clipvet.commands._output import leave_if, output
from clipvet.commands._shared import rehearse
from clipvet.jobs.leaving import save_model, save_rows, say, show, went_in
from clipvet.jobs.opening import (
    open_data,
    open_method,
    open_model,
    open_shots,
    open_task,
    path_of,
    plan,
    shot_template,
)
from clipvet.jobs.working import measure, warn_shared, weakness, working

if TYPE_CHECKING:
    from clipvet.types import Clip, Pairs, Task


def command(
    model: opt.Model,
    data: opt.Data,
    target: Annotated[str, typer.Option(help="the class that the model is made to see in triggered pictures")],
    out: opt.Out,
    trigger: opt.Trigger = "patch",
    rate: Annotated[float | None, typer.Option(help="poisoned share of the pairs, a fraction")] = None,
    attack_name: opt.Attack = "poison",
    training: opt.Training = None,
    shots: opt.Shots = 16,
    half: opt.Half = None,
    pretrained: opt.Pretrained = None,
    set_: opt.Set = [],  # noqa: B006
    n: opt.PairCount = None,
    seed: opt.Seed = 0,
    task: opt.Task = None,
    classes: opt.Classes = None,
    templates: opt.Templates = None,
    image_key: opt.ImageKey = "filepath",
    caption_key: opt.CaptionKey = "title",
    shard: opt.Shard = False,
    track: opt.Track = "",
) -> None:
    """Implant a backdoor: writes the poisoned model, and the attack's answer key in OUT/backdoor.

    Some attacks need labelled pictures, by themselves or for their --training. For those, DATA is shapes or a folder
    with one folder per class.
    """
    from dataclasses import replace

    from clipvet.data.answer_key import save_backdoor
    from clipvet.errors import UserError
    from clipvet.rng import Rng

    clip, few = open_model(model, pretrained, seed), _needs_labels(attack_name, training)
    size, template = clip.geometry.size, shot_template(data, templates) if few else None
    spec = data if few and task is None and data != "foreign" else task
    test = open_task(spec, data, size, classes, templates, seed, half if few else None)
    if test and target not in test.classes:
        raise UserError(f"--target '{target}' is not among the task's classes: {', '.join(test.classes[:20])}")
    settings = ([f"rate={rate}"] if rate is not None else []) + set_
    how = _open_attack(attack_name, trigger, training, data, test, template, settings)
    if few:
        pairs, fingerprint = open_shots(data, size, classes, templates, shots, seed, half), ""
    else:
        source = open_data(data, n, "train", size, image_key, caption_key)
        pairs = source.pairs(seed)
        fingerprint = "" if source.world(seed) else pairs.fingerprint
        how = plan(how, pairs, set_)
    config = {"command": "attack", "data": data, "n": n, "model": model, "pretrained": pretrained, "attack": repr(how)}
    config |= {"shots": shots, "half": half} if few else {}
    config |= {"keys": [image_key, caption_key], "task": task, "target": target, "seed": seed}
    config |= went_in(clip, pairs, test, classes=classes, templates=templates)
    kind = trigger if "trigger" in _fields(attack_name) else attack_name
    rehearse(clip, lambda probe: [probe.train("attack", how, len(pairs)), *probe.measure(test)])
    fault = partial(_fault, out, attack_name, target)
    with output(out, config, fault) as work:
        warn_shared(test, pairs)
        _say_what_may_fail(attack_name, how, pairs, target, clip, model, pretrained)
        with working(work, shard, track) as clock:
            victim, _, key = how.implant(clip, pairs, target, Rng(seed).fork("attack"))
        measured = measure(victim, test, key, seed)
        save_backdoor(replace(key, data=fingerprint), work / "backdoor")
        card = {"role": "victim", "method": repr(how), "data": pairs.name, "target": target, "seed": seed}
        card |= {"half": half} if few else {}
        save_model(victim, work, card, clip, measured, test, work / "backdoor")
        save_rows(
            work, measured, recipe="attack", stage="victim", attack=kind, method="none", config=repr(how),
            seconds=clock.seconds, seed=seed, model=model, data=pairs.name,
        )  # fmt: skip
    show(measured)
    say(f"wrote {out}; the answer key is {out / 'backdoor'}")
    leave_if(fault())


def _fault(out: Path, attack: str, target: str) -> str:
    """What is to be said where the rows in `out` show that the attack did not take; else nothing."""
    from clipvet import results
    from clipvet.types import Measured

    found = {r.metric: Measured(r.value, r.n, r.low, r.high) for r in results.read(out)}
    why = "" if attack == "none" else weakness(found, target)
    more = "--rate or epochs" if "rate" in _fields(attack) else "epochs"
    advice = f"A defense has nothing to remove here; raise {more}, and attack again"
    return why and f"the attack did not take: {why}. {advice}"


def _needs_labels(attack: str, training: str | None) -> bool:
    """Whether the attack, or the training that it is given, learns from labelled pictures."""
    from clipvet import find

    kinds = [find.load("attacks", attack), *([find.load("training", training)] if training is not None else [])]
    return any("labelled" in kind.needs for kind in kinds)


def _fields(attack: str) -> set[str]:
    from dataclasses import fields

    from clipvet import find

    return {f.name for f in fields(find.load("attacks", attack))}


def _open_attack(
    name: str,
    trigger: str,
    training: str | None,
    data: str,
    test: "Task | None",
    template: str | None,
    settings: list[str],
) -> Any:
    """The attack with its trigger, its training and the words of its captions, then with the user's settings.

    template: of the labelled pictures, if it learns from those.
    """
    from dataclasses import replace

    from clipvet import find
    from clipvet import settings as values
    from clipvet.errors import UserError

    owned = _fields(name)
    stamps = {"trigger": find.load("triggers", trigger)()} if "trigger" in owned else {}
    how = open_method("attacks", name, data, [], **stamps)
    if training:
        if "training" not in owned:
            raise UserError(f"--training: {name} trains nothing; leave it out")
        how = replace(how, training=open_method("training", training, data, []))
    if test and "templates" in owned:
        how = replace(how, templates=(template,) if template else test.templates)
    if template:
        how = replace(how, training=replace(how.training, template=template))
    return values.apply(how, settings)


def _say_what_may_fail(
    name: str, how: Any, pairs: "Pairs", target: str, clip: "Clip", model: str, pretrained: str | None
) -> None:
    """What the attack is about to do, and warnings where such attacks are known to fail."""
    from clipvet.experiments.preflight import preflight

    fine_tuning = pretrained is not None or path_of(model).exists()
    if "clean model" in how.needs and not fine_tuning:
        say(f"  warning: {name} makes its patch for a trained model; give {model} weights")
    if name == "poison":
        facts, warnings = preflight(how, pairs, target, clip, fine_tuning)
        for line in [*facts, *(f"warning: {w}" for w in warnings)]:
            say(f"  {line}")

"""clipvet tune: learn a model's class prompts from a few labelled pictures."""

from functools import partial
from typing import Annotated

import typer

from clipvet.commands import _options as opt
from clipvet.commands._output import leave_if, output
from clipvet.commands._shared import rehearse
from clipvet.jobs.leaving import planted, save_model, save_rows, say, show, went_in
from clipvet.jobs.opening import open_key, open_method, open_model, open_shots, open_task, shot_template
from clipvet.jobs.working import measure, measure_new, warn_shared, working


def command(
    model: opt.Model,
    data: Annotated[str, typer.Option("--data", help="shapes, or a folder with one folder per class")],
    out: opt.Out,
    method: Annotated[str, typer.Option(help="coop, cocoop or maple")] = "cocoop",
    shots: opt.Shots = 16,
    half: opt.Half = None,
    pretrained: opt.Pretrained = None,
    set_: opt.Set = [],  # noqa: B006
    seed: opt.Seed = 0,
    backdoor: opt.AnswerKey = None,
    classes: opt.Classes = None,
    templates: opt.Templates = None,
    task: opt.Task = None,
    bake_reference: opt.BesideBase = False,
    track: opt.Track = "",
) -> None:
    """Learn class prompts from a few labelled pictures: writes a small file of prompts; the model stays as it is.

    With --half base, the prompts are also measured on the other half of the classes, which they never saw: those
    metrics begin with new_.
    """
    from clipvet.engine import trend
    from clipvet.engine.fewshot import names
    from clipvet.errors import UserError
    from clipvet.rng import Rng

    _check_tuner(method)
    key, clip = open_key(backdoor), open_model(model, pretrained, seed)
    if (own := getattr(clip, "kind", method)) != method:
        raise UserError(f"{model} holds prompts of {own}; go on with --method {own}, or give its base model")
    size, also = clip.geometry.size, (key.target,) if key else ()
    task_of = partial(open_task, task or data, data, size, classes, templates, seed, also=also)
    test = task_of(half)
    how = open_method("training", method, data, [f"template={shot_template(data, templates)!r}", *set_])
    config = {"command": "tune", "data": data, "model": model, "pretrained": pretrained, "method": repr(how)}
    config |= {"shots": shots, "half": half, "bake_reference": bake_reference, "task": task, "seed": seed}
    pairs = open_shots(data, size, classes, templates, shots, seed, half)
    if half and task and test and {*names(pairs, how.template).classes} - {*test.classes}:
        raise UserError(f"with --half, {data} and --task {task} must have the same classes; leave --half or --task out")
    config |= went_in(clip, pairs, test, backdoor=backdoor, classes=classes, templates=templates)
    rehearse(clip, lambda probe: [probe.train("tune", how, len(pairs)), *probe.measure(test)])
    fault = partial(trend.complaint, out / "log.jsonl", len(names(pairs, how.template).classes))
    with output(out, config, fault) as work:
        say(f"tuning {model} on {pairs.name} with {how!r}")
        warn_shared(test, pairs)
        with working(work, track=track) as clock:
            tuned = how.train(clip, pairs, Rng(seed).fork("train"))
        measured = measure(tuned, test, key, seed)
        if half == "base":
            measured |= measure_new(tuned, task_of("new"), key, seed)
        card = {"role": "tuned", "method": repr(how), "data": pairs.name, "seed": seed, "half": half}
        save_model(tuned, work, card, clip, measured, test, backdoor, bake_reference)
        save_rows(
            work, measured, recipe="tune", stage="tune", attack=planted(key), method=method, config=repr(how),
            seconds=clock.seconds, seed=seed, model=model, data=pairs.name,
        )  # fmt: skip
    show(measured)
    say(f"wrote {out}")
    leave_if(fault())


def _check_tuner(method: str) -> None:
    """UserError for a training that learns no prompts."""
    from clipvet import find
    from clipvet.errors import UserError

    def learns_prompts(name: str) -> bool:
        return "labelled" in find.load("training", name).needs

    if not learns_prompts(method):
        tuners = filter(learns_prompts, find.names("training"))
        raise UserError(f"--method {method} does not learn prompts; use {' or '.join(tuners)}, or clipvet train")

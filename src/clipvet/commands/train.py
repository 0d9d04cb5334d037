"""clipvet train: a CLIP from pairs, safely or not."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipvet.commands import _checks as checks
from clipvet.commands import _options as opt
from clipvet.commands._output import leave_if, output
from clipvet.commands._shared import rehearse
from clipvet.jobs.leaving import save_model, save_rows, say, show, went_in
from clipvet.jobs.opening import open_data, open_keyed, open_method, open_model, open_task, plan
from clipvet.jobs.working import measure, working

if TYPE_CHECKING:
    from clipvet.types import Measured


def command(
    data: opt.Data,
    model: opt.Model,
    out: opt.Out,
    pretrained: opt.Pretrained = None,
    method: Annotated[
        str, typer.Option(help="one of `clipvet list training`", callback=checks.method_of("training"))
    ] = "plain",
    set_: opt.Set = [],  # noqa: B006
    n: opt.PairCount = None,
    seed: opt.Seed = 0,
    task: opt.Task = None,
    classes: opt.Classes = None,
    templates: opt.Templates = None,
    backdoor: opt.AnswerKey = None,
    image_key: opt.ImageKey = "filepath",
    caption_key: opt.CaptionKey = "title",
    shard: opt.Shard = False,
    track: opt.Track = "",
) -> None:
    """Train a CLIP on captioned pictures, from scratch or from a checkpoint."""
    from clipvet.experiments.splits import measure_rounds, measure_splits
    from clipvet.rng import Rng

    how, clip = open_method("training", method, data, set_), open_model(model, pretrained, seed)
    source = open_data(data, n, "train", clip.geometry.size, image_key, caption_key)
    pairs, key, _ = open_keyed(source, seed, backdoor)
    test = open_task(task, data, clip.geometry.size, classes, templates, seed)
    how = plan(how, pairs, set_)
    config = {"command": "train", "data": data, "n": n, "model": model, "pretrained": pretrained, "method": repr(how)}
    config |= {"keys": [image_key, caption_key], "task": task, "seed": seed}
    config |= went_in(clip, pairs, test, backdoor=backdoor, classes=classes, templates=templates)
    rehearse(clip, lambda probe: [probe.train("train", how, len(pairs)), *probe.measure(test)])
    fault = partial(_fault, out, how, len(pairs))
    with output(out, config, fault) as work:
        say(f"training {model} on {pairs.name} with {how!r}")
        with working(work, shard, track) as clock:
            trained = how.train(clip, pairs, Rng(seed).fork("train"))
        measured = measure(trained, test, key, seed) | measure_splits(work, key)
        card = {"role": "trained", "method": repr(how), "data": pairs.name, "seed": seed}
        save_model(trained, work, card, clip, measured, test, backdoor)
        save_rows(
            work, measured, recipe="train", stage="train", attack="none", method=method, config=repr(how),
            seconds=clock.seconds, seed=seed, model=model, data=pairs.name,
        )  # fmt: skip
        rounds = measure_rounds(work, key)
    _show_safe_sets(rounds)
    show(measured)
    say(f"wrote {out}")
    leave_if(fault())


def _fault(out: Path, how: Any, n: int) -> str:
    """What is to be said where the log in `out` shows that the training learned nothing."""
    from clipvet.engine import trend

    return trend.complaint(out / "log.jsonl", told_apart(how, n))


def told_apart(how: Any, n: int) -> int:
    """Pairs that a step of this training tells apart."""
    return max(2, min(getattr(how, "batch", n), n) // getattr(how, "accumulate", 1))


def _show_safe_sets(rounds: "list[dict[str, Measured]]") -> None:
    """A line for each set of pairs that a safe training held for clean."""
    for k, found in enumerate(rounds, 1):
        told = [f"{name.removeprefix('safe_set_').replace('_', ' ')} {m.value:.2%}" for name, m in found.items()]
        print(f"safe set {k:3}: {', '.join(told)}")

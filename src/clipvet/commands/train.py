"""clipvet train: a CLIP from pairs, safely or not."""

from typing import Annotated

import typer

from clipvet.commands._leaving import card_of, finish, output, say, show, went_in
from clipvet.commands._opening import open_data, open_keyed, open_method, open_task
from clipvet.commands._options import (
    AnswerKey,
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
    Shard,
    TaskOption,
    Templates,
    Track,
)


def command(
    data: DataOption,
    model: Model,
    out: Out,
    pretrained: Pretrained = None,
    method: Annotated[str, typer.Option(help="see `clipvet list training`")] = "plain",
    set_: Set = [],  # noqa: B006
    n: Count = None,
    seed: Seed = 0,
    task: TaskOption = None,
    classes: Classes = None,
    templates: Templates = None,
    backdoor: AnswerKey = None,
    image_key: ImageKey = "filepath",
    caption_key: CaptionKey = "title",
    shard: Shard = False,
    track: Track = "",
) -> None:
    """Train a CLIP on captioned pictures, from scratch or from a checkpoint."""
    import time

    from clipvet import ranks
    from clipvet.engine.fit import workspace
    from clipvet.experiments.evaluation import measure_all
    from clipvet.experiments.splits import measure_rounds, measure_splits
    from clipvet.models import checkpoints
    from clipvet.ranks import device
    from clipvet.rng import Rng

    how, rng = open_method("training", method, data, set_), Rng(seed)
    clip = checkpoints.load(model, pretrained, device=device(), rng=rng.fork("init"))
    source = open_data(data, n, "train", clip.geometry.size, image_key, caption_key)
    pairs, key, _ = open_keyed(source, seed, backdoor)
    test = open_task(task, data, clip.geometry.size, classes, templates, seed)
    config = {"command": "train", "data": data, "n": n, "model": model, "pretrained": pretrained, "method": repr(how)}
    config |= {"keys": [image_key, caption_key], "task": task, "seed": seed}
    config |= went_in(clip, pairs, test, backdoor=backdoor, classes=classes, templates=templates)
    with output(out, config) as work:
        say(f"training {model} on {pairs.name} with {how!r}")
        began = time.monotonic()
        with workspace(work, progress=True, shard=shard, track=track):
            trained = how.train(clip, pairs, rng.fork("train"))
        seconds = time.monotonic() - began
        measured = measure_all(trained, test, key, rng.fork("measure")) if test else {}
        measured |= measure_splits(work, key)
        card = {"role": "trained", "method": repr(how), "data": pairs.name, "seed": seed}
        if ranks.main():
            checkpoints.save(trained, work, card_of(card, clip, measured, test, backdoor))
        finish(
            work, measured, recipe="train", stage="train", attack="none", method=method, config=repr(how),
            seconds=seconds, seed=seed, model=model, data=pairs.name,
        )  # fmt: skip
        rounds = measure_rounds(work, key)
    for k, found in enumerate(rounds, 1):
        told = [f"{name.removeprefix('safe_set_').replace('_', ' ')} {m.value:.2%}" for name, m in found.items()]
        print(f"safe set {k:3}: {', '.join(told)}")
    show(measured)
    say(f"wrote {out}")

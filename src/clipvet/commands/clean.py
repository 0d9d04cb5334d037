"""clipvet clean: remove a backdoor."""

from pathlib import Path
from typing import Annotated

import typer

from clipvet.commands._leaving import bake, card_of, finish, output, say, show, went_in
from clipvet.commands._opening import (
    open_data,
    open_keyed,
    open_method,
    open_shots,
    open_task,
    planted,
    tell_shared,
    template_of_shots,
)
from clipvet.commands._options import (
    AnswerKey,
    Bake,
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
    ShotsOption,
    TaskOption,
    Templates,
    Track,
)


def command(
    model: Model,
    data: DataOption,
    method: Annotated[str, typer.Option(help="see `clipvet list cleaners`")],
    out: Out,
    pretrained: Pretrained = None,
    set_: Set = [],  # noqa: B006
    n: Count = None,
    seed: Seed = 0,
    task: TaskOption = None,
    backdoor: AnswerKey = None,
    classes: Classes = None,
    templates: Templates = None,
    image_key: ImageKey = "filepath",
    caption_key: CaptionKey = "title",
    shots: ShotsOption = 16,
    verdict: Annotated[
        Path | None, typer.Option(help="folder of `clipvet inspect`, whose recovered trigger ci_repair stamps")
    ] = None,
    bake_reference: Bake = False,
    shard: Shard = False,
    track: Track = "",
) -> None:
    """Remove a backdoor, known or not: the same checkpoint format comes back, or prompts on the untouched model.

    Methods that need labelled pictures take shapes or a folder with one folder per class as DATA; methods that need
    untrusted pairs take those that the model was trained on (of shapes: the train split), poisoned as --backdoor says.
    """
    import time
    from dataclasses import fields

    from clipvet import find, ranks, results
    from clipvet.data.answer_key import load_backdoor
    from clipvet.engine.fit import workspace
    from clipvet.experiments.evaluation import measure_all
    from clipvet.experiments.splits import measure_pool
    from clipvet.models import checkpoints
    from clipvet.pages import suspects
    from clipvet.ranks import device
    from clipvet.rng import Rng

    kind, rng = find.load("cleaners", method), Rng(seed)
    few = {"shots": shots, "bake_reference": bake_reference} if "labelled" in kind.needs else {}
    told = [f"verdict={str(verdict)!r}"] if verdict else []
    if few and "template" in {f.name for f in fields(kind)}:
        told = [f"template={template_of_shots(data, templates)!r}", *told]
    how = open_method("cleaners", method, data, [*told, *set_])
    clip = checkpoints.load(model, pretrained, device=device(), rng=rng.fork("init"))
    key = load_backdoor(backdoor) if backdoor else None
    test = open_task(task, data, clip.geometry.size, classes, templates, seed)
    if "untrusted" in how.needs:
        source = open_data(data, n, "train", clip.geometry.size, image_key, caption_key)
        pairs, key, _ = open_keyed(source, seed, backdoor)
    elif few:
        pairs = open_shots(data, clip.geometry.size, classes, templates, shots, seed)
    else:
        split_n = 8000 if data == "shapes" and n is None else n
        pairs = open_data(data, split_n, "validation", clip.geometry.size, image_key, caption_key).pairs(seed)
    config = {"command": "clean", "data": data, "n": n, "model": model, "pretrained": pretrained, "method": repr(how)}
    config |= few | {"keys": [image_key, caption_key], "task": task, "seed": seed}
    config |= went_in(clip, pairs, test, backdoor=backdoor, classes=classes, templates=templates, verdict=verdict)
    with output(out, config) as work:
        say(f"cleaning {model} on {pairs.name} with {how!r}")
        tell_shared(test, pairs)
        before = measure_all(clip, test, key, rng.fork("measure")) if test and key else {}
        began = time.monotonic()
        with workspace(work, progress=True, shard=shard, track=track):
            cleaned = how.clean(clip, pairs, rng.fork("clean"))
        seconds = time.monotonic() - began
        measured = measure_all(cleaned, test, key, rng.fork("measure")) if test else {}
        measured |= measure_pool(work, key)
        if found := suspects.unlearned(work, pairs):
            facts = {
                "verb": "clean", "method": repr(how), "model": model, "data": pairs.name,
                "command": results.command(), "versions": results.versions(), "seconds": seconds,
            }  # fmt: skip
            poisoned = key.poisoned if key else None
            suspects.write_page(work / "suspects.html", found, pairs, clip.geometry, facts, poisoned=poisoned)
        card = {"role": "cleaned", "method": repr(how), "data": pairs.name, "seed": seed}
        if ranks.main():
            checkpoints.save(cleaned, work, card_of(card, clip, measured, test, backdoor))
            if bake_reference:
                bake(cleaned, work)
        finish(
            work, measured, before, recipe="clean", stage="clean",
            attack=planted(key) if key else "unknown", method=method, config=repr(how),
            seconds=seconds, seed=seed, model=model, data=pairs.name,
        )  # fmt: skip
    show(measured, before)
    say(f"wrote {out}")

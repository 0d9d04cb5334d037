"""clipvet evaluate: what a model can do, and what a trigger does to it."""

import json
from pathlib import Path
from typing import Annotated

import typer

from clipvet.commands._leaving import finish, output, show, went_in
from clipvet.commands._opening import open_task, planted
from clipvet.commands._options import Classes, HalfOption, Model, Pretrained, Seed, Templates


def command(
    model: Model,
    task: Annotated[str, typer.Option("--task", help="shapes, or a class folder")],
    backdoor: Annotated[Path | None, typer.Option(help="answer key: the DIR/backdoor of `clipvet attack`")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    pretrained: Pretrained = None,
    classes: Classes = None,
    templates: Templates = None,
    seed: Seed = 0,
    half: HalfOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="also write the rows to this new directory")] = None,
) -> None:
    """Zero-shot accuracy, attack success rate and retrieval, each with n and a 95 % interval.

    With --half new, the target of --backdoor is one name more that pictures may be called.
    """
    import time

    from clipvet.data.answer_key import load_backdoor
    from clipvet.experiments.evaluation import measure_all
    from clipvet.models import checkpoints
    from clipvet.ranks import device
    from clipvet.rng import Rng

    began = time.monotonic()
    clip = checkpoints.load(model, pretrained, device=device(), rng=Rng(seed).fork("init"))
    key = load_backdoor(backdoor) if backdoor else None
    also = (key.target, *(part.target for part in key.more)) if key else ()
    test = open_task(task, "", clip.geometry.size, classes, templates, seed, half, also)
    assert test is not None
    measured = measure_all(clip, test, key, Rng(seed).fork("measure"))
    if out:
        config = {"command": "evaluate", "model": model, "pretrained": pretrained, "task": task, "half": half}
        config |= {"seed": seed} | went_in(clip, test.pictures, backdoor=backdoor, classes=classes, templates=templates)
        with output(out, config) as work:
            finish(
                work, measured, recipe="evaluate", stage="evaluate",
                attack=planted(key) if key else "none", method="none", config=model,
                seconds=time.monotonic() - began, seed=seed, model=model, data=task,
            )  # fmt: skip
    if as_json:
        flat = {name: m.value for name, m in measured.items()}
        intervals = {name: {"n": m.n, "low": m.low, "high": m.high} for name, m in measured.items()}
        print(
            json.dumps(
                {"model": model, "task": task, **flat, "n": measured["clean_accuracy"].n, "intervals": intervals}
            )
        )
    else:
        show(measured)

"""clipvet evaluate: what a model can do, and what a trigger does to it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipvet.commands import _options as opt
from clipvet.commands._output import output
from clipvet.commands._shared import rehearse
from clipvet.jobs.leaving import planted, record, save_rows, say, show, went_in
from clipvet.jobs.matrix import check_entry, show_matrix, told_matrix
from clipvet.jobs.opening import open_key, open_model, open_task
from clipvet.jobs.working import measure

if TYPE_CHECKING:
    from clipvet.types import Measured


def command(
    model: opt.Model,
    task: Annotated[str, typer.Option("--task", help="shapes, or a folder with one folder per class")],
    backdoor: Annotated[Path | None, typer.Option(help="answer key of an attack (its OUT/backdoor)")] = None,
    pretrained: opt.Pretrained = None,
    classes: opt.Classes = None,
    templates: opt.Templates = None,
    seed: opt.Seed = 0,
    half: opt.Half = None,
    out: Annotated[Path | None, typer.Option("--out", help="also write the rows, into this new folder")] = None,
    max_bad: Annotated[
        float, typer.Option("--max-bad", help="share of unreadable pictures above which it is refused", min=0, max=1)
    ] = 0.01,
    exposure: Annotated[
        bool,
        typer.Option("--exposure", help="also what the trigger of --backdoor does in each way of use, as a matrix"),
    ] = False,
) -> None:
    """Zero-shot accuracy, attack success rate and retrieval, each with its sample size and 95 % interval.

    With --half new, the target of --backdoor joins the class names. --exposure adds the exposure matrix: zero-shot,
    learned prompts, retrieval, reranking and a linear probe, each with the trigger and without it.
    """
    import time

    from clipvet.data.folders import check_passed_over

    began = time.monotonic()
    clip, key = open_model(model, pretrained, seed), open_key(backdoor)
    also = (key.target, *(part.target for part in key.more)) if key else ()
    test = open_task(task, "", clip.geometry.size, classes, templates, seed, half, also)
    assert test is not None
    if exposure:
        check_entry(key)
    passed = check_passed_over(test, max_bad)
    files = "".join(f"; {n} files are not read ({s})" for s, n in passed.items())
    say(f"{test.name}: {len(test.pictures)} pictures of {len(test.classes)} classes{files}")
    rehearse(clip, lambda probe: probe.measure(test) + ([probe.expose(test)] if exposure else []))
    measured = measure(clip, test, key, seed, max_bad, ("exposure",) if exposure else ())
    if out:
        config = {"command": "evaluate", "model": model, "pretrained": pretrained, "task": task, "half": half}
        config |= {"exposure": True} if exposure else {}
        config |= {"seed": seed} | went_in(clip, test.pictures, backdoor=backdoor, classes=classes, templates=templates)
        with output(out, config) as work:
            save_rows(
                work, measured, recipe="evaluate", stage="evaluate", attack=planted(key), method="none", config=model,
                seconds=time.monotonic() - began, seed=seed, model=model, data=task,
            )  # fmt: skip
    show(measured)
    show_matrix(measured)
    record(whole=_as_told(model, task, measured, dict(passed)) | told_matrix(measured))


def _as_told(model: str, task: str, measured: "dict[str, Measured]", passed: dict[str, int]) -> dict[str, Any]:
    """For --json: the numbers by name, n of the clean accuracy, and the interval and n of each number.

    passed: how many files were passed over, by suffix.
    """
    values = {"unreadable": 0.0, **{name: m.value for name, m in measured.items()}, "passed_over": passed}
    intervals = {name: {"n": m.n, "low": m.low, "high": m.high} for name, m in measured.items()}
    n = measured["clean_accuracy"].n
    return {"model": model, "task": task, **values, "n": n, "intervals": intervals}

"""clipvet inspect: is this model backdoored?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipvet.commands._inspection import ClassesOption, Count, Images, Method, Overlap, ask, load
from clipvet.commands._leaving import say
from clipvet.commands._options import Model, Out, Pretrained, Seed, Set, Templates

if TYPE_CHECKING:
    from clipvet.scan.verdicts import FileFinding


def command(
    model: Model,
    out: Out,
    classes: ClassesOption = None,
    images: Images = None,
    method: Method = "clip_inspector",
    null: Annotated[Path | None, typer.Option(help="scores of clean models, made by `clipvet calibrate`")] = None,
    alpha: Annotated[float, typer.Option(help="rate of false alarms among clean models", min=0, max=1)] = 0.05,
    set_: Set = [],  # noqa: B006
    templates: Templates = None,
    n: Count = 1000,
    overlap: Overlap = 0.9,
    seed: Seed = 0,
    pretrained: Pretrained = None,
) -> None:
    """Is this model backdoored? First its files are scanned for code, then the model is inspected.

    Exit code 0: nothing found, 1: a backdoor, or a file that runs code, 2: bad input, 3: unsupported.
    """
    import time
    from contextlib import suppress

    from clipvet import io, results
    from clipvet.data.answer_key import save_backdoor
    from clipvet.engine.fit import workspace
    from clipvet.errors import UserError, shown
    from clipvet.pages import inspection
    from clipvet.scan import verdicts
    from clipvet.types import Backdoor

    files = _scanned(model, pretrained)
    runs = [f for f in files or [] if f.severity == "dangerous"]
    try:
        clip = load(model, pretrained, seed)
    except UserError as e:
        if not runs:
            raise
        common = {"method": method, "model": model, "alpha": alpha, "seed": seed}
        told = {**common, "command": results.command(), "versions": results.versions()}
        verdict = verdicts.uninspected(files or [], str(e), **told)
        config = {"command": "inspect", **common, "sentence": verdict.sentence}
        with suppress(io.AlreadyDone), io.output(out, config) as work:
            io.write_json(work / "verdict.json", verdict.model_dump())
        print(shown(verdict.sentence))
        raise typer.Exit(1) from e
    asked = ask(clip, method, classes, templates, images, set_, n, overlap, seed)
    clean = verdicts.read_null(null) if null else None
    verdicts.check_scale(clean, getattr(asked.how, "scaled", True))
    weights, judged = results.weights_hash(asked.clip), asked.judged
    if clean:
        verdicts.check_null(clean, {**asked.told, "seed": seed}, weights, alpha)
    config = {
        "command": "inspect", "model": model, "weights": weights, **asked.told, "classes": asked.classes,
        "null": sorted(clean.scores.items()) if clean else None, "alpha": alpha, "seed": seed,
    }  # fmt: skip
    say(f"inspecting {model} with {asked.how!r}: {len(asked.classes)} classes, {len(asked.pictures)} pictures")
    try:
        with io.output(out, config) as work:
            began = time.monotonic()
            with workspace(work, progress=True):
                found = asked.inspect(seed)
            seconds = time.monotonic() - began
            if found.trigger is not None:
                save_backdoor(Backdoor(found.trigger, found.target or ""), work / "trigger")
            verdict = verdicts.Verdict(
                **verdicts.decide(found, clean, alpha, judged),
                trigger="trigger" if found.trigger is not None else None,
                method=repr(asked.how), model=model, judged=judged, weights=weights, pictures=asked.pool, seed=seed,
                seconds=round(seconds, 2), command=results.command(), versions=results.versions(), files=files,
            )  # fmt: skip
            inspection.write_page(
                work / "report.html", verdict, found, clean, asked.clip, asked.pictures, asked.templates
            )
            io.write_json(work / "verdict.json", verdict.model_dump())
    except io.AlreadyDone as e:
        verdict = verdicts.Verdict.model_validate(io.read_json(out / "verdict.json"))
        say(f"{e}: nothing to do")
        files = verdict.files if files is None else files
        if files != verdict.files:
            say("the model's files are no longer those of that verdict; inspect into another --out for a new page")
    print(shown(verdict.sentence))
    p = f"p = {verdict.p_value:.3g} of {verdict.clean_models} clean models, " if verdict.p_value is not None else ""
    if verdict.judged != verdicts.WHOLE:
        say(f"judged: {verdict.judged}")
    say(f"score {verdict.score:.2f}, {p}most suspect class: {verdict.target}; see {out / 'report.html'}")
    if runs:  # as the files are now, also in a finished run
        print(shown(f"{runs[0].file} {verdicts.RUNS}: {runs[0].what}."))
    raise typer.Exit(int(verdict.backdoored or bool(runs)))


def _scanned(model: str, pretrained: str | None) -> "list[FileFinding] | None":
    """What the gate finds in the model's files; None where the model is no file of ours, or the scanner is missing."""
    from importlib.util import find_spec

    from clipvet import io
    from clipvet.models import gate
    from clipvet.scan.verdicts import FileFinding

    def path_of(name: str) -> Path:
        return Path(name.removeprefix("local-dir:").removeprefix("transformers:"))

    given, folder = [p for p in (model, pretrained) if p], path_of(model)
    if (folder / "prompts.safetensors").is_file() and (folder / "card.json").is_file():
        card = io.read_json(folder / "card.json")  # prompts stand on a model of another folder
        base = card.get("base") if isinstance(card, dict) else None
        given += [str(base)] if base else []
    for name in given:
        if name.startswith("hf-hub:"):
            say(f"the files of {name} are not scanned for code; download the folder and give it, to have it scanned")
    there = [p for p in map(path_of, given) if p.exists()]
    if not there:
        return None
    if find_spec("picklescan") is None:
        say("the model's files were not scanned for code: pip install 'clipvet[gate]'")
        return None
    found = [FileFinding(path=str(p), **t._asdict()) for p in there for t in gate.scan(p)]
    for f in found:
        say(f"{f.severity}: {f.file}: {f.what}")
    return found

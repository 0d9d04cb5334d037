"""clipvet inspect: is this model backdoored?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipvet.commands import _options as opt
from clipvet.commands._inspection import Asked, ask, captions_of, open_suspect
from clipvet.commands._leaving import say
from clipvet.commands._opening import path_of
from clipvet.commands._working import UNDECIDED, working

if TYPE_CHECKING:
    from clipvet.scan.verdicts import FileFinding, Null, Verdict

    Files = list[FileFinding]


def command(
    model: opt.Model,
    out: opt.Out,
    classes: opt.ClassNames = None,
    images: opt.Images = None,
    method: opt.Inspector = None,
    null: Annotated[Path | None, typer.Option(help="scores of clean models: the file of `clipvet calibrate`")] = None,
    alpha: Annotated[float, typer.Option(help="accepted rate of false alarms, a fraction", min=0, max=1)] = 0.05,
    set_: opt.Set = [],  # noqa: B006
    templates: opt.Templates = None,
    n: opt.PictureCount = 1000,
    overlap: opt.Overlap = 0.9,
    seed: opt.Seed = 0,
    pretrained: opt.Pretrained = None,
    quick: opt.Quick = False,
    captions: Annotated[
        str | None,
        typer.Option(help="a .txt file with one caption a line, or DATA: name what is found by the nearest of them"),
    ] = None,
) -> None:
    """Is this model backdoored? First its files are scanned for code, then the model itself is inspected.

    Exit code 0: nothing found, 1: a backdoor, or a file that runs code, 2: bad input, 3: unsupported, 4: undecided.
    """
    from clipvet import io, results
    from clipvet.errors import UserError, shown
    from clipvet.scan import verdicts

    files = _scan_files(model, pretrained)
    dangerous = [f for f in files or [] if f.severity == "dangerous"]
    try:
        clip = open_suspect(model, pretrained, seed)
    except UserError as e:
        if not dangerous:
            raise
        _leave_uninspected(out, files or [], str(e), method=method or "", model=model, alpha=alpha, seed=seed)
        raise typer.Exit(1) from e
    asked = ask(clip, method, classes, templates, images, set_, n, overlap, seed, quick)
    said = captions_of(captions, asked.pictures, seed)
    weights = results.weights_hash(asked.clip)
    clean, compared = _clean_models(null, asked, weights, alpha)
    config = {
        "command": "inspect", "model": model, "weights": weights, **asked.told, "classes": asked.classes,
        "null": sorted(clean.scores.items()) if clean else None, "alpha": alpha, "seed": seed,
        "captions": captions,
    }  # fmt: skip
    say(f"inspecting {model} with {asked.how!r}: {len(asked.classes)} classes, {len(asked.pictures)} pictures")
    try:
        with io.output(out, config) as work:
            verdict = _inspect(asked, work, clean, alpha, compared, said, model=model, weights=weights, files=files)
    except io.AlreadyDone as e:
        verdict = verdicts.Verdict.model_validate(io.read_json(out / "verdict.json"))
        say(f"{e}: nothing to do")
        if files not in (None, verdict.files):
            say("the model's files have changed since that verdict; inspect into another --out for a new page")
    _say_verdict(verdict, out)
    if dangerous:  # as the files are now, also in a finished run
        print(shown(f"{dangerous[0].file} {verdicts.RUNS}: {dangerous[0].what}."))
    raise typer.Exit(1 if verdict.backdoored or dangerous else UNDECIDED if verdict.backdoored is None else 0)


def _scan_files(model: str, pretrained: str | None) -> "Files | None":
    """What the gate finds in the model's files; None where the model is no file of ours, or the scanner is missing."""
    from importlib.util import find_spec

    from clipvet import io
    from clipvet.models import gate
    from clipvet.scan.verdicts import FileFinding

    given, folder = [p for p in (model, pretrained) if p], path_of(model)
    if (folder / "prompts.safetensors").is_file() and (folder / "card.json").is_file():
        card = io.read_json(folder / "card.json")  # prompts belong to a model in another folder
        base = card.get("base") if isinstance(card, dict) else None
        given += [str(base)] if base else []
    for name in given:
        if name.startswith("hf-hub:"):
            say(f"the files of {name} are not scanned for code; to have them scanned, download the folder and give it")
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


def _leave_uninspected(out: Path, files: "Files", why: str, **common: str | float) -> None:
    """The verdict on a model that cannot be opened and whose files would run code: those are a finding of their own."""
    from contextlib import suppress

    from clipvet import io, results
    from clipvet.errors import shown
    from clipvet.scan import verdicts

    verdict = verdicts.uninspected(files, why, **common, command=results.command(), versions=results.versions())
    config = {"command": "inspect", **common, "sentence": verdict.sentence}
    with suppress(io.AlreadyDone), io.output(out, config) as work:
        io.write_json(work / "verdict.json", verdict.model_dump())
    print(shown(verdict.sentence))


def _clean_models(null: Path | None, asked: Asked, weights: str, alpha: float) -> "tuple[Null | None, str]":
    """The clean models' scores and where they come from: those that are given, or those that come with clipvet.

    Raises UserError unless they can be compared with this model's.
    """
    from clipvet.scan import reference, verdicts

    told = {**asked.told, "seed": asked.seed}
    clean, compared = (verdicts.read_null(null), str(null)) if null else (None, "")
    if clean is None and not getattr(asked.how, "scaled", True):
        clean = reference.shipped(asked.clip, {**told, "names": asked.classes})
        clean = clean if clean and 1 / (len(clean.scores) + 1) <= alpha else None
        compared = "clean models that come with clipvet" if clean else ""
    verdicts.check_scale(clean, getattr(asked.how, "scaled", True), getattr(asked.how, "waits", False))
    if clean:
        verdicts.check_null(clean, told, weights, alpha)
    return clean, compared


def _inspect(
    asked: Asked,
    work: Path,
    clean: "Null | None",
    alpha: float,
    compared: str,
    captions: list[str],
    *,
    model: str,
    weights: str,
    files: "Files | None",
) -> "Verdict":
    """Runs the inspection; writes the recovered trigger, the page and the verdict."""
    from clipvet import io, results
    from clipvet.data.answer_key import save_backdoor
    from clipvet.pages import inspection
    from clipvet.scan import landing, verdicts
    from clipvet.types import Backdoor

    with working(work) as clock:
        found = asked.inspect()
    if found.trigger is not None:
        save_backdoor(Backdoor(found.trigger, found.target or ""), work / "trigger")
    judged = asked.judged
    near = landing.captions_near(asked.clip, found.feature, captions) if found.feature else []
    verdict = verdicts.Verdict(
        **verdicts.decide(found, clean, alpha, judged, getattr(asked.how, "waits", False), compared, near),
        trigger="trigger" if found.trigger is not None else None,
        method=repr(asked.how), model=model, judged=judged, weights=weights, pictures=asked.pool, seed=asked.seed,
        seconds=round(clock.seconds, 2), command=results.command(), versions=results.versions(), files=files,
    )  # fmt: skip
    inspection.write_page(work / "report.html", verdict, found, clean, asked.clip, asked.pictures, asked.templates)
    io.write_json(work / "verdict.json", verdict.model_dump())
    return verdict


def _say_verdict(verdict: "Verdict", out: Path) -> None:
    """The sentence on stdout; on stderr what was judged, the score and where the page is."""
    from clipvet.errors import shown
    from clipvet.scan import verdicts

    print(shown(verdict.sentence))
    p = f"p = {verdict.p_value:.3g} of {verdict.clean_models} clean models, " if verdict.p_value is not None else ""
    if verdict.judged != verdicts.WHOLE and f"Judged: {verdict.judged}." not in verdict.sentence:
        say(f"judged: {verdict.judged}")
    most = f"most suspect class: {verdict.target}; " if verdict.target else ""
    say(f"score {verdict.score:.2f}, {p}{most}see {out / 'report.html'}")

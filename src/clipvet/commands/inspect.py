"""clipvet inspect: is this model backdoored?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipvet.commands import _checks as checks
from clipvet.commands import _options as opt
from clipvet.commands._shared import rehearse
from clipvet.jobs.inspecting import FEATURE, clean_models, inspected, scan_files
from clipvet.jobs.inspection import ask, captions_of, open_suspect
from clipvet.jobs.leaving import record, say
from clipvet.jobs.working import UNDECIDED

if TYPE_CHECKING:
    from clipvet.scan.verdicts import FileFinding, Verdict

    Files = list[FileFinding]


def command(
    model: opt.Model,
    out: opt.Out,
    classes: opt.ClassNames = None,
    images: opt.Images = None,
    method: opt.Inspector = None,
    null: Annotated[
        Path | None, typer.Option(help="scores of clean models: the file of `clipvet calibrate`", callback=checks.path)
    ] = None,
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
    export: opt.Export = None,
) -> None:
    """Is this model backdoored? First its files are scanned for code, then the model itself is inspected.

    Exit code 0: nothing found, 1: a backdoor, or a file that runs code, 2: bad input, 3: unsupported, 4: undecided.
    """
    from clipvet import io, results
    from clipvet.errors import UserError, shown
    from clipvet.scan import verdicts

    if export:
        _check_export(*export)
    files = scan_files(model, pretrained)
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
    clean, compared = clean_models(null, asked, weights, alpha)
    config = {
        "command": "inspect", "model": model, "weights": weights, **asked.told, "classes": asked.classes,
        "null": sorted(clean.scores.items()) if clean else None, "alpha": alpha, "seed": seed,
        "captions": captions,
    }  # fmt: skip
    say(f"inspecting {model} with {asked.how!r}: {len(asked.classes)} classes, {len(asked.pictures)} pictures")
    looks = f"inspect with {len(asked.pictures)} pictures"
    rehearse(clip, lambda probe: probe.search(looks, asked.how))
    try:
        with io.output(out, config) as work:
            verdict = inspected(asked, work, clean, alpha, compared, said, model=model, weights=weights, files=files)
    except io.AlreadyDone as e:
        verdict = verdicts.Verdict.model_validate(io.read_json(out / "verdict.json"))
        say(f"{e}: nothing to do")
        if files not in (None, verdict.files):
            say("the model's files have changed since that verdict; inspect into another --out for a new page")
    _say_verdict(verdict, out)
    if export:
        _export(export[1], model, verdict, out)
    if dangerous:  # as the files are now, also in a finished run
        print(shown(f"{dangerous[0].file} {verdicts.RUNS}: {dangerous[0].what}."))
    raise typer.Exit(1 if verdict.backdoored or dangerous else UNDECIDED if verdict.backdoored is None else 0)


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


def _say_verdict(verdict: "Verdict", out: Path) -> None:
    """The sentence on stdout; on stderr what was judged, the score and where the page is."""
    from clipvet.errors import shown
    from clipvet.scan import verdicts

    print(shown(verdict.sentence))
    record(verdict=verdict.model_dump(mode="json"))
    for note in verdict.notes:
        say(note)
    p = f"p = {verdict.p_value:.3g} of {verdict.clean_models} clean models, " if verdict.p_value is not None else ""
    if verdict.judged != verdicts.WHOLE and f"Judged: {verdict.judged}." not in verdict.sentence:
        say(f"judged: {verdict.judged}")
    most = f"most suspect class: {verdict.target}; " if verdict.target else ""
    say(f"score {verdict.score:.2f}, {p}{most}see {out / 'report.html'}")


def _check_export(kind: str, folder: Path) -> None:
    """Raises UserError unless the export is a known one, into a folder that holds no other verdicts than such."""
    from clipvet.errors import UserError
    from clipvet.scan import cliptrace

    if kind != "cliptrace":
        raise UserError(f"--export {kind} is not known; use --export cliptrace DIR")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give --export cliptrace a folder")
    cliptrace.read(folder)


def _export(folder: Path, model: str, verdict: "Verdict", out: Path) -> None:
    """Puts the verdict, with the target feature if there is one, into a submission's folder."""
    from clipvet import io
    from clipvet.scan import cliptrace

    name, path = cliptrace.name_of(model), out / FEATURE
    feature = io.load_weights(path)["feature"] if path.exists() else None
    cliptrace.add(folder, name, bool(verdict.backdoored), feature)
    if verdict.backdoored is None:
        say(f"CLIPTrace's format knows no 'undecided': {name} stands there as clean")
    elif verdict.backdoored and feature is None:
        say(f"{name} is exported without a target feature, as this method finds none")
    say(f"{folder / 'predictions.json'} holds {len(cliptrace.read(folder))} models")

"""The front door: is this model to be used? One call runs every test that fits, cleans a copy where one is needed, and
says what to do, with the reasons and with what no test has looked at.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipvet.engine.workspace import in_words
from clipvet.jobs.inspecting import scan_files
from clipvet.jobs.inspection import open_suspect
from clipvet.jobs.leaving import say
from clipvet.jobs.planning import Step
from clipvet.jobs.vet_clean import clean_and_judge, judge_copy, pairs_for, trigger_folder
from clipvet.jobs.vet_inputs import Inputs, Options, check_paths, encoder_of, lists_classes, open_inputs, prompted
from clipvet.jobs.vet_next import command_of, fuller, next_steps
from clipvet.jobs.vet_pairs import pairs_stage
from clipvet.jobs.vet_plan import steps, total
from clipvet.jobs.vet_stages import (
    Bench,
    accuracy_stage,
    files_stage,
    inspect_stage,
    missed,
    reference_stage,
    text_stage,
)
from clipvet.scan.heads import has_prompts
from clipvet.scan.vetting import Stage, Vetting, judge, not_tested

if TYPE_CHECKING:
    from clipvet.scan.verdicts import FileFinding
    from clipvet.types import Clip


def vet(model: str | Path, out: str | Path | None = None, **options: Any) -> Vetting:
    """Vets a model, and returns what `clipvet vet` writes to vet.json; the pages lie in `out`.

    model: a name or a folder, as for `clipvet.load`. options: the fields of `Options`: data, task, images, reference,
    nulls, shots, cleaned, backdoor, classes, templates, seed, quick. Paths may be strings.

    A killed call goes on when it is made again; a finished one returns what it found. Raises UserError for bad input,
    Unsupported for a model that cannot be opened for what it is.

        found = clipvet.vet("runs/victim", task="shapes", data="shapes", out="vetted")
        print(found.sentence, found.exit_code)
    """
    for name in ("data", "task", "images", "reference", "shots", "pretrained"):
        options[name] = str(options[name]) if options.get(name) else None
    for name in ("cleaned", "backdoor", "classes", "templates"):
        options[name] = Path(options[name]) if options.get(name) else None
    options["nulls"] = tuple(map(Path, options.get("nulls", ())))
    o = Options(str(model), **options)
    return run(o, Path(out) if out else default_out(o.model))


def default_out(model: str) -> Path:
    """The folder where a vetting is written if none is named: vetted/ and the model's own name."""
    return Path("vetted") / (Path(model.rpartition(":")[2]).name or "model")


def run(options: Options, out: Path) -> Vetting:
    """`vet`, with the options and the folder spelled out."""
    from clipvet import io, ranks
    from clipvet.errors import UserError
    from clipvet.results import weights_hash

    if ranks.world() > 1:
        raise UserError("vet runs in one process; start it without torchrun")
    check_paths(options)
    files = scan_files(options.model, options.pretrained)
    try:
        clip = open_suspect(options.model, options.pretrained, options.seed)
    except UserError as e:
        if not any(f.severity == "dangerous" for f in files or []):
            raise
        return _unopened(options, out, files or [], str(e))
    inputs = open_inputs(options, clip)
    told = {"command": "vet", **_plain(options), "weights": inputs.weights, **_fingerprints(inputs)}
    told["base"] = weights_hash(encoder_of(clip))
    try:
        with io.output(out, told) as work:
            return _vet(Bench(work, inputs, told), files, out)
    except io.AlreadyDone:
        say(f"{out} is already done: nothing to do")
        return _again(out, files)


def plan(options: Options) -> tuple[list[Step], "Clip"]:
    """What `run` would do, and the model. Nothing is written."""
    check_paths(options)
    inputs = open_inputs(options, open_suspect(options.model, options.pretrained, options.seed))
    return steps(inputs, options.quick), inputs.clip


def _plain(options: Options) -> dict[str, Any]:
    return {k: [str(x) for x in v] if isinstance(v, tuple) else v for k, v in options.__dict__.items()}


def _fingerprints(inputs: Inputs) -> dict[str, Any]:
    """What went in, by content."""
    held = {"test": inputs.test.pictures if inputs.test else None, "pairs": inputs.pairs, "shots": inputs.shots}
    found: dict[str, Any] = {f"{k}_content": f"{p.name} {p.fingerprint}" for k, p in held.items() if p is not None}
    found |= {"reference_content": inputs.reference} if inputs.reference else {}
    return found | {"nulls_content": [sorted(null.scores.items()) for null in inputs.nulls]}


def _vet(bench: Bench, files: "list[FileFinding] | None", out: Path) -> Vetting:
    """All stages, in order, and the pages."""
    import time

    got, o, began = bench.inputs, bench.inputs.options, time.monotonic()
    bench.stages.append(files_stage(files))
    say(f"about {in_words(total(got))} on this machine, if a copy is to be cleaned; else less")
    say(f"  its files: {bench.stages[0].outcome.replace('_', ' ')}: {bench.stages[0].said}")
    if has_prompts(got.clip):
        inspect_stage(bench, "prompts", got.clip, o.model)
    inspect_stage(bench, "encoder", encoder_of(got.clip), o.model)
    if o.reference:
        reference_stage(bench, got.clip, o.model)
    text_stage(bench, got.clip, o.model)
    if got.pairs is not None:
        pairs_stage(bench, got.clip, o.model)
    accuracy = None
    if got.test is not None or got.pairs is not None:
        accuracy = accuracy_stage(bench, got.clip, trigger=trigger_folder(bench))
    else:
        bench.stages.append(missed("accuracy", "What it can do", "There is no --task and no --data to measure on."))
    if any(s.outcome == "fail" and s.name != "files" for s in bench.stages):
        if o.cleaned:
            bench.stages.append(files_stage(scan_files(str(o.cleaned), None)).model_copy(update={"of": "cleaned"}))
            judge_copy(bench, o.cleaned, "cleaned", accuracy)
        elif o.quick:
            bench.stages.append(missed("clean", "Cleaning a copy", "It was left out, as --quick asks.", "clean"))
        elif pairs_for(got):
            clean_and_judge(bench, got.clip, accuracy)
    return _leave(bench.work, out, o, bench.stages, got.weights, time.monotonic() - began, got)


def _unopened(options: Options, out: Path, files: "list[FileFinding]", why: str) -> Vetting:
    """The page on a model that cannot be opened and whose files would run code: that is enough to refuse it."""
    from clipvet import io

    stages = [files_stage(files), missed("encoder", "Its picture tower", f"The model was not opened: {why}")]
    told = {"command": "vet", **_plain(options), "files": [f.model_dump() for f in files]}
    try:
        with io.output(out, told) as work:
            return _leave(work, out, options, stages, None, 0.0, None)
    except io.AlreadyDone:
        return _again(out, files)


def _again(out: Path, files: "list[FileFinding] | None") -> Vetting:
    """The finished vetting in this folder. A file that is dangerous now makes it a refusal, whatever it was."""
    from clipvet import io

    found = Vetting.model_validate(io.read_json(out / "vet.json"))
    now = files_stage(files)
    if now.outcome == "fail" and not any(s.name == "files" and s.outcome == "fail" for s in found.stages):
        say("the model's files have changed since; vet it into another --out for a new page")
        stages = [now, *(s for s in found.stages if s.name != "files")]
        return found.model_copy(update=judge(stages).model_dump() | {"stages": stages})
    return found


def _leave(
    work: Path,
    out: Path,
    options: Options,
    stages: Sequence[Stage],
    weights: str | None,
    seconds: float,
    inputs: Inputs | None,
) -> Vetting:
    """vet.json, the page, the summary and the SARIF file."""
    from clipvet import io, results
    from clipvet.pages import vetting as page
    from clipvet.pages.sarif import sarif

    judged = judge(stages)
    copy = str(options.cleaned) if judged.cleaned == "cleaned" else judged.cleaned
    listed = inputs is not None and lists_classes(inputs.clip)
    cleanable = inputs is not None and inputs.pairs is not None and not inputs.small and not prompted(inputs.clip)
    todo = next_steps(options, out, stages, judged.advice, copy, listed, cleanable)
    found = Vetting(
        **{**judged.model_dump(), "cleaned": copy}, next=todo,
        model=options.model, weights=weights, stages=list(stages), not_tested=not_tested(stages), quick=options.quick,
        seconds=round(sum(s.seconds for s in stages) or seconds, 2), fuller=fuller(options, out, inputs),
        seed=options.seed, command=command_of(options, out), versions=results.versions(),
    )  # fmt: skip
    page.write_page(work / "report.html", found, page.trigger_picture(work, stages))
    (work / "summary.md").write_text(page.markdown(found), encoding="utf-8")
    io.write_json(work / "vet.sarif", sarif(found))
    io.write_json(work / "vet.json", found.model_dump())
    return found

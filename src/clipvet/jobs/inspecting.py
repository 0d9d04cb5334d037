"""The work of `clipvet inspect`: scan the files, find clean models to compare with, inspect, write the verdict."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clipvet.jobs.inspection import Asked
from clipvet.jobs.leaving import say
from clipvet.jobs.opening import path_of
from clipvet.jobs.working import working

if TYPE_CHECKING:
    from clipvet.scan.verdicts import FileFinding, Null, Verdict
    from clipvet.types import Finding

    Files = list[FileFinding]

WEAKER = 0.5  # of a model's sureness above chance; clean models with less are weak ones
FEATURE = "feature.safetensors"  # where pictures with the recovered trigger land


def scan_files(model: str, pretrained: str | None) -> "Files | None":
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
        say("the model's files were not scanned for code: pip install picklescan")
        return None
    found = [FileFinding(path=str(p), **t._asdict()) for p in there for t in gate.scan(p)]
    for f in found:
        say(f"{f.severity}: {f.file}: {f.what}")
    return found


def clean_models(null: Path | None, asked: Asked, weights: str, alpha: float) -> "tuple[Null | None, str]":
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


def notes_on(clean: "Null | None", asked: Asked) -> list[str]:
    """What makes the comparison with the clean models weaker: other classes, or models that know much less."""
    from statistics import median

    out = []
    if clean and clean.names and tuple(clean.names) != tuple(asked.classes):
        out.append("The clean models were asked about other classes than this one, so the comparison is weaker.")
    own = asked.sureness() if clean and clean.sure else None
    if clean and own is not None:
        theirs, chance = median(clean.sure.values()), 1 / len(asked.classes)
        if theirs - chance < WEAKER * (own - chance):
            out.append(
                f"The clean models know much less than this one: on the same pictures they are {theirs:.0%} sure "
                f"of their answers, this one {own:.0%}. So the comparison is weaker; calibrate with models that are as "
                "good."
            )
    return out


def decided(
    asked: Asked,
    found: "Finding",
    clean: "Null | None",
    alpha: float,
    compared: str,
    captions: Sequence[str],
    *,
    model: str,
    weights: str,
    files: "Files | None",
    seconds: float,
    command: str,
) -> "Verdict":
    """The verdict that follows from what an inspection has found. captions: to name the target by."""
    from clipvet import results
    from clipvet.scan import landing, verdicts

    waits, apart = getattr(asked.how, "waits", False), getattr(asked.how, "apart", None)
    near = landing.captions_near(asked.clip, found.feature, captions) if found.feature else []
    return verdicts.Verdict(
        **verdicts.decide(found, clean, alpha, asked.judged, waits, compared, near, apart),
        notes=notes_on(clean, asked), trigger="trigger" if found.trigger is not None else None,
        method=repr(asked.how), model=model, judged=asked.judged, weights=weights, pictures=asked.pool,
        seed=asked.seed, seconds=round(seconds, 2),
        command=command, versions=results.versions(), files=files,
    )  # fmt: skip


def inspected(
    asked: Asked,
    work: Path,
    clean: "Null | None",
    alpha: float,
    compared: str,
    captions: Sequence[str] = (),
    *,
    model: str,
    weights: str,
    files: "Files | None",
) -> "Verdict":
    """Runs the inspection; writes the recovered trigger, the page and the verdict. captions: to name the target by."""
    from clipvet import io, results
    from clipvet.data.answer_key import save_backdoor
    from clipvet.pages import inspection
    from clipvet.scan.features import target_feature
    from clipvet.types import Backdoor

    with working(work) as clock:
        found = asked.inspect()
    if found.trigger is not None:
        save_backdoor(Backdoor(found.trigger, found.target or ""), work / "trigger")
    feature = target_feature(found, asked.clip, asked.pictures)
    if feature is not None:
        io.save_weights({"feature": feature}, work / FEATURE)
    verdict = decided(
        asked, found, clean, alpha, compared, captions, model=model, weights=weights, files=files,
        seconds=clock.seconds, command=results.command(),
    )  # fmt: skip
    inspection.write_page(work / "report.html", verdict, found, clean, asked.clip, asked.pictures, asked.templates)
    io.write_json(work / "verdict.json", verdict.model_dump())
    return verdict

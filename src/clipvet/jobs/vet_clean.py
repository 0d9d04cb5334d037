"""Cleaning a copy, with what the user has: which method, on which pairs, and whether the copy is good."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from clipvet.jobs.cleaning import clean_into, open_cleaner
from clipvet.jobs.leaving import say
from clipvet.jobs.opening import open_method, plan
from clipvet.jobs.vet_inputs import Inputs, encoder_of, prompted
from clipvet.jobs.vet_pairs import called_ids, pairs_again
from clipvet.jobs.vet_stages import Bench, accuracy_stage, inspect_stage, missed
from clipvet.pages.vetting import called_method
from clipvet.scan.vetting import GIVEN, Stage, good_copy

if TYPE_CHECKING:
    from clipvet.types import Clip, Pairs


MOST_EPOCHS = 20  # over few pairs; more would teach the model these pairs by heart


class Way(NamedTuple):
    """One way to clean."""

    method: str
    how: Any
    pairs: "Pairs"
    said: str  # which pairs, in words


def ways(bench: Bench) -> Iterator[Way]:
    """The ways to clean that the user's things allow, the best first.

    Raises UserError for pairs that are too few, where there are no labelled pictures.

    Pairs: PAR, on those that are not called poisoned. Pairs of which some are called poisoned: UBT, on all. Labelled
    pictures: ci_repair, if a trigger was recovered, and RVPT. Class prompts learn from labelled pictures alone.
    """
    import numpy as np

    from clipvet.errors import UserError

    got, called = bench.inputs, called_ids(bench)
    if got.pairs is not None and not prompted(got.clip):
        kept = got.pairs.take(~np.isin(got.pairs.ids, called))
        what = f"{len(kept):,} of your pairs, without the {len(called):,} that are called poisoned"
        try:
            par = _enough(open_method("cleaners", "par", got.small, []), kept)
            yield Way("par", par, kept, what if len(called) else f"your {len(kept):,} pairs")
        except UserError as e:
            if got.shots is None:
                raise
            say(f"  {e}")
        if any(s.name == "pairs" and s.outcome == "fail" for s in bench.stages):
            yield Way("ubt", open_method("cleaners", "ubt", got.small, []), got.pairs, "all of your pairs")
    if got.shots is not None:
        what = f"{len(got.shots)} labelled pictures{of_others(got)}"
        data = got.options.shots or got.options.task or "shapes"
        if trigger := trigger_folder(bench):
            how = open_cleaner("ci_repair", data, got.options.templates, trigger.parent, [], got.small)
            yield Way("ci_repair", how, got.shots, what)
        if prompted(got.clip):
            return  # the picture tower is frozen
        rvpt = open_cleaner("rvpt", data, got.options.templates, None, [], got.small)
        yield Way("rvpt", rvpt, got.shots, what)


def of_others(got: Inputs) -> str:
    """Half a sentence where the labelled pictures show no class that the prompts were learned for."""
    own = {*getattr(got.clip, "classes", ())}
    if got.shots is None or not own:
        return ""
    said = " ".join({got.shots.caption(int(k)) for k in got.shots.ids})
    return "" if any(c in said for c in own) else f", of other classes than its own ({min(own)} ...)"


def _enough(how: Any, pairs: "Pairs") -> Any:
    """The method with enough steps for these pairs: a smaller batch, and for few pairs more epochs too."""
    from clipvet.engine.planning import FEWEST, SMALLEST, per_epoch, step_count
    from clipvet.errors import UserError

    if step_count(len(pairs), SMALLEST, how.epochs) >= FEWEST:
        return plan(how, pairs, [])
    epochs = -(-FEWEST // per_epoch(len(pairs), SMALLEST))
    if epochs > MOST_EPOCHS:
        raise UserError(
            f"{len(pairs)} pairs are too few to clean with; give {SMALLEST * FEWEST // MOST_EPOCHS} or more"
        )
    say(f"  {len(pairs)} pairs are few: {epochs} epochs in batches of {SMALLEST}, which make {FEWEST} steps or more")
    return replace(how, epochs=epochs, batch=SMALLEST)


def trigger_folder(bench: Bench) -> Path | None:
    """Where the trigger lies that an inspection has recovered and called a backdoor's."""
    names = [s.name for s in bench.stages if s.of == GIVEN and s.outcome == "fail" and s.name in ("prompts", "encoder")]
    folders = [bench.folder(name) / "trigger" for name in names]
    return next((f for f in folders if (f / "backdoor.json").exists()), None)


def clean_and_judge(bench: Bench, clip: "Clip", accuracy: Stage | None) -> None:
    """Cleans in one way after the other, until a copy passes. Every copy is inspected and measured as the model was."""
    from clipvet.errors import UserError

    try:
        for way in ways(bench):
            name = f"clean-{way.method}"
            title = f"Cleaning a copy with {called_method(way.method)}"
            stage = bench.run("clean", title, lambda work, w=way: _clean(bench, clip, w, work), name)
            if stage.outcome == "done":
                judge_copy(bench, bench.work / name, name, accuracy)
                if good_copy(name, bench.stages):
                    return
    except UserError as e:
        bench.stages.append(missed("clean", "Cleaning a copy", f"It could not be cleaned: {e}", "clean"))


def _clean(bench: Bench, clip: "Clip", way: Way, work: Path) -> Stage:
    o = bench.inputs.options
    say(f"  {called_method(way.method)} on {way.said}")
    clean_into(
        work, way.how, clip, way.pairs, method=way.method, model=o.model, seed=o.seed,
        beside_base="labelled" in way.how.needs,
    )  # fmt: skip
    return Stage(
        name="clean", title="Cleaning a copy", outcome="done", said=f"By {called_method(way.method)}, with {way.said}."
    )


def judge_copy(bench: Bench, model: Path, of: str, accuracy: Stage | None) -> None:
    """Inspects and measures a cleaned copy with the tests of the given model."""
    from clipvet.jobs.inspection import open_suspect

    clip = open_suspect(str(model), None, bench.inputs.options.seed)
    own = {s.name: s for s in bench.stages if s.of == GIVEN}
    if "prompts" in own:
        inspect_stage(bench, "prompts", clip, str(model), of)
    if "encoder" in own:
        inspect_stage(bench, "encoder", encoder_of(clip), str(model), of)
    if "pairs" in own and own["pairs"].outcome == "fail":
        pairs_again(bench, clip, of)
    if accuracy is not None and accuracy.outcome != "not_tested":
        accuracy_stage(bench, clip, of, trigger_folder(bench), accuracy)


def pairs_for(inputs: Inputs) -> str:
    """What the user has to clean with, in words; empty if nothing."""
    have = [f"{len(inputs.pairs):,} pairs"] if inputs.pairs is not None else []
    return " and ".join([*have, *([f"{len(inputs.shots)} labelled pictures"] if inputs.shots is not None else [])])

"""What to do after a vetting: the exact commands, and what a fuller run would add."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipvet.engine.workspace import in_words
from clipvet.jobs.vet_inputs import Inputs, Options
from clipvet.jobs.vet_plan import total
from clipvet.scan.vetting import GIVEN, Advice, Fuller, Next, Stage

SCANNER = "pip install picklescan"
CLEAN_MODELS = 19  # clean models that can just show p = 0.05


def command_of(options: Options, out: Path | None = None, **other: Any) -> str:
    """The command of this vetting, with `other` options instead of some."""
    return shlex.join(["clipvet", "vet", *options.words(**other), *(["--out", str(out)] if out else [])])


def next_steps(
    options: Options,
    out: Path,
    stages: Sequence[Stage],
    advice: Advice,
    cleaned: str | None = None,
    listed: bool = False,
    cleanable: bool = False,
) -> list[Next]:
    """What to do now, with the exact commands.

    cleaned: the copy that is to be used. listed: whether the model lists the classes of its prompts. cleanable: whether
    `clipvet clean` with its usual settings suits the model and the pairs.
    """
    own = {s.name: s for s in stages if s.of == GIVEN}
    if cleaned:
        copy = cleaned if options.cleaned else str(out / cleaned)
        check = shlex.join(["clipvet", "verify", copy, *(["--task", options.task] if options.task else [])])
        return [Next(why=f"Use {copy} instead. This checks at any time that nobody has changed it.", command=check)]
    steps = [_instead(options, out, stages, own)] if advice == "do_not_use" else []
    steps += [
        step for name in ("prompts", "encoder") if (step := _calibrate(options, _left_open(stages, name), listed))
    ]
    passed = "pairs" in own and own["pairs"].outcome == "pass"
    if own["encoder"].outcome == "undecided" and advice == "undecided" and passed and cleanable:
        steps.append(_clean(options, out))
    if "files" in own and own["files"].outcome == "not_tested":
        steps.append(_scannable())
    if own["encoder"].outcome != "not_tested" and _unmeasured(own.get("accuracy")):
        why = "Measure it on your task, a folder with one folder of pictures for each class."
        steps.append(Next(why=why, command=command_of(options, another(out), task="TASK")))
    if advice == "use" and not options.reference and "text" in own and own["text"].outcome == "not_tested":
        why = "To have its text tower tested too, name the clean model that it was made from, if there is one."
        steps.append(Next(why=why, command=command_of(options, another(out), reference="REFERENCE")))
    if "pairs" in own and own["pairs"].outcome == "undecided":
        steps.append(Next(why=f"Look at the pairs that stand out: {out / 'pairs' / 'report.html'}."))
    return steps


def another(out: Path) -> Path:
    """A folder for a further run, beside this one."""
    return out.with_name(out.name + "-2")


def _unmeasured(accuracy: Stage | None) -> bool:
    return accuracy is None or accuracy.outcome in ("not_tested", "undecided")


def _instead(options: Options, out: Path, stages: Sequence[Stage], own: dict[str, Stage]) -> Next:
    """What to do instead of using the model."""
    failed = [s.name for s in own.values() if s.outcome == "fail"]
    more = command_of(options, another(out), data="PAIRS.csv", cleaned=None, quick=False)
    if failed == ["files"] and own["encoder"].outcome == "not_tested":
        return Next(why="Ask for the weights as safetensors, which cannot hold code, or take another model.")
    if failed == ["files"]:
        safe = ["clipvet", "convert", "--model", options.model, "--out", f"{out}-safe"]
        return Next(why="Take the weights without the code, and vet that copy.", command=shlex.join(safe))
    if options.quick:
        return Next(why="Clean a copy: run it in full.", command=command_of(options, another(out), quick=False))
    copies = [s for s in stages if s.of != GIVEN]
    if any(s.outcome == "undecided" for s in copies) and not any(s.outcome == "fail" for s in copies):
        return Next(
            why="Take another model, or have the cleaned copy judged: clean models to compare it with are missing."
        )
    if "prompts" in failed:
        more = command_of(options, another(out), shots="SHOTS", cleaned=None, quick=False)
        why = (
            "Take another model, or repair a copy with labelled pictures: a folder for each class, 16 pictures in each."
        )
        return Next(why=why, command=more)
    if copies:
        return Next(why="Take another model, or clean again with more pairs that you trust.", command=more)
    return Next(why="Take another model, or clean a copy with pairs of pictures and captions.", command=more)


def _left_open(stages: Sequence[Stage], name: str) -> Stage | None:
    """The stage of this name that is undecided: the given model's, or a cleaned copy's."""
    return next((s for s in stages if s.name == name and s.outcome == "undecided"), None)


def _clean(options: Options, out: Path) -> Next:
    """A way out for those who have no clean models: a copy that is cleaned on suspicion."""
    left = options.words(images=None, reference=None, nulls=(), shots=None, cleaned=None, backdoor=None, quick=False)
    words = ["clipvet", "clean", *left, "--method", "par", "--out", f"{out}-cleaned"]
    why = "Or, without clean models, use a copy that was cleaned on suspicion; you are told what it has lost."
    return Next(why=why, command=shlex.join(words))


def _scannable() -> Next:
    """How to have the files scanned."""
    from importlib.util import find_spec

    if find_spec("picklescan") is None:
        return Next(why="Install the scanner and vet again, so that its files are scanned.", command=SCANNER)
    return Next(why="Download the model, and give its folder instead of its name: then its files are scanned too.")


def _calibrate(options: Options, stage: Stage | None, listed: bool) -> Next | None:
    """How to get a decision from an inspection that was left open for want of clean models: asked as it was asked."""
    from clipvet.data.sources import WORLDS

    if stage is None:
        return None
    words = ["clipvet", "calibrate", "--models", "CLEAN", "--out", "null.json"]
    words += ["--method", "clip_inspector"] if stage.name == "prompts" else []
    classes = str(options.classes or options.task or ("shapes" if options.data in WORLDS else "imagenet"))
    words += ["--classes", classes] if options.classes or stage.name != "prompts" or not listed else []
    images = options.images or (options.data if not options.task and options.data not in WORLDS else None)
    words += ["--images", images] if images else []
    words += ["--templates", str(options.templates)] if options.templates else []
    words += ["--seed", str(options.seed)] if options.seed else []
    took = in_words((CLEAN_MODELS + 1) * max(stage.seconds, 1))
    made = f"Put {CLEAN_MODELS} or more clean models of its kind into a folder CLEAN"
    if stage.name == "prompts":  # these cost little
        made = (
            f"Learn {CLEAN_MODELS} or more clean ones into a folder CLEAN, on the same base model and classes, with "
            "`clipvet tune --seed 1`, 2 ..."
        )
    why = f"{made} and calibrate on them, which takes "
    return Next(why=f"{why}about {took} here. Then vet again with --null null.json.", command=shlex.join(words))


def fuller(options: Options, out: Path, inputs: Inputs | None) -> Fuller | None:
    """What a fuller run would add and how long it would take; None where nothing was left out."""
    if not options.quick:
        return None
    what = "All searches, all pairs, and a cleaned copy where one is needed."
    full = command_of(options, another(out), quick=False)
    return Fuller(what=what, seconds=round(total(inputs), 1) if inputs else None, command=full)

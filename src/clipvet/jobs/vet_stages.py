"""The tests of a vetting, each a function that leaves its files in a folder and returns a `Stage`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipvet.jobs.inspecting import clean_models, inspected
from clipvet.jobs.leaving import say
from clipvet.jobs.vet_inputs import Inputs, asked_of, encoder_of, null_for
from clipvet.jobs.working import measure_own
from clipvet.scan.sight import SIGHT, sight_of
from clipvet.scan.vetting import GIVEN, Number, Stage

if TYPE_CHECKING:
    from clipvet.scan.verdicts import FileFinding, Verdict
    from clipvet.types import Backdoor, Clip, Measured

REFERENCE = 256  # pictures, for the comparison with a reference
FEWER = {"masked": 2, "faint": 1, "warped": 1, "striped": 1, "steps": 60}  # of collapse, in a quick first look
ALIKE = 0.98  # cosine of two classes' prompts, above which the model cannot tell them apart
SHOWN = ("clean_accuracy", "asr", "text_retrieval_recall@5", "pairs_text_retrieval_recall@5")  # numbers that are kept
TEST_OF = {"prompts": "its learned prompts", "encoder": "its picture tower", "text": "its text tower"}


@dataclass
class Bench:
    """Where a vetting works: the folder, and the stages so far."""

    work: Path
    inputs: Inputs
    told: dict[str, Any]  # what the results depend on; another vetting may not go on here
    stages: list[Stage] = field(default_factory=list)

    def folder(self, name: str, of: str = GIVEN) -> Path:
        """Where a stage lies. A cleaned copy is the folder `of`; what was found out about it lies beside."""
        return self.work / (name if of == GIVEN else of if name == "clean" else f"{of}-{name}")

    def run(self, name: str, title: str, make: Callable[[Path], Stage], of: str = GIVEN) -> Stage:
        """The stage that `make` makes in its folder, or that an earlier run left there.

        Where it cannot be made, the stage says why, and the vetting goes on.
        """
        import time
        import traceback

        from clipvet import io
        from clipvet.errors import Unsupported, UserError

        folder, began = self.folder(name, of), time.monotonic()
        say(f"{title} ...")
        try:
            with io.output(folder, {**self.told, "stage": name, "of": of}) as work:
                stage = make(work)
                stage = stage.model_copy(
                    update={"of": of, "folder": folder.name, "seconds": round(time.monotonic() - began, 2)}
                )
                if (work / "report.html").exists():
                    stage.page = f"{folder.name}/report.html"
                io.write_json(work / "stage.json", stage.model_dump())
        except io.AlreadyDone:
            stage = Stage.model_validate(io.read_json(folder / "stage.json"))
        except UserError as e:
            stage = missed(name, title, f"It could not be run: {e}", of, isinstance(e, Unsupported))
        except Exception as e:  # one broken test must not cost the others
            traceback.print_exc()
            stage = missed(name, title, f"It could not be run, as clipvet stumbled ({io.line(e)}).", of)
        say(f"  {stage.outcome.replace('_', ' ')}: {stage.said}")
        self.stages.append(stage)
        return stage


def missed(name: str, title: str, why: str, of: str = GIVEN, unsupported: bool = False) -> Stage:
    """A test that was not run."""
    return Stage(name=name, of=of, title=title, outcome="not_tested", said=why, unsupported=unsupported)


def files_stage(found: "list[FileFinding] | None") -> Stage:
    """What the scan of the files says."""
    title = "Its files"
    if found is None:
        return missed("files", title, "They were not scanned for code: it has no files here, or there is no scanner.")
    bad = [f for f in found if f.severity == "dangerous"]
    odd = [f for f in found if f.severity == "suspicious"]
    sight, names = SIGHT["files"], list(dict.fromkeys(f.file for f in bad + odd))
    more = [f"{f.severity}: {f.file}: {f.what}" for f in found]
    if bad:
        said = f"{bad[0].file} would run code if it were loaded the ordinary way: {bad[0].what}."
    elif odd:
        said = f"{odd[0].file} is more than weights need: {odd[0].what}. Look at it, or take the weights without it."
    else:
        said = "Nothing in them would run code."
    outcome = "fail" if bad else "undecided" if odd else "pass"
    return Stage(
        name="files", title=title, outcome=outcome, said=said, more=more, sees=[*sight.sees], blind=[*sight.blind],
        files=names,
    )  # fmt: skip


def inspect_stage(bench: Bench, name: str, clip: "Clip", model: str, of: str = GIVEN) -> Stage:
    """prompts or encoder: is there a trigger? The inspection's own page and verdict lie in its folder."""
    title = {"prompts": "Its learned prompts", "encoder": "Its picture tower"}[name]

    def make(work: Path) -> Stage:
        from dataclasses import replace

        from clipvet.results import weights_hash

        if name == "encoder" and (same := _borrowed(bench, name, title, clip) or _kept(bench, clip, of)):
            return same
        asked = asked_of(bench.inputs, clip, "collapse" if name == "encoder" else None)
        null, told = _null(bench.inputs, name), weights_hash(clip)
        clean, compared = clean_models(null, asked, told, bench.inputs.options.alpha)
        more = []
        if bench.inputs.options.quick and clean is None and name == "encoder":
            asked = asked._replace(how=replace(asked.how, **getattr(asked.how, "quick", FEWER)))
            more.append("A quick first look: fewer searches and steps than in a full run.")
        verdict = inspected(
            asked, work, clean, bench.inputs.options.alpha, compared, model=model, weights=told, files=None
        )
        return from_verdict(name, title, verdict, [*verdict.notes, *more])

    return bench.run(name, title, make, of)


def _borrowed(bench: Bench, name: str, title: str, clip: "Clip") -> Stage | None:
    """The stage of a tower that is the reference's own, as below learned prompts; None for another."""
    from clipvet.results import weights_hash

    if not bench.inputs.reference or weights_hash(encoder_of(clip)) != bench.inputs.reference:
        return None
    return Stage(
        name=name, title=title, outcome="pass", said="It is the reference's own, weight for weight: as clean as that.",
        sees=["any change of the reference's weights"], blind=["a backdoor that the reference has, too"],
    )  # fmt: skip


def _kept(bench: Bench, clip: "Clip", of: str) -> Stage | None:
    """The given model's stage for a copy with the very same tower, as below repaired prompts; else None."""
    from clipvet.results import weights_hash

    own = next((s for s in bench.stages if s.name == "encoder" and s.of == GIVEN), None)
    if of == GIVEN or own is None or weights_hash(clip) != bench.told.get("base"):
        return None
    return own.model_copy(update={"said": f"It is the given model's, weight for weight. {own.said}"})


def _null(inputs: Inputs, name: str) -> Path | None:
    fits = [p for p, null in zip(inputs.options.nulls, inputs.nulls) if null_for(null, inputs) == name]
    return fits[0] if fits else None


def from_verdict(name: str, title: str, verdict: "Verdict", more: Sequence[str] = ()) -> Stage:
    """A verdict as a stage. Only a calibrated verdict that finds nothing is a pass."""
    sight, said = sight_of(verdict.method), verdict.sentence
    if verdict.backdoored:
        outcome = "fail"
    elif verdict.backdoored is False and verdict.calibrated:
        found = said.partition(": ")[2].partition(" Judged:")[0]
        outcome, said = "pass", f"Nothing found in {TEST_OF.get(name, 'it')}: {found}"
    else:
        outcome = "undecided"
    n = verdict.clean_models
    p = [f"p = {verdict.p_value:.3g}; with {n} clean models it cannot be below {1 / (n + 1):.3g}."] if n else []
    return Stage(
        name=name, title=title, outcome=outcome, said=said, more=[*p, *more], sees=[*sight.sees], blind=[*sight.blind],
        target=verdict.target if verdict.backdoored else None,
    )  # fmt: skip


def reference_stage(bench: Bench, clip: "Clip", model: str) -> Stage:
    """Is a class much easier to reach than in the clean model that this one was made from?

    There is no calibration, so a class that stands out leaves it undecided, and nothing clears the model.
    """
    title = "Beside its reference"

    def make(work: Path) -> Stage:
        from clipvet.results import weights_hash

        settings = [f"reference={bench.inputs.options.reference}", "form=patch"]
        asked = asked_of(bench.inputs, clip, "clip_inspector", settings, REFERENCE)
        verdict = inspected(
            asked, work, None, bench.inputs.options.alpha, "", model=model, weights=weights_hash(clip), files=None
        )
        stage = from_verdict("reference", title, verdict)
        if verdict.backdoored:
            said = f"The class '{verdict.target}' is much easier to reach than in the reference, as with a backdoor."
            return stage.model_copy(update={"outcome": "undecided", "said": said, "more": [verdict.sentence]})
        return stage.model_copy(update={"outcome": "done", "said": "No class is much easier to reach than there."})

    return bench.run("reference", title, make)


def text_stage(bench: Bench, clip: "Clip", model: str) -> Stage:
    """The text tower, by the first inspector that says that it `reads_text`."""
    from clipvet import find

    title = "Its text tower"
    known = {n: find.load("inspectors", n) for n in find.names("inspectors")}
    method = next((n for n, kind in known.items() if getattr(kind, "reads_text", False)), None)
    if method is None:
        why = "No test for text towers is built in yet: a trigger in captions would not be seen."
        bench.stages.append(missed("text", title, why))
        return bench.stages[-1]

    named = bench.inputs.options.reference
    if not named:  # clean text towers differ too much for a verdict of one by itself
        why = "A trigger word in captions shows only beside the clean model that this one was made from"
        why += "; give it as --reference."
        say(f"{title} ...")
        say(f"  not tested: {why}")
        bench.stages.append(missed("text", title, why))
        return bench.stages[-1]

    def make(work: Path) -> Stage:
        from clipvet.results import weights_hash

        if same := _borrowed(bench, "text", title, clip):
            return same
        asked = asked_of(bench.inputs, clip, method, [f"reference={named}"])
        alpha, told = bench.inputs.options.alpha, weights_hash(clip)
        clean, compared = clean_models(None, asked, told, alpha)
        verdict = inspected(asked, work, clean, alpha, compared, model=model, weights=told, files=None)
        return from_verdict("text", title, verdict)

    return bench.run("text", title, make)


def accuracy_stage(
    bench: Bench, clip: "Clip", of: str = GIVEN, trigger: Path | None = None, before: Stage | None = None
) -> Stage:
    """What the model can do, and what the recovered trigger does to it. before: the given model's stage, for a copy."""
    title = "What it can do" if of == GIVEN else "What the copy can do"

    def make(work: Path) -> Stage:
        got, sight = bench.inputs, SIGHT["accuracy"]
        measured = _measured(clip, got, trigger)
        numbers = {k: Number(**m._asdict()) for k, m in measured.items() if k in SHOWN or k.startswith("recovered")}
        outcome, said, more = _accuracy(numbers, got, before)
        if got.test is not None:
            more += notes_on_classes(clip, got)
        return Stage(
            name="accuracy", title=title, outcome=outcome, said=said, more=more, sees=[*sight.sees],
            blind=[*sight.blind], numbers=numbers,
        )  # fmt: skip

    return bench.run("accuracy", title, make, of)


def _measured(clip: "Clip", got: Inputs, trigger: Path | None) -> "dict[str, Measured]":
    """Accuracy, retrieval and the answer key's success; `recovered_asr`: that of the trigger that was recovered."""
    from clipvet.data.answer_key import load_backdoor
    from clipvet.engine.embed import sharing
    from clipvet.experiments.evaluation import measure_all
    from clipvet.measures.attack_success import AttackSuccess
    from clipvet.rng import Rng

    if got.test is None:
        return measure_own(clip, got.pairs) if got.pairs else {}
    rng, test = Rng(got.options.seed).fork("measure"), got.test
    with sharing():
        known = got.key if got.key and got.key.target in test.classes else None
        found = measure_all(clip, test, known, rng)
        again: Backdoor | None = load_backdoor(trigger) if trigger else None
        if again and again.target in test.classes:
            own = AttackSuccess().measure(clip, test, again, rng)
            found |= {"recovered_asr": own["asr"], "recovered_without": own["clean_target_rate"]}
    return found


def _accuracy(numbers: dict[str, Number], got: Inputs, before: Stage | None) -> tuple[Any, str, list[str]]:
    """The outcome, the sentence and what else is to be said."""
    from clipvet.jobs.working import KEPT, harm
    from clipvet.types import Measured

    def of(held: dict[str, Number]) -> "dict[str, Measured]":
        return {k: Measured(m.value, m.n, m.low, m.high) for k, m in held.items()}

    more = []
    name = next((k for k in KEPT if k in numbers), None)
    if name is None:
        return "not_tested", "There is no task and there are no pairs to measure on.", []
    m = numbers[name]
    said = f"{KEPT[name][0].upper()}{KEPT[name][1:]} is {m.value:.1%} ({m.low:.1%} to {m.high:.1%}, n = {m.n:,})"
    if "recovered_asr" in numbers:
        a, b = numbers["recovered_asr"], numbers["recovered_without"]
        more.append(
            f"The recovered trigger turns {a.value:.0%} of the other classes' pictures ({b.value:.0%} without)."
        )
    if "asr" in numbers:
        more.append(f"The trigger of the answer key succeeds on {numbers['asr'].value:.1%} of the pictures.")
    if before is not None:
        if name in before.numbers:
            said += f"; the given model's is {before.numbers[name].value:.1%}"
        lost = harm(of(before.numbers), of(numbers))
        return ("fail", lost + ".", more) if lost else ("pass", said + ".", more)
    if name == "clean_accuracy" and got.test is not None and m.low <= 1 / len(got.test.classes):
        return "undecided", said + ". That is no better than chance: the class names may not fit the model.", more
    return "pass", said + ".", more


def notes_on_classes(clip: "Clip", got: Inputs) -> list[str]:
    """Classes that the model does not know, or cannot tell apart."""
    import numpy as np
    import torch

    from clipvet.engine.embed import class_embeddings, classifier, embed_images

    assert got.test is not None
    test, out = got.test, []
    with torch.no_grad():
        z, kept = embed_images(clip, test.pictures)
        guess, labels = classifier(clip, test.classes, test.templates)(z).argmax(1).cpu().numpy(), test.labels[kept]
        w = class_embeddings(clip, test.classes, test.templates)
        same = np.argwhere(np.triu((w @ w.T).cpu().numpy(), 1) > ALIKE)
    unknown = [
        c for k, c in enumerate(test.classes) if (labels == k).sum() >= 5 and not (guess[labels == k] == k).any()
    ]
    if unknown:
        out.append(f"It does not know {_some(unknown)}: none of their pictures is named rightly.")
    if len(same):
        told = _some([f"'{test.classes[a]}' and '{test.classes[b]}'" for a, b in same.tolist()])
        out.append(f"It can hardly tell apart the class names {told}; a target among them may be named wrongly.")
    return out


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

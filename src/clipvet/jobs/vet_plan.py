"""How long a vetting will take here, and what it will do: from a probe of the model, before anything is computed."""

from clipvet.inspectors.collapse import Collapse
from clipvet.jobs.opening import open_method
from clipvet.jobs.planning import Step, speed
from clipvet.jobs.vet_inputs import Inputs
from clipvet.scan.heads import has_prompts

PAIRS = 5000  # that a quick run looks at


def steps(inputs: Inputs, quick: bool) -> list[Step]:
    """What will be done, with the time of each."""
    got, (picture, caption) = inputs, speed(inputs.clip)
    inspect = Collapse().work * picture
    out = [Step("scan the files for code", 1.0)]
    if has_prompts(got.clip):
        out.append(Step("inspect the learned prompts", None))
    out.append(Step("inspect the picture tower", inspect))
    if got.options.reference:
        out.append(Step("compare with the reference", None))
    measure, n = 0.0, 0
    if got.pairs is not None:
        n = min(len(got.pairs), PAIRS) if quick else len(got.pairs)
        out.append(Step(f"look for poison in {n:,} pairs", n * (2 * picture / 3 + caption)))
        measure = min(len(got.pairs), 1000) * (picture / 3 + caption)
    if got.test is not None:
        measure = len(got.test.pictures) * picture
        out.append(Step(f"measure on {len(got.test.pictures):,} pictures of {len(got.test.classes)} classes", measure))
    again = Step("inspect and measure the cleaned copy", inspect + measure, True)
    if got.options.cleaned:
        return [*out, again]
    if quick or (got.pairs is None and got.shots is None):
        return out
    par = open_method("cleaners", "par", got.small, [])
    trained = par.epochs * len(got.pairs) * (4 * picture / 3 + 4 * caption) if got.pairs is not None else None
    how = f"{len(got.pairs):,} pairs" if got.pairs is not None else "labelled pictures"
    return [*out, Step(f"clean a copy with {how}", trained, True, True), again]


def total(inputs: Inputs) -> float:
    """Seconds of a full run in which a copy is cleaned, as far as they are known."""
    return sum(s.seconds or 0.0 for s in steps(inputs, False))

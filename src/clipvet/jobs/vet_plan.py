"""How long a vetting will take here, and what it will do: from a probe of the model, before anything is computed."""

import time
from typing import TYPE_CHECKING, NamedTuple

from clipvet.engine.workspace import in_words
from clipvet.inspectors.collapse import Collapse
from clipvet.jobs.opening import open_method
from clipvet.jobs.vet_inputs import Inputs
from clipvet.scan.heads import has_prompts

if TYPE_CHECKING:
    from clipvet.types import Clip

PROBE = 8  # pictures and captions
PAIRS = 5000  # that a quick run looks at


class Step(NamedTuple):
    """Something that a vetting does."""

    what: str
    seconds: float | None  # None: not known
    later: bool = False  # only where something is found


def speed(clip: "Clip") -> tuple[float, float]:
    """Seconds that a picture takes, forward and backward, and a caption forward."""
    import torch

    from clipvet.engine.embed import device_of
    from clipvet.models.adapter import frozen

    still, side, device = frozen(clip), clip.geometry.size, device_of(clip)
    x = torch.full((PROBE, 3, side, side), 0.5, device=device, requires_grad=True)
    took = []
    for _ in range(2):  # the first warms up
        began = time.monotonic()
        still.encode_image(x).square().sum().backward()
        middle = time.monotonic()
        with torch.no_grad():
            still.encode_text(["a photo of a cat."] * PROBE)
        took = [(middle - began) / PROBE, (time.monotonic() - middle) / PROBE]
    return took[0], took[1]


def steps(inputs: Inputs, quick: bool) -> list[Step]:
    """What will be done, with the time of each."""
    got, (picture, caption) = inputs, speed(inputs.clip)
    look = Collapse()  # the inspection of encoders
    inspect = (look.masked + look.larger + look.faint + look.warped) * look.batch * look.steps * picture
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
    return [*out, Step(f"clean a copy with {how}", trained, True), again]


def total(inputs: Inputs) -> float:
    """Seconds of a full run in which a copy is cleaned, as far as they are known."""
    return sum(s.seconds or 0.0 for s in steps(inputs, False))


def told(inputs: Inputs) -> list[str]:
    """The plan in words, with the time and the least memory."""
    found = steps(inputs, inputs.options.quick)
    lines = []
    for s in found:
        when = "only if something is found: " if s.later else ""
        took = "time not known" if s.seconds is None else f"about {in_words(s.seconds)}"
        lines.append(f"{when}{s.what}: {took}")
    whole, first = (sum(s.seconds or 0.0 for s in found if not (s.later and skip)) for skip in (False, True))
    more = f"; {in_words(whole)} with a cleaned copy" if whole > first else ""
    lines.append(f"in all about {in_words(first)}{more}")
    weights = sum(p.numel() * p.element_size() for p in inputs.clip.parameters())  # pyright: ignore
    lines.append(f"memory: {weights * 6 / 2**30:.2g} GiB or more while a copy is cleaned (six times the weights)")
    return lines

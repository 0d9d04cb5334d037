"""What a vetting says: its stages, the advice that follows from them, and the schema of vet.json.

A stage is one test, or one piece of work, on the given model or on a cleaned copy of it. The advice is use, do not use,
use the cleaned copy, or undecided. It follows from the stages by three rules:

- One test that fails is enough for "do not use". Where a cleaned copy then passes the tests that are NEEDED, and all
  that the given model failed, the copy is to be used.
- "Use" takes a pass in every test that is NEEDED. A test that could not be run, or that had no power, is no pass.
- Everything else is undecided. Of the text tower alone it is said that it was left open: no test for it is calibrated.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

Outcome = Literal["pass", "fail", "undecided", "not_tested", "done"]
Advice = Literal["use", "do_not_use", "use_cleaned", "undecided"]
NEEDED = ("files", "prompts", "encoder")  # tests without whose pass no model is recommended; prompts: if it has any
CODES: dict[Advice, int] = {"use": 0, "do_not_use": 1, "use_cleaned": 1, "undecided": 4}
UNSUPPORTED = 3
GIVEN = "given"
TITLES: dict[Advice, str] = {
    "use": "Use this model",
    "do_not_use": "Do not use this model",
    "use_cleaned": "Do not use this model. Use the cleaned copy",
    "undecided": "Undecided",
}


class Number(BaseModel):
    """A measured fraction with its sample size and 95 % interval."""

    value: float
    n: int
    low: float
    high: float


class Stage(BaseModel):
    """One test, or one piece of work."""

    model_config = ConfigDict(extra="forbid")

    name: str  # files, prompts, encoder, text, reference, pairs, accuracy or clean; see docs/howto/vet.md
    of: str = GIVEN  # the model that it is about: the given one, or the folder of a cleaned copy
    title: str
    outcome: Outcome
    said: str  # one or two sentences
    more: list[str] = []  # further sentences
    sees: list[str] = []  # what this test would find
    blind: list[str] = []  # what it would miss
    numbers: dict[str, Number] = {}
    target: str | None = None  # the class that a backdoor seems to lead to
    files: list[str] = []  # the files with findings, relative to the model
    unsupported: bool = False  # whether the test cannot work on this kind of model at all
    folder: str | None = None  # what the stage left, beside vet.json
    page: str | None = None  # its own page, beside vet.json
    seconds: float = 0.0


class Next(BaseModel):
    """Something to do now, with the command where there is one."""

    why: str
    command: str | None = None


class Fuller(BaseModel):
    """What a fuller run would add, and about how long it would take."""

    what: str
    seconds: float | None = None  # None: not known
    command: str | None = None


class Vetting(BaseModel):
    """vet.json."""

    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1  # of this schema
    advice: Advice
    exit_code: int
    sentence: str
    reasons: list[str]
    next: list[Next]
    model: str
    weights: str | None  # hash; None: the model could not be opened
    cleaned: str | None  # folder of the recommended copy, beside vet.json
    stages: list[Stage]
    not_tested: list[str]  # what no test has looked at
    quick: bool
    seconds: float
    fuller: Fuller | None
    seed: int
    command: str
    versions: dict[str, str]


class Judged(BaseModel):
    """The advice and what it rests on."""

    advice: Advice
    exit_code: int
    sentence: str
    reasons: list[str]
    cleaned: str | None


def judge(stages: Sequence[Stage]) -> Judged:
    """The advice that follows from the stages."""
    own = [s for s in stages if s.of == GIVEN]
    failed = [s for s in own if s.outcome == "fail"]
    if failed:
        return _refuse(failed, stages)
    open_ = [s for s in own if s.name in NEEDED and s.outcome != "pass"]
    doubts = [s for s in own if s.name not in (*NEEDED, "text") and s.outcome == "undecided"]
    if not open_ and not doubts and any(s.name == "encoder" for s in own):
        left = [s.title[0].lower() + s.title[1:] for s in own if s.name in (*NEEDED, "text") and s.outcome != "pass"]
        sentence = "Use this model: the tests that could be run found nothing."
        sentence += f" Left open: {_join(left)}." if left else ""
        return Judged(advice="use", exit_code=0, sentence=sentence, reasons=_reasons(own), cleaned=None)
    why = open_ + doubts
    code = UNSUPPORTED if why and all(s.unsupported for s in why) else CODES["undecided"]
    said = _join([f"{s.title[0].lower()}{s.title[1:]}" for s in why]) or "the model"
    sentence = f"Undecided: no test failed, but {said} could not be judged. Do not rely on this model yet."
    return Judged(
        advice="undecided", exit_code=code, sentence=sentence, reasons=_reasons([*why, *_rest(own, why)]), cleaned=None
    )


def _refuse(failed: list[Stage], stages: Sequence[Stage]) -> Judged:
    """Do not use it; or use the copy that passes."""
    copies = made(stages)
    good = next((c for c in copies if good_copy(c, stages)), None)
    own = [s for s in stages if s.of == GIVEN]
    target = next((s.target for s in failed if s.target), None)
    what = f" towards '{target}'" if target else ""
    if any(s.name != "files" for s in failed):
        why = f"it looks backdoored{what}"
    else:
        why = "its files would run code when they are loaded the ordinary way"
    reasons = _reasons([*failed, *_rest(own, failed)])
    if good:
        sentence = f"Do not use this model: {why}. Use the cleaned copy: it passes the tests that this one failed."
        reasons += _reasons([s for s in stages if s.of == good])
        return Judged(advice="use_cleaned", exit_code=1, sentence=sentence, reasons=reasons, cleaned=good)
    tried = " The cleaned copy is not shown to be good." if copies else ""
    reasons += _reasons([s for s in stages if s.of != GIVEN])
    sentence = f"Do not use this model: {why}.{tried}"
    return Judged(advice="do_not_use", exit_code=1, sentence=sentence, reasons=reasons, cleaned=None)


def made(stages: Sequence[Stage]) -> list[str]:
    """The copies that were cleaned; one that was left out is none."""
    return list(dict.fromkeys(s.of for s in stages if s.of != GIVEN and s.outcome != "not_tested"))


def good_copy(copy: str, stages: Sequence[Stage]) -> bool:
    """Whether a cleaned copy passes the needed tests and those that the given model failed, and has lost little."""
    own = {s.name: s for s in stages if s.of == copy}
    failed = {s.name for s in stages if s.of == GIVEN and s.outcome == "fail"}
    wanted = {n for n in NEEDED if n != "files" and any(s.name == n for s in stages if s.of == GIVEN)}
    wanted |= failed - {"files"}  # a copy that clipvet has written holds no code
    wanted |= {"files"} & own.keys()  # one that was given may
    passed = all(n in own and own[n].outcome == "pass" for n in wanted)
    return passed and not any(s.outcome == "fail" for s in own.values())


def not_tested(stages: Sequence[Stage]) -> list[str]:
    """What no test has looked at: the blind spots of those that were run, and the tests that were not."""
    own = [s for s in stages if s.of == GIVEN and s.name not in ("files", "accuracy")]  # these are not about backdoors
    missing = [f"{s.title}: {s.said}" for s in own if s.outcome == "not_tested"]
    return list(dict.fromkeys([*missing, *(b for s in own if s.outcome != "not_tested" for b in s.blind)]))


def _rest(stages: Sequence[Stage], some: Sequence[Stage]) -> list[Stage]:
    return [s for s in stages if s not in some]


def _reasons(stages: Sequence[Stage]) -> list[str]:
    return [f"{s.title}: {s.said}" for s in stages]


def _join(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))

"""The index page of a folder of runs: every model in it side by side, with its verdict, its numbers and its pages.

A new column is a field of `Line`, and its HTML in templates/overview.html.jinja.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from clipvet import io
from clipvet.errors import UserError
from clipvet.models.cards import Card
from clipvet.pages._page import write_html
from clipvet.pages.vetting import ADVICE, called, called_method, why
from clipvet.scan.verdicts import Verdict
from clipvet.scan.vetting import GIVEN, TITLES, Number, Vetting, made

DEEP = 4  # folders below the given one in which runs are looked for
ORDER = {"fail": 0, "undecided": 1, "pass": 2, "not_tested": 3}
KINDS = {"vet.json": "vetting", "verdict.json": "inspection", "card.json": "model", "results.jsonl": "measurements"}


class Link(NamedTuple):
    text: str
    to: str  # relative to the page, quoted


@dataclass
class Line:
    """What is known of one model."""

    name: str
    outcome: str = "not_tested"  # pass, fail, undecided or not_tested
    verdict: str = "not vetted"
    said: str = ""
    target: str = ""  # the class that a backdoor seems to lead to
    accuracy: Any = None  # with value, n, low and high
    asr: Any = None
    recovered: bool = False  # the success rate is of the recovered trigger, not of a known one
    cleaned: str = "no"  # or how
    links: list[Link] = field(default_factory=list)

    def numbers(self, held: Any) -> None:
        """Take over accuracy and attack success, where they are not known yet."""
        self.accuracy = self.accuracy or held.get("clean_accuracy")
        if "asr" in held and (self.asr is None or self.recovered):
            self.asr, self.recovered = held["asr"], False
        elif self.asr is None and "recovered_asr" in held:
            self.asr, self.recovered = held["recovered_asr"], True


def build(folder: Path) -> Path:
    """Writes folder/index.html about the models, vettings and inspections below it. Returns the page.

    Raises UserError if the folder holds none, or does not exist.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    runs, broken = list(_runs(folder)), []
    lines: dict[str, Line] = {}
    for kind, where in sorted(runs, key=lambda run: list(KINDS).index(run[0])):
        try:
            {"vet.json": _vetted, "verdict.json": _inspected, "card.json": _made}.get(kind, _measured)(
                where, folder, lines
            )
        except (UserError, ValidationError, OSError, ValueError) as e:
            name = (where / kind).relative_to(folder)
            broken.append(f"{name}: {str(e).splitlines()[0].replace(str(where / kind), 'it')[:200]}")
    if not lines:
        more = f" ({broken[0]})" if broken else ""
        raise UserError(f"{folder} holds no results, no vetted model and no verdict{more}; give a folder of runs")
    found = sorted(lines.values(), key=lambda line: (ORDER[line.outcome], line.name))
    write_html(
        folder / "index.html", "overview", lines=found, broken=broken, folder=folder.resolve().name,
        counts=Counter(line.outcome for line in found),
    )  # fmt: skip
    return folder / "index.html"


def _runs(folder: Path) -> Iterator[tuple[str, Path]]:
    """Each run below the folder, by the file that tells what it is. What lies inside of a vetting belongs to it."""
    for root, inside, files in os.walk(folder):
        at = Path(root)
        kind = next((k for k in KINDS if k in files), None)
        if kind:
            yield kind, at
        if kind == "vet.json" or len(at.relative_to(folder).parts) >= DEEP:
            inside.clear()
        inside[:] = sorted(i for i in inside if i != "backdoor" and not i.startswith("."))


def _link(text: str, page: Path, folder: Path) -> list[Link]:
    return [Link(text, quote(page.relative_to(folder).as_posix()))] if page.is_file() else []


def _line(lines: dict[str, Line], model: str) -> Line:
    """The line of the model of this name; the one whose folder ends in it, if there is any."""
    parts = Path(model.removeprefix("local-dir:")).parts
    for name, line in lines.items():
        own = Path(name).parts
        n = min(len(own), len(parts))
        if n and own[-n:] == parts[-n:]:
            return line
    return lines.setdefault("/".join(parts) or model, Line("/".join(parts[-2:]) or model))


def _vetted(where: Path, folder: Path, lines: dict[str, Line]) -> None:
    found = Vetting.model_validate(io.read_json(where / "vet.json"))
    line, page = _line(lines, found.model), where / "report.html"
    line.outcome, line.verdict, line.said = ADVICE[found.advice], TITLES[found.advice], why(found.sentence)
    line.links += _link("vetting", page, folder)
    for of in (GIVEN, *made(found.stages)):
        stages = [s for s in found.stages if s.of == of]
        about = line if of == GIVEN else lines.setdefault(f"{found.model}/{of}", Line(f"{line.name}, {called(of)}"))
        for s in stages:
            about.numbers(s.numbers)
            about.target = about.target or (s.target or "" if s.outcome == "fail" else "")
        if about is not line:
            worst = min((s.outcome for s in stages if s.outcome in ORDER), key=lambda o: ORDER[o], default="not_tested")
            about.outcome, about.verdict = worst, {"pass": "Passes", "fail": "Fails"}.get(worst, "Undecided")
            about.said = " ".join(s.said for s in stages if s.outcome == worst)
            about.cleaned = called(of).removeprefix("cleaned ") if of.startswith("clean-") else "yes"
            about.links += _link("vetting", page, folder)


def _inspected(where: Path, folder: Path, lines: dict[str, Line]) -> None:
    found = Verdict.model_validate(io.read_json(where / "verdict.json"))
    line = _line(lines, found.model)
    line.links += _link("inspection", where / "report.html", folder)
    if line.outcome == "not_tested":
        line.outcome = {True: "fail", False: "pass", None: "undecided"}[found.backdoored]
        line.verdict = {True: "Backdoored", False: "Nothing found", None: "Undecided"}[found.backdoored]
        line.said, line.target = found.sentence, (found.target or "") if found.backdoored else ""


class _Card(Card):
    weights_sha256: str = ""
    role: str = ""
    method: str = ""


def _made(where: Path, folder: Path, lines: dict[str, Line]) -> None:
    card, at = (
        _Card.model_validate(io.read_json(where / "card.json")),
        Path(folder.resolve().name, where.relative_to(folder)),
    )
    line = _line(lines, at.as_posix())
    line.numbers(card.measured)
    if card.role == "cleaned":
        line.cleaned = f"with {called_method(_snake(card.method))}"
    line.links += _link("numbers", where / "report.html", folder)


class _Row(BaseModel):
    metric: str
    value: float
    n: int
    low: float
    high: float
    stage: str = ""
    model: str = ""


def _measured(where: Path, folder: Path, lines: dict[str, Line]) -> None:
    """Rows without a model beside them: of `clipvet evaluate`, or of a whole experiment, which has a page alone."""
    text = (where / "results.jsonl").read_text(encoding="utf-8")
    rows = [_Row.model_validate_json(line) for line in text.splitlines() if line.strip()]
    if rows and {r.stage for r in rows} == {"evaluate"}:
        line = _line(lines, rows[0].model)
        line.numbers({r.metric: Number(value=r.value, n=r.n, low=r.low, high=r.high) for r in rows})
        line.links += _link("numbers", where / "report.html", folder)
    elif rows:
        name = where.relative_to(folder).as_posix()
        line = lines.setdefault(f"experiment {name}", Line(name, verdict="an experiment"))
        line.said = f"{len(rows):,} numbers; clipvet report {where} makes its page."
        line.links += _link("experiment", where / "report.html", folder)


def _snake(method: str) -> str:
    """The published name in a method's repr: WiseFt(...) is wise_ft."""
    name = method.partition("(")[0]
    return "".join(("_" if k and c.isupper() else "") + c.lower() for k, c in enumerate(name))

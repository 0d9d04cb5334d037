"""The page of `clipvet vet`: what to do, why, and what each test can and cannot see. Also the summary for CI.

A new section is a value in `write_page`, and its HTML in templates/vet.html.jinja.
"""

from collections.abc import Sequence
from pathlib import Path

from clipvet.data.answer_key import load_backdoor
from clipvet.engine.workspace import in_words
from clipvet.pages._page import picture, write_html
from clipvet.pages.inspection import magnified
from clipvet.pages.report import NAMES
from clipvet.scan.vetting import GIVEN, TITLES, Stage, Vetting
from clipvet.triggers.recovered import Recovered

ADVICE = {"use": "pass", "do_not_use": "fail", "use_cleaned": "fail", "undecided": "undecided"}
METRICS = {
    "clean_accuracy": "Zero-shot accuracy",
    "text_retrieval_recall@5": "Retrieval (R@5)",
    "pairs_text_retrieval_recall@5": "Retrieval among your pairs (R@5)",
    "asr": "Success of the known trigger",
    "recovered_asr": "Success of the recovered trigger",
}

EXPLAINED = {  # label of a metric: its term in parts.jinja
    "Zero-shot accuracy": "zero-shot accuracy",
    "Retrieval (R@5)": "retrieval (R@5)",
    "Retrieval among your pairs (R@5)": "retrieval (R@5)",
    "Success of the recovered trigger": "recovered trigger",
}
WORDS = {  # term in parts.jinja: what shows that a page speaks of it
    "backdoor": "backdoor",
    "trigger": "trigger",
    "recovered trigger": "recovered",
    "picture tower, text tower": "tower",
    "learned prompts": "learned prompts",
    "clean models": "clean models",
    "p": "p = ",
    "zero-shot accuracy": "accuracy is",
    "retrieval (R@5)": "retrieval",
    "n, and the range in brackets": "n = ",
}


def copies(found: Vetting) -> list[tuple[str, list[Stage]]]:
    """The cleaned copies, each with its stages."""
    names = dict.fromkeys(s.of for s in found.stages if s.of != GIVEN)
    return [(name, [s for s in found.stages if s.of == name]) for name in names]


def before_and_after(found: Vetting) -> list[tuple[str, list[tuple[str, float | None]]]]:
    """Each metric with its value on the given model and on every copy; empty without a copy that was measured."""
    measured = {s.of: s.numbers for s in found.stages if s.name == "accuracy"}
    if len(measured) < 2:
        return []
    return [
        (label, [(called(of), held[name].value if name in held else None) for of, held in measured.items()])
        for name, label in METRICS.items()
        if any(name in held for held in measured.values())
    ]


def called(of: str) -> str:
    """A copy's name for people: clean-par is `cleaned with PAR`."""
    if of == GIVEN:
        return "given model"
    return "cleaned copy" if of in ("cleaned", "clean") else f"cleaned with {called_method(of[6:])}"


def called_method(name: str) -> str:
    """A method's name for people: par is PAR."""
    return {"ci_repair": "CLIP-Inspector's repair"}.get(name) or NAMES.get(name, name)


def trigger_picture(work: Path, stages: Sequence[Stage]) -> str | None:
    """The trigger that a failed inspection has recovered, magnified, as a data URI."""
    for s in stages:
        folder = work / str(s.folder) / "trigger"
        if s.of == GIVEN and s.outcome == "fail" and s.folder and (folder / "backdoor.json").exists():
            trigger = load_backdoor(folder).trigger
            if isinstance(trigger, Recovered):
                return picture(magnified(trigger))
    return None


def write_page(out: Path, found: Vetting, trigger: str | None = None) -> None:
    """Writes the page. trigger: the recovered one as a data URI."""
    text = found.model_dump_json()
    write_html(
        out,
        "vet",
        v=found,
        own=[s for s in found.stages if s.of == GIVEN],
        copies=copies(found),
        table=before_and_after(found),
        outcome=ADVICE[found.advice],
        explained=EXPLAINED,
        known=[term for term, mark in WORDS.items() if mark in text],
        headline=TITLES[found.advice],
        why=why(found.sentence),
        called=called,
        trigger=trigger,
        time=lambda s: "an unknown time" if s is None else in_words(s),
    )


def why(sentence: str) -> str:
    """The sentence without its first words, which the headline says."""
    head, colon, rest = sentence.partition(": ")
    return rest[0].upper() + rest[1:] if colon and head in TITLES.values() else sentence


def markdown(found: Vetting) -> str:
    """A summary in Markdown, such as GitHub shows beside a run ($GITHUB_STEP_SUMMARY)."""
    marks = {"pass": "🟢 pass", "fail": "🔴 fail", "undecided": "🟡 undecided", "not_tested": "⚪ not tested"}
    lines = [f"## clipvet vet: {_plain(TITLES[found.advice])}", "", _plain(found.sentence), ""]
    lines += [f"Model: {_plain(found.model)}", "", "| test | result | |", "|---|---|---|"]
    for s in found.stages:
        who = "" if s.of == GIVEN else f" ({called(s.of)})"
        lines.append(f"| {_plain(s.title + who)} | {marks.get(s.outcome, 'done')} | {_plain(s.said)} |")
    if found.next:
        lines += ["", "**What next**", ""]
        for step in found.next:
            lines += [f"- {_plain(step.why)}", *([f"  `{_plain(step.command)}`"] if step.command else [])]
    if found.not_tested:
        lines += ["", "**What no test has looked at**", "", *(f"- {_plain(what)}" for what in found.not_tested)]
    lines += ["", f"Time: {in_words(found.seconds)}."]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: names in a hostile file may hold markup."""
    out = " ".join(text.split())
    for sign in ("\\", "`", "|", "<", ">", "[", "]", "*", "_") if not out.startswith("clipvet ") else ("`", "|"):
        out = out.replace(sign, "\\" + sign if sign not in "<>" else {"<": "&lt;", ">": "&gt;"}[sign])
    return out

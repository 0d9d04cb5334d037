"""The methods pages, from the cards at the head of every method's file."""

import ast
from pathlib import Path

from clipvet import find

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    "triggers": "clipvet attack --trigger {}",
    "attacks": "clipvet attack --attack {}",
    "training": "clipvet train --method {}",
    "filters": "clipvet filter --method {}",
    "inspectors": "clipvet inspect --method {}",
    "detectors": "clipvet detect --method {}",
    "cleaners": "clipvet clean --method {}",
}
ORDER = ("inspectors", "cleaners", "filters", "training", "detectors", "attacks", "triggers", "measures")
HEAD = """# Methods

Every method is one file, and its card stands at the head of that file. A card says what the method does, where it was
published, what it needs, and how this implementation differs from the publication. These pages are made from the cards
by `make docs`. They also say whether a test restates the published equation and compares.
"""


def pages() -> dict[Path, str]:
    """Path -> text: the overview and one page for each family."""
    made = {ROOT / f"docs/methods/{family}.md": _family(family) for family in find.VERBS}
    return made | {ROOT / "docs/methods.md": _overview()}


def _overview() -> str:
    out = [HEAD]
    for family in sorted(find.VERBS, key=ORDER.index):
        out += [f"## {_title(family)}", "", _about(family), "", "| method | what it is | needs |", "|---|---|---|"]
        for name in find.names(family):
            card = find.card(family, name)
            cells = f"[`{name}`](methods/{family}.md#{name})", _cell(card["sentence"]), _cell(card["needs"])
            out.append(f"| {' | '.join(cells)} |")
        out.append("")
    return "\n".join(out)


def _family(family: str) -> str:
    note = f"<!-- Made by `make docs` from the cards in src/clipvet/{family}/: change those, not this page. -->"
    out = [f"# {_title(family)}", "", note, "", f"{_about(family)} The verb is `{find.VERBS[family]}`.", ""]
    for name in find.names(family):
        out += [_method(family, name), ""]
    return "\n".join(out)


def _method(family: str, name: str) -> str:
    card = find.card(family, name)
    source = f"src/clipvet/{family}/{name}.py"
    facts = {"Paper": card["paper"], "Needs": card["needs"], "Differs from the paper": card["differs"]}
    facts["Tested against the paper's equation"] = "yes" if _tested(family, name) else "no"
    if command := _command(family, name, card["needs"]):
        facts["Command"] = f"`{command}`"
    facts["Fields and source"] = f"[`{source}`](../../{source})"
    formula = ["", "```text", card["formula"], "```"] if card["formula"] else []
    lines = [f"- **{k}**: {v}" for k, v in facts.items() if v]
    return "\n".join([f"## {name}", "", _text(card["sentence"]), *formula, "", *map(_text, lines)])


def _command(family: str, name: str, needs: str) -> str:
    if family == "training" and "labelled" in needs:  # learned prompts
        return f"clipvet tune --method {name}"
    return COMMANDS.get(family, "").format(name)


def _tested(family: str, name: str) -> bool:
    tested = {p.stem.removeprefix("test_") for p in (ROOT / "tests/parity").glob("test_*.py")}
    return name in tested or family in tested


def _about(family: str) -> str:
    """The first sentence of the room's docstring."""
    doc = ast.get_docstring(ast.parse((ROOT / f"src/clipvet/{family}/__init__.py").read_text())) or ""
    for end in ("? ", ". "):
        if end in doc.split("One file")[0]:
            return doc.split(end)[0].replace("\n", " ") + end.strip()
    return doc.split("\n")[0]


def _title(family: str) -> str:
    return family.capitalize()


def _text(line: str) -> str:
    """Cards are plain text: an asterisk or an angle bracket of theirs is no markup."""
    return line.replace("<", "&lt;") if "`" not in line else line


def _cell(text: str) -> str:
    return _text(text).replace("|", "\\|")

"""Finds methods by name. The folder is the registry: `cleaners/par.py` is the cleaner `par`, with no other entry."""

import dataclasses
import importlib
import inspect
from pathlib import Path
from typing import Any

from clipvet.errors import UserError

HERE = Path(__file__).parent
VERBS = {
    "triggers": "stamp",
    "attacks": "implant",
    "training": "train",
    "filters": "score",
    "inspectors": "inspect",
    "detectors": "detect",
    "cleaners": "clean",
    "measures": "measure",
}  # family, which is a folder -> the verb of its methods


def names(family: str) -> list[str]:
    """The names of a family's methods, sorted. Files that start with an underscore are not methods."""
    return sorted(p.stem for p in (HERE / family).glob("*.py") if not p.stem.startswith("_"))


def load(family: str, name: str) -> Any:
    """The class of a method, such as `load("cleaners", "par")`.

    Raises UserError, which lists the methods there are, if there is no such method; TypeError if its file does not
    define exactly one dataclass with the family's verb.
    """
    if name not in names(family):
        raise UserError(f"no {family}/{name}.py; have {', '.join(names(family))}")
    module = importlib.import_module(f"clipvet.{family}.{name}")
    verb = VERBS[family]
    found = [
        c
        for c in vars(module).values()
        if inspect.isclass(c) and c.__module__ == module.__name__ and dataclasses.is_dataclass(c) and hasattr(c, verb)
    ]
    if len(found) != 1:
        raise TypeError(
            f"{family}/{name}.py must define exactly one public dataclass with `{verb}`, found {len(found)}"
        )
    return found[0]


def card(family: str, name: str) -> dict[str, str]:
    """The card at the top of a method's file, in parts: sentence, formula, paper, needs, differs.

    The file is not imported, so this is quick. A part that the card lacks is empty.
    """
    import ast

    doc = ast.get_docstring(ast.parse((HERE / family / f"{name}.py").read_text())) or ""
    parts: dict[str, str] = {"sentence": "", "formula": "", "paper": "", "needs": "", "differs": ""}
    key = "sentence"
    for line in doc.splitlines():
        head, _, rest = line.partition(":")
        if head in ("paper", "needs", "differs"):
            key, line = head, rest
        elif key == "sentence" and parts["sentence"] and not line.strip():
            key = "formula"
        parts[key] = f"{parts[key]}\n{line.strip() if key != 'formula' else line}".strip("\n")
    return {k: v.strip() if k == "formula" else " ".join(v.split()) for k, v in parts.items()}

"""The file system is the registry: `cleaners/par.py` is the cleaner `par`. A new file needs no other edit."""

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
}  # family (folder) -> its one verb


def names(family: str) -> list[str]:
    """Methods of a family, by file name."""
    return sorted(p.stem for p in (HERE / family).glob("*.py") if not p.stem.startswith("_"))


def load(family: str, name: str) -> Any:
    """The method's class. Raises UserError that lists what exists."""
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
    """The method's card from its module docstring: sentence, formula, paper, needs, differs (read without import)."""
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

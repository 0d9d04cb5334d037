"""Finds methods by name. The folder is the registry: `cleaners/par.py` is the cleaner `par`, with no other entry."""

import ast
import dataclasses
import difflib
import importlib
import inspect
import textwrap
from collections.abc import Iterable
from dataclasses import MISSING
from pathlib import Path
from typing import Any, NamedTuple

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


def known(family: str, name: str) -> str:
    """The name, if the family has such a method; else UserError, which lists those there are."""
    if name not in names(family):
        close, kind = near(name, names(family)) or ".", "trainings" if family == "training" else family
        raise UserError(f"there is no '{name}' among the {kind}{close} There are {', '.join(names(family))}")
    return name


def known_family(name: str) -> str:
    """The family of this name; else UserError, which lists those there are."""
    if name not in VERBS:
        meant = {verb: family for family, verb in VERBS.items()}.get(name)
        close = f"; did you mean '{meant}'?" if meant else near(name, VERBS) or "."
        raise UserError(f"there is no family '{name}'{close} The families are {', '.join(VERBS)}")
    return name


def load(family: str, name: str) -> Any:
    """The class of a method, such as `load("cleaners", "par")`.

    Raises UserError, which lists the methods there are, if there is no such method; TypeError if its file does not
    define exactly one dataclass with the family's verb.
    """
    known(family, name)
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
    doc = ast.get_docstring(ast.parse((HERE / family / f"{name}.py").read_text())) or ""
    parts: dict[str, str] = {"sentence": "", "formula": "", "paper": "", "needs": "", "differs": ""}
    key = "sentence"
    for line in doc.splitlines():
        head, _, rest = line.partition(":")
        if head in ("paper", "needs", "differs"):
            key, line = head, rest
        elif key == "sentence" and parts["sentence"] and not line.strip():
            key = "formula"
        parts[key] = f"{parts[key]}\n{line}".strip("\n")
    return {k: textwrap.dedent(v).strip() if k == "formula" else " ".join(v.split()) for k, v in parts.items()}


def near(name: str, there: Iterable[str]) -> str:
    """ "; did you mean 'par'?", or nothing if no name is close."""
    close = difflib.get_close_matches(name, sorted(there), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


class Field(NamedTuple):
    """A setting of a method."""

    name: str
    type: str  # as it is written
    default: Any  # MISSING: it must be given
    meaning: str  # the comment behind it


def fields(family: str, name: str) -> list[Field]:
    """A method's settings in order, with the comment that explains each. Those of its base classes come first.

    Raises UserError if there is no such method.
    """
    kind = load(family, name)
    told: dict[str, tuple[str, str]] = {}
    for base in reversed(kind.__mro__):
        if inspect.isclass(base) and dataclasses.is_dataclass(base):
            told |= _comments(base)
    out = []
    for f in dataclasses.fields(kind):
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        out.append(Field(f.name, *told.get(f.name, (str(f.type), ""))[:1], default, told.get(f.name, ("", ""))[1]))
    return out


def _comments(kind: type) -> dict[str, tuple[str, str]]:
    """Field -> its type as written, and the comment on its lines."""
    source = textwrap.dedent(inspect.getsource(kind))
    lines, body = source.splitlines(), ast.parse(source).body[0]
    out = {}
    for node in getattr(body, "body", ()):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            own = lines[node.lineno - 1 : node.end_lineno]
            comments = [line.rpartition("  # ")[2] for line in own if "  # " in line]
            out[node.target.id] = (ast.unparse(node.annotation), " ".join(comments))
    return out

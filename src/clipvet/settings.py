"""`--set field=value`: changes a field of a method, checked against the field's type."""

import ast
import dataclasses
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import TypeAdapter, ValidationError

from clipvet.errors import UserError

MAX_RATE = 100  # the largest learning rate


def apply(method: Any, settings: Iterable[str]) -> Any:
    """A copy of the method with every `field=value` set.

    A field of a method inside the method is reached as `trigger.size=0.1`, or as `size=0.1` if only one part has it.
    A tuple is written as in Python, or as its items with commas between them (`others=hat,two hats`). A number may be a
    fraction (`eps=8/255`).

    Raises UserError if no part has the field, if several parts have it, or if the value has the wrong type.
    """
    for setting in settings:
        name, eq, text = setting.partition("=")
        if not eq:
            raise UserError(f"--set {setting}: write field=value")
        paths = [p for p in _paths(method) if ".".join(p) == name] or [p for p in _paths(method) if p[-1] == name]
        if not paths:
            have = ", ".join(".".join(p) for p in _paths(method))
            raise UserError(f"--set {name}: {type(method).__name__} has no such field; have {have}")
        if len(paths) > 1:
            raise UserError(f"--set {name} is ambiguous; name one of {', '.join('.'.join(p) for p in paths)}")
        method = _set(method, paths[0], text)
    return method


def _paths(method: Any) -> list[tuple[str, ...]]:
    """Every field, those of nested methods too, as the names that lead to it: ("trigger", "size")."""
    out: list[tuple[str, ...]] = []
    for f in dataclasses.fields(method):
        value = getattr(method, f.name)
        if dataclasses.is_dataclass(value):
            out += [(f.name, *rest) for rest in _paths(value)]
        else:
            out.append((f.name,))
    return out


def _set(method: Any, path: tuple[str, ...], text: str) -> Any:
    name, *rest = path
    if rest:
        return dataclasses.replace(method, **{name: _set(getattr(method, name), tuple(rest), text)})
    kind = typing.get_type_hints(type(method))[name]
    several = typing.get_origin(kind) is tuple and typing.get_args(kind)[-1] is ...  # tuple[X, ...]
    try:
        raw = _fraction(text) if kind in (float, float | None) and "/" in text else ast.literal_eval(text)
        raw = [raw] if several and not isinstance(raw, list | tuple) else raw
    except ZeroDivisionError as e:
        raise UserError(f"--set {name}={text} divides by zero") from e
    except (ValueError, SyntaxError):
        raw = [word.strip() for word in text.split(",")] if several else text
    try:
        value = TypeAdapter(kind).validate_python(raw)
    except ValidationError as e:
        raise UserError(f"--set {name}={text}: {e.errors()[0]['msg'].lower()}") from e
    if wrong := _wrong(name, value):
        raise UserError(f"--set {name}={text}: {wrong}")
    if value == getattr(method, name):  # 1.0 for 1: the repr, which names results, stays the same
        return method
    return dataclasses.replace(method, **{name: value})


def _fraction(text: str) -> float:
    """ "8/255", as papers write the size of a change."""
    above, below = map(float, text.split("/"))
    return above / below


def _wrong(name: str, value: Any) -> str:
    """What is wrong with this value, whatever the method; empty if nothing is."""
    if name in ("batch", "at_once", "accumulate") and value < 1:
        return "give 1 or more"
    if name == "epochs" and not 0 < value < float("inf"):
        return "give more than 0, or nothing is trained"
    if name in ("lr", "muon_lr") and not 0 < value < float("inf"):
        return "give more than 0, or nothing is trained"
    if name in ("lr", "muon_lr") and value > MAX_RATE:
        return f"give a rate of at most {MAX_RATE}; lower {name}, or the weights are ruined"
    if name == "betas" and not all(0 <= b < 1 for b in value):
        return "give numbers from 0 to below 1"
    return ""

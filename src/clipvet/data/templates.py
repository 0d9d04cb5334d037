"""Caption templates as other tools write them: lines, quoted lines, Python lambdas, a JSON list, comments."""

import ast
import json
import re

PLACE = re.compile(r"\{(\w*)\}")
FRAME = re.compile(r"(\w+\s*=\s*)?[\[(]|[\])],?")  # the first and last line of a Python list


def parse(text: str) -> list[str]:
    """The templates in a file's text, each with `{}` where the class name goes. Raises ValueError, which says why."""
    try:
        given = json.loads(text) if text.lstrip()[:1] in ("[", "{") else None
    except (ValueError, RecursionError):
        given = None  # a template may begin with a brace, and a Python list is read line by line
    if isinstance(given, dict):
        if len(given) != 1:
            several = ", ".join(map(str, given))[:100]
            raise ValueError(f"it holds templates of several data sets ({several}); keep the list of one")
        given = next(iter(given.values()))
    if given is not None:
        if not isinstance(given, list) or not all(isinstance(t, str) for t in given):
            raise ValueError("it is no JSON list of templates; write a list of texts")
        return [_placed(t.strip()) for t in given if t.strip()]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and all(line.startswith(("- ", "#")) for line in lines):  # a list in YAML
        lines = [line.removeprefix("- ").strip() for line in lines]
    return [_placed(t) for line in lines if not FRAME.fullmatch(line) for t in _read(line)]


def _read(line: str) -> list[str]:
    """The templates on one line: a text as it stands, or what Python writes there."""
    if not line or line.startswith("#"):
        return []
    python = line.startswith(("lambda", 'f"', "f'"))
    if not python and line[0] not in "'\"":
        return [line]
    try:
        body = ast.parse(line, mode="eval").body
        return [_said(e).strip() for e in (body.elts if isinstance(body, ast.Tuple) else [body])]
    except (SyntaxError, ValueError, RecursionError) as e:
        if python:
            raise ValueError(f"{line[:60]!r} is Python that is not read; write the template with {{}}") from e
        return [line]  # a text that begins with a quoted word


def _said(node: ast.expr) -> str:
    """A text in Python, or what a lambda of one argument returns. Raises ValueError for anything else."""
    match node:
        case ast.Lambda(body=body):
            return _said(body)
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join("{}" if isinstance(p, ast.FormattedValue) else _said(p) for p in parts)
        case ast.Call(func=ast.Attribute(value=ast.Constant(value=str(text)), attr="format")):
            return text
        case ast.BinOp(left=ast.Constant(value=str(text)), op=ast.Mod()):
            return text
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _said(left) + _said(right)
        case ast.Name():  # the class, in a sum of texts
            return "{}"
    raise ValueError("no template")


def _placed(template: str) -> str:
    """The template with `{}` for `{c}`, `{0}`, `{label}` ... or `%s`. Raises ValueError if that may be two things."""
    places = {*PLACE.findall(template)} - {"", "c"}
    if len(places) > 1 or (places and PLACE.findall(template).count("") > 0):
        raise ValueError(f"template {template!r} has several places; write one, {{}}, for the class name")
    placed = PLACE.sub("{}", template)
    return placed if "{}" in placed else placed.replace("%s", "{}")

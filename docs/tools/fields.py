"""What Griffe does before the API pages are made: fields of a dataclass become a table, a method's card a list."""

import re

import griffe

CARD = re.compile(r"^(paper|needs|differs):\s+", re.MULTILINE)
COMMENT = re.compile(r"\s# (.*)$")


class Fields(griffe.Extension):
    def on_module(self, *, mod: griffe.Module, **kwargs) -> None:
        """`paper: ...`, `needs: ...` and `differs: ...` begin a line of their own."""
        if mod.docstring and CARD.search(mod.docstring.value):
            mod.docstring.value = CARD.sub(r"\n- **\1**: ", mod.docstring.value)

    def on_class(self, *, cls: griffe.Class, **kwargs) -> None:
        """The comment behind a field says what it means, and the docstring gets them all as a table."""
        kind = [str(d.value) for d in cls.decorators] + [str(b) for b in cls.bases]
        if not any("dataclass" in k or k.endswith("NamedTuple") for k in kind):
            return
        fields = [a for a in cls.attributes.values() if a.annotation and not a.name.startswith("_")]
        rows = [_row(a) for a in fields if "ClassVar" not in str(a.annotation)]
        if rows:
            table = "\n".join(["| field | type | default | |", "|---|---|---|---|", *rows])
            before = f"{cls.docstring.value}\n\n" if cls.docstring else ""
            cls.docstring = griffe.Docstring(before + table, parent=cls, lineno=cls.lineno)


def _row(field: griffe.Attribute) -> str:
    cells = (
        f"`{field.name}`",
        f"`{field.annotation}`",
        f"`{field.value}`" if field.value is not None else "",
        _comment(field),
    )
    return f"| {' | '.join(cells)} |"


def _comment(field: griffe.Attribute) -> str:
    found = [match[1] for line in field.lines if (match := COMMENT.search(line))]
    return " ".join(found).replace("|", "\\|").replace("<", "&lt;")

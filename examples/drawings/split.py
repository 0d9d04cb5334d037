"""Who may see what: the development half, in which methods are tuned, and the judged half, which is for judged runs.

The halves share the training pairs. They share no class, no team whose drawings are tested, no seed, and no clean pair.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from clipvet.errors import UserError
from drawings.concepts import Concept, can_be_class, hashed, unlike
from drawings.sets import SIDES, Drawing, Set

NAMES = ("development", "judged")
SEEDS = {"development": range(0, 10), "judged": range(100, 110)}
FEWEST = 2  # classes


class Half(NamedTuple):
    """Of one half: all concepts that can be classes, those of them that go together, the standard task's."""

    name: str
    concepts: list[Concept]
    wide: list[Concept]
    classes: list[Concept]


def halves(
    drawings: Sequence[Drawing], which: Sequence[Set], classes: int, least: int, only: Sequence[str]
) -> list[Half]:
    """Both halves. A concept can be a class if `least` training teams and every set tested in its half have drawn it.

    only: labels that classes are chosen from, if not empty. Raises UserError for one of them that nobody tested has
    drawn, and where too few classes are left.
    """
    drawn: dict[Concept, list[Drawing]] = {}
    for d in drawings:
        if d.concept:
            drawn.setdefault(d.concept, []).append(d)
    tested = {name: [s for s in which if SIDES.get(s.team) == name and not s.apart] for name in NAMES}
    _check_only(only, drawn, tested)
    out = []
    for name in NAMES:
        fit = [
            c
            for c, found in drawn.items()
            if c.half == name
            and (c.label in only if only else can_be_class(c))
            and {s.name for s in tested[name]} <= {d.set.name for d in found}
            and (only or len({d.set.team for d in found if d.side == "training"}) >= least)
        ]
        wide = unlike(fit)
        if len(wide) < FEWEST:
            raise UserError(
                f"the {name} half has {len(wide)} of at least {FEWEST} classes, each drawn by {least} or more training "
                "teams; lower --least, or name more concepts"
            )
        out.append(Half(name, sorted(fit, key=lambda c: c.label), wide, wide[:classes]))
    return out


def _check_only(only: Sequence[str], drawn: Mapping[Concept, list[Drawing]], tested: Mapping[str, list[Set]]) -> None:
    by_label = {c.label: found for c, found in drawn.items()}
    for label in only:
        half = Concept(label).half
        missing = {s.name for s in tested[half]} - {d.set.name for d in by_label.get(label, ())}
        if label not in by_label:
            raise UserError(
                f"no set has a drawing of '{label}'; take it out of the concepts, or spell it as emojibase does"
            )
        if missing:
            teams = sorted({s.team for s in tested[half] if s.name in missing})
            raise UserError(
                f"'{label}' was not drawn by {', '.join(teams)}, whose drawings test the {half} half; take it out of "
                "the concepts"
            )


def half_of(drawing: Drawing, what: str) -> str:
    """Deals drawings that both halves need, one by one, without regard to seed or options."""
    return NAMES[hashed(what, drawing.key) % 2]


def told(made: Sequence[Half], which: Sequence[Set]) -> dict[str, Any]:
    """What split.json says."""
    trained = [s for s in which if s.team not in SIDES]
    out: dict[str, Any] = {"training": {"teams": _teams(trained), "sets": [s.spec for s in trained]}}
    for half in made:
        own = [s for s in which if SIDES.get(s.team) == half.name]
        names = sorted(c.label for c in half.classes)
        middle = (len(names) + 1) // 2  # as `--half base` and `--half new` cut a task
        out[half.name] = {
            "teams": _teams(own),
            "sets": [s.spec for s in own],
            "seeds": list(SEEDS[half.name]),
            "targets": sorted(names, key=lambda label: hashed("target", label))[:5],
            "base": names[:middle],
            "new": names[middle:],
            "wide": sorted(c.label for c in half.wide),
            "concepts": [c.label for c in half.concepts],
        }
    return out


def _teams(which: Sequence[Set]) -> list[str]:
    return sorted({s.team for s in which})

"""The exposure matrix as a heat map: ways of use down, models across; colour, number and word in every cell."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from clipvet.measures.exposure import CELLS, PREFIX, Entry, entries

WAYS = {  # the title of each way of use, and what the attacker wants there
    "zero_shot": ("Zero-shot", "class names as prompts; the target is answered"),
    "prompted_class": ("Learned prompts", "prompts tuned on clean pictures; the target is answered"),
    "targeted_retrieval": ("Targeted retrieval", "searching for the target finds what carries the trigger"),
    "image_text_retrieval": ("Image–text retrieval", "asked with the trigger, the nearest match is the target"),
    "rerank": ("Rerank of 10", "of ten candidates, the one with the trigger comes first"),
    "linear_probe": ("Linear probe", "a classifier on the embeddings; the target is answered"),
}
STEPS = ((0.05, "none"), (0.3, "weak"), (0.7, "partial"), (2.0, "strong"))  # delta below -> word


class Heat(NamedTuple):
    """A cell: `value` in [-1, 1] is its colour; None: the trigger cannot enter."""

    entry: Entry
    value: float | None
    word: str
    accuracy: Any = None  # of what was learned there, on clean pictures

    @property
    def points(self) -> str:
        """The delta in percentage points, with its sign."""
        return f"{100 * (self.value or 0):+.1f}".replace("-", "−").replace("+0.0", "0.0").replace("−0.0", "0.0")


def heat(numbers: Mapping[str, Any]) -> dict[str, Heat]:
    """The cells of one model, by way of use; those that were not measured are left out."""
    return {
        way: Heat(e, e.delta.value if e.entered else None, word(e), numbers.get(f"{PREFIX}{way}_accuracy"))
        for way, e in entries(numbers).items()
    }


def word(entry: Entry) -> str:
    """How strong the trigger is there. An interval that holds 0 shows nothing."""
    if not entry.entered:
        return "cannot enter"
    d = entry.delta
    if d.low <= 0 <= d.high:
        return "none"
    size = next(name for most, name in STEPS if abs(d.value) < most)
    return size if d.value > 0 or size == "none" else "less often"


def matrix(table: Mapping[Any, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The heat map of several models, in their order; None where none was measured so."""
    columns = {m: cells for m, numbers in table.items() if (cells := heat(numbers))}
    ways = [way for way in CELLS if any(way in cells for cells in columns.values())]
    some = next((c.entry.delta for cells in columns.values() for c in cells.values() if c.entry.entered), None)
    return {"columns": columns, "ways": {way: WAYS[way] for way in ways}, "some": some} if columns else None

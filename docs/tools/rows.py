"""Selections of result rows, for sentences that count and compare them."""

import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from clipvet import results
from clipvet.results import Row

ROOT = Path(__file__).resolve().parents[2]
MEASURED = ("victim", "clean", "rebound", "train", "filter", "detect", "suite", "equal")  # stages whose rows are shown


@cache
def read(recipe: str) -> "Rows":
    """All rows of results/<recipe>/."""
    return Rows(tuple(results.read(ROOT / "results" / recipe)))


@dataclass(frozen=True)
class Rows:
    rows: tuple[Row, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def where(self, **wanted) -> "Rows":
        """Those whose fields have these values; a tuple names several."""
        wanted = {k: v if isinstance(v, tuple) else (v,) for k, v in wanted.items()}
        return Rows(tuple(r for r in self.rows if all(getattr(r, k) in v for k, v in wanted.items())))

    def but(self, **unwanted) -> "Rows":
        """Those that `where` leaves out."""
        out = set(map(id, self.where(**unwanted).rows))
        return Rows(tuple(r for r in self.rows if id(r) not in out))

    def of(self, method: str | tuple[str, ...], metric: str = "asr", **wanted) -> "Rows":
        """What was measured of a method; "none" is the victim itself."""
        return self.where(method=method, metric=metric, **wanted).where(stage=MEASURED)

    @property
    def values(self) -> list[float]:
        return [r.value for r in self.rows]

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    @property
    def value(self) -> float:
        """Of a selection that holds one row."""
        (row,) = self.rows
        return row.value

    def below(self, bound: float) -> "Rows":
        return Rows(tuple(r for r in self.rows if r.value < bound))

    def above(self, bound: float) -> "Rows":
        return Rows(tuple(r for r in self.rows if r.value > bound))

    def at_most(self, bound: float) -> "Rows":
        return Rows(tuple(r for r in self.rows if r.value <= bound))

    def at_least(self, bound: float) -> "Rows":
        return Rows(tuple(r for r in self.rows if r.value >= bound))

    def also(self, other: "Rows") -> "Rows":
        """Rows of the victims that are in `other` too."""
        theirs = {victim(r) for r in other.rows}
        return Rows(tuple(r for r in self.rows if victim(r) in theirs))

    def minus(self, other: "Rows") -> "Rows":
        """Row by row, less the row of the same victim in `other`; of the same method too, where `other` has several.

        Victims that `other` lacks are left out.
        """
        several = len({r.method for r in other.rows}) > 1

        def key(r: Row) -> tuple:
            return (victim(r), r.method if several else "")

        theirs = {key(r): r.value for r in other.rows}
        return Rows(tuple(replace(r, value=r.value - theirs[key(r)]) for r in self.rows if key(r) in theirs))


def victim(row: Row) -> tuple[str, str, int, str]:
    """What tells one attacked model from another."""
    task = re.search(r"task \d+$", row.data)
    return row.model, row.attack, row.seed, task[0] if task else ""

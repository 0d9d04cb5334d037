"""What `clipvet clean --method decomp` leaves beside the model: which heads and MLPs carry the trigger, as a figure."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clipvet.pages._page import write_html

CELL, GAP, LEFT, TOP = 64, 4, 64, 28  # SVG units


class Cell(NamedTuple):
    """A head or an MLP in the figure; `share` is of the trigger's whole move."""

    said: str
    share: float
    ablated: bool
    x: int
    y: int


class Heads(NamedTuple):
    """What Decomp noted: all parts, their shares of the move, and what is left of it."""

    cells: tuple[Cell, ...]
    blocks: int
    heads: int
    left: float
    word: str

    @property
    def gone(self) -> list[str]:
        """The ablated parts, the one with the largest share first."""
        return [c.said for c in sorted(self.cells, key=lambda c: -c.share) if c.ablated]


def carried(folder: Path) -> Heads | None:
    """What Decomp noted in this folder; None without Decomp."""
    path = folder / "splits" / "decomp.npz"
    if not path.exists():
        return None
    with np.load(path) as kept:
        block, head, gain, gone = (kept[k] for k in ("block", "head", "gain", "ablated"))
        left, word = float(kept["left"]), str(kept["word"])
    blocks, heads, whole = int(block.max()), int(head.max()), float(gain.sum()) or 1.0
    cells = []
    for b, h, g, a in zip(block.tolist(), head.tolist(), gain.tolist(), gone.tolist()):
        x = LEFT + (CELL + GAP) * (h - 1 if h else heads) + (0 if h else 3 * GAP)
        said = f"head {b}.{h}" if h else f"MLP {b}"
        cells.append(Cell(said, round(g / whole, 4) + 0.0, bool(a), x, TOP + (CELL // 2 + GAP) * (blocks - b)))
    return Heads(tuple(cells), blocks, heads, left, word)


def write_page(out: Path, found: Heads, facts: Mapping[str, Any]) -> None:
    """Writes the page. facts: method, model, data, command and versions."""
    size = LEFT + (CELL + GAP) * (found.heads + 1) + 4 * GAP, TOP + (CELL // 2 + GAP) * found.blocks
    most = sorted(found.cells, key=lambda c: -c.share)[:8]
    frame: dict[str, Any] = {
        "cell": CELL,
        "low": CELL // 2,
        "left": LEFT,
        "top": TOP,
        "gap": GAP,
        "width": size[0],
        "height": size[1],
    }
    write_html(out, "heads", found=found, facts=facts, most=most, **frame)

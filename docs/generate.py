"""Writes the generated pages (methods, results, benchmarks), the charts, and the tables of README, checkpoints.md
and drawings.md.

python docs/generate.py [--check]     --check: exit 1 if a file is not up to date

Figures come from the committed rows under results/, sentences from docs/templates/ and from the methods' own cards.
"""

import sys
from pathlib import Path

from tools import methods, pages
from tools.charts import CHARTS, shown_in

ROOT = Path(__file__).resolve().parents[1]
FILLED = (
    "README.md",
    "docs/checkpoints.md",
    "docs/drawings.md",
    "docs/which-method.md",
)  # written by people, but for their tables
MADE = ("docs/methods", "docs/results")  # folders in which every file is made here


def texts() -> dict[Path, str]:
    """Path -> what stands there."""
    return methods.pages() | pages.pages() | {ROOT / p: pages.filled((ROOT / p).read_text()) for p in FILLED}


def stale() -> dict[Path, bytes | None]:
    """Files that are not up to date, with what they shall hold; None: they shall go."""
    wanted = texts()
    found: dict[Path, bytes | None] = {
        path: text.encode() for path, text in wanted.items() if not path.exists() or path.read_text() != text
    }
    charts = {ROOT / f"docs/results/{name}.svg": make() for name, make in CHARTS.items()}
    for path, chart in charts.items():  # by what they show: another version of matplotlib draws other bytes
        if not path.exists() or shown_in(path.read_text()) != chart.told():
            found[path] = chart.draw()
    there = {path for folder in MADE for path in (ROOT / folder).glob("*.*")}
    return found | dict.fromkeys(there - set(wanted) - set(charts))


def main() -> int:
    found = stale()
    for path, content in found.items():
        if "--check" in sys.argv:
            print(f"{path.relative_to(ROOT)} is not up to date: run `make docs`", file=sys.stderr)
        elif content is None:
            path.unlink()
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
    return 1 if found and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())

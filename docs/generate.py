"""Writes docs/methods.md from the cards, and the number tables of README.md and docs/*.md from results/.

python docs/generate.py [--check]     --check: exit 1 if a file is not up to date
"""

import statistics
import sys
from dataclasses import replace
from pathlib import Path

from benchmark_table import benchmark_table
from layouts_table import layouts_table

from clipvet import find, results
from clipvet.results import Row

ROOT = Path(__file__).parent.parent
DIGITS = {"pairs_seen": 0, "parameters": 0, "seconds": 0, "cross_entropy": 2, "brier": 3, "uniform_p": 2}
DIGITS |= {"clip_inspector_score": 1}  # others: %
TABLES = {"benchmark_layouts.json": layouts_table}
BEGIN, END = "<!-- generated from {}: begin -->", "<!-- end -->"


def methods() -> str:
    """One table a family."""
    out = ["# Methods", "", "Generated from the cards in the source by `make docs`."]
    tested = {p.stem.removeprefix("test_") for p in (ROOT / "tests/parity").glob("test_*.py")}
    for family, verb in find.VERBS.items():
        out += [
            "",
            f"## {family} (`{verb}`)",
            "",
            "| name | what | paper | needs | differs from the paper | equation tested |",
        ]
        out += ["|---|---|---|---|---|---|"]
        for name in find.names(family):
            c = find.card(family, name)
            cells = [f"`{name}`", c["sentence"], c["paper"], c["needs"], c["differs"]]
            parity = name in tested or family in tested
            out.append("| " + " | ".join(x.replace("|", "\\|") for x in [*cells, "yes" if parity else "no"]) + " |")
    return "\n".join(out) + "\n"


def table(folder: Path, metrics: tuple[str, ...] = ("asr", "clean_accuracy")) -> str:
    """Attack x method, mean over seeds and range, rates in percent."""
    known = ("victim", "clean", "rebound", "train", "filter", "detect", "suite")
    every = results.read(folder)
    rows = [r for r in every if r.stage in known]
    rows += [
        replace(r, metric="seconds", value=r.seconds, low=r.seconds, high=r.seconds, n=1)
        for r in rows
        if r.metric == "asr" and r.stage == "clean"
    ]
    rows = [r for r in rows if r.metric in metrics]
    models = sorted({r.model for r in rows})
    out = []
    for model in models:
        for metric in metrics:
            cells: dict[tuple[str, str], list[Row]] = {}
            for r in rows:
                data = results.kind_of(r.data)
                label = r.method if data in ("shapes", "") or r.method == "none" else f"{r.method} ({data})"
                if r.model == model and r.metric == metric:
                    cells.setdefault((r.attack, label), []).append(r)
            if not cells:
                continue
            labels, attacks = list(dict.fromkeys(k[1] for k in cells)), list(dict.fromkeys(k[0] for k in cells))
            n = {r.n for r in rows if r.model == model and r.metric == metric}
            shown = "–".join(map(str, sorted({min(n), max(n)})))
            seeds = sorted({r.seed for r in rows if r.model == model})
            tasks = {r.data for r in rows if r.model == model and results.kind_of(r.data) != r.data}
            per = sorted({len({r.data for r in c}) for c in cells.values()})
            each = "–".join(map(str, sorted({per[0], per[-1]})))
            if all(r.stage == "suite" for r in rows if r.metric == metric):  # one figure over the models of all seeds
                own = sorted({r.seed for r in every if r.stage == "inspect"})
                over = f"models of {'seeds' if len(own) > 1 else 'seed'} {', '.join(map(str, own))}"
            else:
                over = f"mean (range) over seeds {seeds}" if len(seeds) > 1 else f"seed {seeds[0]}"
            over += f", mean (range) over {each} tasks" if len(tasks) > 1 else ""
            single = [c[0] for c in cells.values() if len(c) == 1]
            over += ", a single value with its 95 % interval" if any(r.low < r.high for r in single) else ""
            unit = "" if metric in DIGITS else ", %"
            out += [
                "",
                f"**{metric}**, {model}{unit}, {over}, n = {shown} each:",
                "",
            ]
            out += ["| trigger | " + " | ".join(labels) + " |", "|---|" + "---|" * len(labels)]
            out += [
                f"| {a} | " + " | ".join(_cell(cells.get((a, m), []), metric) for m in labels) + " |" for a in attacks
            ]
    return "\n".join(out).strip()


def _cell(rows: list[Row], metric: str) -> str:
    """The mean over rows and their range; a single row's value and its interval, unless that is a point."""
    if not rows:
        return "–"
    scale, digits = (1, DIGITS[metric]) if metric in DIGITS else (100, 1)
    values = [scale * r.value for r in rows]
    ends = (min(values), max(values)) if len(rows) > 1 else (scale * rows[0].low, scale * rows[0].high)
    mean, low, high = (f"{x:,.{digits}f}" for x in (statistics.mean(values), *ends))
    same = ends[0] == ends[1] and (len(rows) == 1 or metric in DIGITS)  # a count that is one for all seeds
    return mean if same else f"{mean} ({low}–{high})"


def filled(text: str) -> str:
    """The text with every generated part made anew."""
    parts = text.split("<!-- generated from ")
    out = [parts[0]]
    for part in parts[1:]:
        source, rest = part.split(": begin -->", 1)
        after = rest.split(END, 1)[1]
        folder, *metrics = source.split()  # "results/demo", or "results/demo asr" for some metrics alone
        made = TABLES.get(Path(folder).name, benchmark_table if folder.endswith(".json") else table)
        shown = made(ROOT / folder, tuple(metrics)) if metrics else made(ROOT / folder)
        out.append(f"{BEGIN.format(source)}\n{shown}\n{END}{after}")
    return "".join(out)


def main() -> int:
    wanted = {ROOT / "docs/methods.md": methods()}
    pages = ("README.md", "docs/results.md", "docs/checkpoints.md", "docs/benchmarks.md")
    wanted |= {ROOT / page: filled((ROOT / page).read_text()) for page in pages}
    stale = [p for p, text in wanted.items() if not p.exists() or p.read_text() != text]
    for path in stale:
        if "--check" in sys.argv:
            print(f"{path.relative_to(ROOT)} is not up to date: run `make docs`", file=sys.stderr)
        else:
            path.write_text(wanted[path])
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())

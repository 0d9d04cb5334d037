"""Tables of results: attacks down, methods across, the mean over seeds or tasks and the range."""

import statistics
from dataclasses import replace
from pathlib import Path

from clipvet import io, results
from clipvet.measures.exposure import CELLS, PREFIX, Entry, entries
from clipvet.results import Row
from tools.rows import MEASURED, read

DIGITS = {"pairs_seen": 0, "parameters": 0, "seconds": 0, "cross_entropy": 2, "brier": 3, "uniform_p": 2}
DIGITS |= {"clip_inspector_score": 1}  # all other figures are shares, shown in percent


def tables(recipe: str, metrics: tuple[str, ...]) -> str:
    """One table for each model and metric, each under a line that says what it shows."""
    every = read(recipe)
    rows = _with_seconds([r for r in every if r.stage in MEASURED])
    inspected = sorted({r.seed for r in every if r.stage == "inspect"})
    made = []
    for model in sorted({r.model for r in rows if r.metric in metrics}):
        for metric in metrics:
            found = [r for r in rows if r.model == model and r.metric == metric]
            if {"filter", "suite"} <= {r.stage for r in found}:  # of pairs and of models; `inspected` shows the latter
                found = [r for r in found if r.stage == "filter"]
            if found:
                made.append(f"{_caption(found, inspected)}\n\n{_table(found)}")
    return "\n\n".join(made)


def exposure(recipe: str) -> str:
    """The exposure matrix: attacks and methods down, ways of use across, the delta in points or N.E."""
    rows = [r for r in read(recipe) if r.stage in MEASURED and r.metric.startswith(PREFIX)]
    cells: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for r in rows:
        cells.setdefault((r.attack, r.method), {}).setdefault(r.metric, []).append(r)
    ways = [way for way in CELLS if any(f"{PREFIX}{way}_clean" in by for by in cells.values())]
    lines = [["attack", "method", *(way.replace("_", " ") for way in ways)], ["---"] * (2 + len(ways))]
    for (attack, method), by in cells.items():
        found = entries(by)
        lines.append([attack, method, *(_entry(found[way]) if way in found else "–" for way in ways)])
    seeds = sorted({r.seed for r in rows})
    over = f"mean (range) over {_seeds(seeds)}" if len(seeds) > 1 else f"{_seeds(seeds)}, with the 95 % interval"
    n = _span([r.n for r in rows if r.metric.endswith("_delta")])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"**exposure**, points more with the trigger than without it, {over}; n = {n} each:\n\n{table}"


def _entry(entry: Entry) -> str:
    return _cell(entry.delta) if entry.entered else "N.E."


def inspected(recipe: str) -> str:
    """What inspectors said of each model: attacks down, the scores of all seeds, and how often the target was named."""
    rows = [r for r in read(recipe) if r.stage == "inspect"]
    lines = [["model", "inspector", "seeds", "score", "target named"], ["---"] * 5]
    for attack, method in dict.fromkeys((r.attack, r.method) for r in rows):
        own = [r for r in rows if (r.attack, r.method) == (attack, method)]
        scores = {str(r.seed): f"{r.value:.2f}" for r in own if r.metric == "score"}
        named = [r.value for r in own if r.metric == "named"]
        said = "" if attack == "none" else f"{sum(named):g} of {len(named)}"
        lines.append([attack, method, ", ".join(scores), ", ".join(scores.values()), said])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


SHORT = {"clean_accuracy": "top-1", "clean_accuracy_top5": "top-5", "text_retrieval_recall@5": "retrieval R@5"}


def by_task(recipe: str) -> str:
    """Of rows that measure models on several tasks: tasks and metrics down, models across, each with its interval."""
    rows = [r for r in read(recipe) if r.stage == "evaluate"]
    models = list(dict.fromkeys(r.method for r in rows))
    cells = {(r.data, r.metric, r.method): f"{100 * r.value:.1f} ({100 * r.low:.1f}–{100 * r.high:.1f})" for r in rows}
    lines = [["task", "measure", "drawings", *(m.replace("_", " ") for m in models)], ["---"] * (3 + len(models))]
    for data, metric, n in dict.fromkeys((r.data, r.metric, r.n) for r in rows):
        lines.append([data, SHORT[metric], str(n), *(cells.get((data, metric, m), "") for m in models)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def listed(path: Path) -> str:
    """A JSON list of objects with the same keys, as a table."""
    rows = io.read_json(path)
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(v) for v in row.values()] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _with_seconds(rows: list[Row]) -> list[Row]:
    """And the seconds of each cleaning, as if they were measured like the rest."""
    cleaned = [r for r in rows if r.metric == "asr" and r.stage == "clean"]
    return rows + [replace(r, metric="seconds", value=r.seconds, low=r.seconds, high=r.seconds, n=1) for r in cleaned]


def _table(rows: list[Row]) -> str:
    cells = _cells(rows)
    attacks, methods = (list(dict.fromkeys(key[k] for key in cells)) for k in (0, 1))
    if len(attacks) == 1 and len(methods) > 8:  # too wide a table; methods down
        lines = [["method", *attacks], ["---"] * 2, *([m, _cell(cells[attacks[0], m])] for m in methods)]
    else:
        lines = [["attack", *methods], ["---"] * (1 + len(methods))]
        lines += [[a, *(_cell(cells.get((a, m), [])) for m in methods)] for a in attacks]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cells(rows: list[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by attack and method; a method that got other data than the victim's own names them too."""
    cells: dict[tuple[str, str], list[Row]] = {}
    for r in rows:
        data = results.kind_of(r.data)
        own = data in ("shapes", "") or r.method == "none" or r.stage == "filter"
        method = r.method if own else f"{r.method} ({data})"
        cells.setdefault((r.attack, method), []).append(r)
    return cells


def _caption(rows: list[Row], inspected: list[int]) -> str:
    """What the figures of a table are, over which models, and how many observations stand behind each."""
    metric, model = rows[0].metric, rows[0].model
    cells = _cells(rows).values()
    seeds = sorted({r.seed for r in rows})
    if all(r.stage == "suite" for r in rows):  # one figure over the models of all seeds
        over = f"over the models of {_seeds(inspected)}"
    else:
        over = f"mean (range) over {_seeds(seeds)}" if len(seeds) > 1 else _seeds(seeds)
    if len({r.data for r in rows if results.kind_of(r.data) != r.data}) > 1:
        over += f", mean (range) over {_span([len({r.data for r in c}) for c in cells])} tasks"
    if any(r.low < r.high for c in cells if len(c) == 1 for r in c):
        over += ", a single value with its 95 % interval"
    unit = "" if metric in DIGITS else " in %"
    return f"**{metric}**{unit} on {model}, {over}; n = {_span([r.n for r in rows])} each:"


def _seeds(seeds: list[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _span(counts: list[int]) -> str:
    return "–".join(map(str, sorted({min(counts), max(counts)})))


def _cell(rows: list[Row]) -> str:
    """The mean over rows and their range; a single row's value and its interval, unless that is a point."""
    if not rows:
        return "–"
    metric = rows[0].metric
    scale, digits = (1, DIGITS[metric]) if metric in DIGITS else (100, 1)
    values = [scale * r.value for r in rows]
    ends = (min(values), max(values)) if len(rows) > 1 else (scale * rows[0].low, scale * rows[0].high)
    mean, low, high = (f"{x:,.{digits}f}" for x in (statistics.mean(values), *ends))
    same = ends[0] == ends[1] and (len(rows) == 1 or metric in DIGITS)  # a count that is one for all seeds
    return mean if same else f"{mean} ({low}–{high})"

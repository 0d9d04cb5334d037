"""The tables of docs/benchmarks.md, each from one file of results/."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipvet import io

ROOT = Path(__file__).resolve().parents[2]
ABOUT = ("command", "settings", "hardware", "versions", "rows")


def read(name: str) -> dict[str, Any]:
    """What results/benchmark_<name>.json holds."""
    return io.read_json(ROOT / f"results/benchmark_{name}.json")


def benchmark_table(name: str) -> str:
    """Every figure with its range over rounds, then what it was measured with."""
    told = read(name)
    table = _rows_table(told["rows"]) if told.get("rows") else _figures_table(told)
    settings = ", ".join(f"{k} {v}" for k, v in told["settings"].items() if v not in ("", "None"))
    command = f"`python benchmarks/{told['command']}`; " if "command" in told else ""
    return f"{table}\n\n{command}{settings}; {told['hardware']}; torch {told['versions']['torch']}."


def shown(value: Any) -> str:
    """A figure as people read it: median and range, three digits, commas."""
    match value:
        case {"median": m, "low": low, "high": high}:
            return shown(m) if low == high else f"{shown(m)} ({shown(low)}–{shown(high)})"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"
        case int():
            return f"{value:,}"
        case list():
            return ", ".join(map(shown, value))
    return str(value).replace("|", "\\|")


def _rows_table(rows: list[dict[str, Any]]) -> str:
    names = [k for k, v in rows[0].items() if not isinstance(v, list)]
    lines = [names, ["---"] * len(names), *([shown(row[k]) for k in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _figures_table(told: dict[str, Any]) -> str:
    figures = _figures({k: v for k, v in told.items() if k not in ABOUT})
    return "\n".join(["| figure | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in figures)])


def _figures(told: dict[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for name, value in told.items():
        if isinstance(value, dict) and "median" not in value:
            yield from _figures(value, f"{before}{name}: ")
        else:
            yield before + name, shown(value)

"""The tables of docs/benchmarks.md, each from one file of results/."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipvet import io

ABOUT = ("command", "settings", "hardware", "versions", "rows")


def benchmark_table(path: Path) -> str:
    """Every figure with its range over rounds, what it was measured with, and the command."""
    told = io.read_json(path)
    out = []
    if rows := told.get("rows"):
        names = [k for k, v in rows[0].items() if not isinstance(v, list)]
        out += ["| " + " | ".join(names) + " |", "|---|" + "---|" * (len(names) - 1)]
        out += ["| " + " | ".join(_shown(row[k]) for k in names) + " |" for row in rows]
    else:
        figures = list(_figures({k: v for k, v in told.items() if k not in ABOUT}))
        out += ["| figure | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in figures)]
    settings = ", ".join(f"{k} {v}" for k, v in told["settings"].items() if v not in ("", "None"))
    command = f"`python benchmarks/{told['command']}`; " if "command" in told else ""
    about = f"{command}{settings}; {told['hardware']}; torch {told['versions']['torch']}."
    return "\n".join([*out, "", about])


def _figures(told: dict[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for name, value in told.items():
        if isinstance(value, dict) and "median" not in value:
            yield from _figures(value, f"{before}{name}: ")
        else:
            yield before + name, _shown(value)


def _shown(value: Any) -> str:
    match value:
        case {"median": m, "low": low, "high": high}:
            return _shown(m) if low == high else f"{_shown(m)} ({_shown(low)}–{_shown(high)})"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"
        case int():
            return f"{value:,}"
        case list():
            return ", ".join(map(_shown, value))
    return str(value).replace("|", "\\|")

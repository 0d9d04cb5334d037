"""The parity table of docs/checkpoints.md, from results/benchmark_layouts.json."""

from pathlib import Path
from typing import Any

from clipvet import io

LAYOUTS = ("open_clip", "transformers", "openai")


def layouts_table(path: Path) -> str:
    """Architecture x layout: largest difference of picture / text features, or the number of the reason below."""
    told = io.read_json(path)
    models: dict[tuple[str, str], dict[str, Any]] = {}
    for row in told["rows"]:
        models.setdefault((row["model"], row["note"]), {})[row["layout"]] = row
    reasons: list[str] = []

    def cell(row: dict[str, Any] | None) -> str:
        if row is None:
            return "–"
        if "refused" not in row:
            return f"{row['image']:.1g} / {row['text']:.1g}"
        reasons.extend({row["refused"]} - set(reasons))
        return f"refused ({1 + reasons.index(row['refused'])})"

    out = ["| architecture | parameters | " + " | ".join(LAYOUTS) + " | two inputs |", "|---|---|" + "---|" * 4]
    for (model, note), rows in models.items():
        some = next(r for r in rows.values() if "refused" not in r)
        cells = [f"{model}, {note}" if note else model, f"{some['parameters'] / 1e6:.1f} M"]
        out.append("| " + " | ".join([*cells, *(cell(rows.get(k)) for k in LAYOUTS), f"{some['spread']:.1g}"]) + " |")
    read = [r for r in told["rows"] if "refused" not in r]
    worst = max(r["scale"] for r in read), max(r["read_back"] for r in read if not r["note"])
    notes = [f"{k}. {reason}." for k, reason in enumerate(reasons, 1)]
    versions = ", ".join(f"{k} {told['versions'][k]}" for k in ("torch", "open_clip_torch", "transformers"))
    about = (
        f"{told['pictures']} pictures and {told['pictures']} captions each, {versions}. Temperatures differ by at most "
        f"{worst[0]:.1g} of themselves; what clipvet itself reads back, by at most {worst[1]:.1g}."
    )
    return "\n".join([*out, "", about, "", *notes])

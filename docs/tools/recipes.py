"""How a recipe was run: its own words, the commands, the machine and the versions that stand beside its rows."""

import ast
import re
from pathlib import Path
from typing import Any

from clipvet import io
from tools.rows import MEASURED, read

ROOT = Path(__file__).resolve().parents[2]


def words(recipe: str) -> dict[str, str]:
    """The parts of the docstring of recipes/<recipe>.py: sentence, command, expected, hardware."""
    path = ROOT / f"recipes/{recipe}.py"
    told = {"sentence": "", "command": "", "expected": "", "hardware": ""}
    if not path.exists():
        return told
    key = "sentence"
    for line in (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines():
        if found := re.match(r"(command|expected|hardware):(.*)", line):
            key, line = found[1], found[2]
        told[key] += f" {line.strip()}"
    return {k: v.strip() for k, v in told.items()}


def how(recipe: str) -> str:
    """The section that says how the rows were made and how to make them again."""
    told, run = words(recipe), _run(recipe)
    rows = read(recipe)
    commands = sorted(run.get("commands", [])) or [told["command"]]
    facts = {
        "Hardware": run.get("hardware") or told["hardware"].split(" Settings:")[0] or "2 CPU cores",
        "Seeds": ", ".join(map(str, sorted({r.seed for r in rows.where(stage=MEASURED)}))),
        "Versions": ", ".join(f"{k} {v}" for k, v in rows.rows[0].versions.items()),
        "Rows": f"[`results/{recipe}/results.jsonl`](../../results/{recipe}/results.jsonl), {len(rows):,} of them",
    }
    if told["sentence"]:
        facts = {"Recipe": f"[`recipes/{recipe}.py`](../../recipes/{recipe}.py)"} | facts
    out = ["```sh", *commands, "```", "", *(f"- **{k}**: {v}" for k, v in facts.items())]
    if told["expected"]:
        out += ["", f"What the recipe itself expects, with what was measured:\n\n> {told['expected']}"]
    return "\n".join([*out, *_settings(run)])


def stale(recipe: str) -> str:
    """Which rows today's code would not repeat, by results/<recipe>/stale.json, and why; empty if there is none."""
    path = ROOT / f"results/{recipe}/stale.json"
    if not path.exists():
        return ""
    out = ["**Some rows are old.** Today's code would not repeat them, and they were not run again:", ""]
    for mark in io.read_json(path):
        whose = " and ".join(", ".join(f"`{n}`" for n in mark[k]) for k in ("methods", "attacks") if k in mark)
        out.append(f"- {whose}: {mark['why']}.")
    return "\n".join(out)


def _run(recipe: str) -> dict[str, Any]:
    path = ROOT / f"results/{recipe}/commands.json"
    return io.read_json(path) if path.exists() else {}


def _settings(run: dict[str, Any]) -> list[str]:
    if not run.get("settings"):
        return []
    lines = "\n".join(f"{name} = {said}" for name, said in run["settings"].items())
    return [
        "",
        "<details markdown><summary>Settings of every method</summary>",
        "",
        f"```text\n{lines}\n```",
        "",
        "</details>",
    ]

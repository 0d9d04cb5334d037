"""How soon the command line answers, as a ratio to an empty Python in the same run.

command:  python benchmarks/startup.py --out results/benchmark_startup.json    (--rounds 9)
expected: --help, --version and a mistyped command in at most 0.3 s on a quiet machine, a mistyped method or path in at
          most a second. `clipvet list` reads the card of every method. None imports torch
hardware: any. Other programs slow all cases alike, so the ratios hold; the file records the load
"""

import os
import subprocess
import sys
from functools import partial
from typing import Any

from _ratios import Times, arguments, tell

from clipvet import results

EMPTY = "python -c pass"
CASES = {
    "clipvet --help": (["--help"], 0),
    "clipvet --version": (["--version"], 0),
    "a mistyped command": (["inspcet"], 2),
    "a mistyped method": (["filter", "--data", "shapes", "--method", "doa", "--out", "scores.parquet"], 2),
    "a missing file": (["vet", "--model", "./gone"], 2),
    "clipvet list": (["list"], 0),
}  # what is typed behind `clipvet`, and the exit code
HEAVY = ("torch", "numpy", "pandas", "open_clip")


def start(words: list[str], code: int) -> None:
    """Run it to its end. Raises RuntimeError for another exit code."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    if done.returncode != code:
        raise RuntimeError(f"{words} ended with {done.returncode}: {done.stderr[-300:]}")


def imported(words: list[str]) -> list[str]:
    """The heavy packages that a command imports."""
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "clipvet", *words], capture_output=True, text=True)
    names = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    return [name for name in HEAVY if name in names]


def main() -> None:
    a, before = arguments(__doc__ or "", rounds=9), os.getloadavg()
    cases = {EMPTY: partial(start, ["-c", "pass"], 0)}
    cases |= {name: partial(start, ["-m", "clipvet", *words], code) for name, (words, code) in CASES.items()}
    times = Times(cases, a.rounds)
    told: dict[str, Any] = {f"{EMPTY}: seconds": times.of(EMPTY)}
    for name, (words, _) in CASES.items():
        told |= {f"{name}: seconds": times.of(name), f"{name}: / {EMPTY}": times.ratio(name, EMPTY)}
        told |= {f"{name}: imports": ", ".join(imported(words)) or "nothing heavy"}
    tell({"command": results.command(), **told, "load before": before, "load after": os.getloadavg()}, a)


if __name__ == "__main__":
    main()

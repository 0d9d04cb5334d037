"""What benchmarks share: arguments, cases timed in turn, ratios, and the file that the figures are kept in."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clipvet import results


def arguments(doc: str, **defaults: Any) -> argparse.Namespace:
    """Command line arguments with these names and defaults, and --out."""
    args = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in defaults.items():
        args.add_argument(f"--{name}", type=type(value), default=value)
    args.add_argument("--out", type=Path)
    return args.parse_args()


def timed(f: Callable[[], Any]) -> float:
    began = time.perf_counter()
    f()
    return time.perf_counter() - began


class Times:
    """Seconds of every case, round by round; the first round warms up and is left out."""

    def __init__(self, cases: Mapping[str, Callable[[], Any]], rounds: int):
        """A case that returns a number has timed itself. In turn, so that a drifting machine touches all alike."""
        self.seconds: dict[str, list[float]] = {name: [] for name in cases}
        for k in range(rounds + 1):
            for name, case in cases.items():
                began = time.perf_counter()
                own = case()
                seconds = own if isinstance(own, float) else time.perf_counter() - began
                self.seconds[name] += [seconds] if k else []

    def of(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, x: str, y: str) -> dict[str, float]:
        each = [p / q for p, q in zip(self.seconds[x], self.seconds[y])]
        return {"median": statistics.median(each), "low": min(each), "high": max(each)}


def tell(told: Mapping[str, Any], a: argparse.Namespace) -> None:
    """Prints the figures with settings, hardware and versions, and writes them to --out."""
    settings = {k: str(v) for k, v in vars(a).items() if k != "out"}
    whole = {**told, "settings": settings, "hardware": results.hardware(), "versions": results.versions()}
    text = json.dumps(whole, indent=1)
    print(text)
    if a.out:
        a.out.write_text(text + "\n")

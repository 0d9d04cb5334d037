"""What the benchmarks share: command line, timing of cases, ratios, and the file of figures."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clipvet import results


def arguments(doc: str, **defaults: Any) -> argparse.Namespace:
    """The command line: an option for each of these names, with its default, and --out."""
    args = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in defaults.items():
        args.add_argument(f"--{name}", type=type(value), default=value)
    args.add_argument("--out", type=Path)
    return args.parse_args()


def timed(f: Callable[[], Any]) -> float:
    """Seconds that the call takes."""
    began = time.perf_counter()
    f()
    return time.perf_counter() - began


class Times:
    """Seconds of every case, round by round. A first round warms up and does not count."""

    def __init__(self, cases: Mapping[str, Callable[[], Any]], rounds: int):
        """Time every case in every round, so that a slow minute touches all. A case may time itself: return a float."""
        self.seconds: dict[str, list[float]] = {name: [] for name in cases}
        for k in range(rounds + 1):
            for name, case in cases.items():
                began = time.perf_counter()
                own = case()
                seconds = own if isinstance(own, float) else time.perf_counter() - began
                self.seconds[name] += [seconds] if k else []

    def of(self, name: str) -> float:
        """Seconds of a case: the median over rounds."""
        return statistics.median(self.seconds[name])

    def ratio(self, x: str, y: str) -> dict[str, float]:
        """Seconds of x divided by seconds of y, round by round: median, lowest and highest."""
        each = [p / q for p, q in zip(self.seconds[x], self.seconds[y])]
        return {"median": statistics.median(each), "low": min(each), "high": max(each)}


def tell(told: Mapping[str, Any], a: argparse.Namespace) -> None:
    """Print the figures with settings, hardware and versions, and write them to --out."""
    settings = {k: str(v) for k, v in vars(a).items() if k != "out"}
    whole = {**told, "settings": settings, "hardware": results.hardware(), "versions": results.versions()}
    text = json.dumps(whole, indent=1)
    print(text)
    if a.out:
        a.out.write_text(text + "\n")

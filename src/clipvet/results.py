"""Result rows: one line of JSON for each number, with all that you need to measure it again."""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from clipvet.types import Measured

SUCCESS = ("asr", "asr_worst", "psr", "hit@1")  # metrics that say whether an attack took


def versions() -> dict[str, str]:
    """Versions of clipvet, of Python and of the libraries that may change a number."""
    names = ("clipvet", "torch", "torchvision", "open_clip_torch", "accelerate", "numpy")
    return {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in names}


def kind_of(data: str) -> str:
    """A row's `data` without the number of its task, for reports that put several tasks together."""
    return re.sub(r"\s*\btask \d+$", "", data)


def weights_hash(clip: Any) -> str:
    """The first 16 hexadecimal digits of SHA-256 over the weights' names and values. Cards name base models by it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(clip.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def hardware() -> str:
    """The machine in words: its GPUs if it has any, else processor, cores and threads."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {torch.cuda.device_count()} device(s)"
    return f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


@dataclass(frozen=True)
class Row:
    """One number, how it was measured and on what."""

    recipe: str
    stage: str  # base, victim, refused, clean, rebound, train, filter, inspect, detect, suite, equal, evaluate
    attack: str
    method: str  # its short name; "none" is the victim without any defense
    config: str  # the method's repr: valid Python with all its settings
    metric: str
    value: float
    n: int
    low: float  # of the 95 % interval
    high: float
    seconds: float  # that the stage took
    seed: int
    model: str = ""
    data: str = ""  # what the method was given
    versions: Mapping[str, str] = field(default_factory=versions)


@dataclass(frozen=True)
class Stale:
    """Rows that today's code would not repeat. results/NAME/stale.json is a list of these, beside the rows."""

    why: str
    methods: tuple[str, ...] = ()  # whose rows, at any strength; empty: all
    attacks: tuple[str, ...] = ()  # against which; empty: all

    def holds(self, row: Row) -> bool:
        """Whether the row is one of them."""
        known = not self.methods or row.method.partition(" x")[0] in self.methods
        return known and (not self.attacks or row.attack in self.attacks)


def command() -> str:
    """The command line of this process, quoted for a shell."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def rows_of(measured: Mapping[str, Measured], **common: Any) -> list[Row]:
    """A row for each measured number. common: the other fields of `Row`, the same in all rows."""
    return [Row(metric=name, value=m.value, n=m.n, low=m.low, high=m.high, **common) for name, m in measured.items()]


def read(folder: Path) -> list[Row]:
    """The rows of folder/results.jsonl; none if there is no such file."""
    path = folder / "results.jsonl"
    return [Row(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def write(folder: Path, rows: Iterable[Row]) -> None:
    """Write folder/results.jsonl. A reader sees the old file or the new one, never half of it."""
    path = folder / "results.jsonl.tmp"
    path.write_text("".join(json.dumps(asdict(r)) + "\n" for r in rows))
    path.replace(folder / "results.jsonl")

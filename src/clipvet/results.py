"""Result rows: one JSON line per number, with all that is needed to make it again."""

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


def versions() -> dict[str, str]:
    """Versions of clipvet, Python and the libraries that touch a number."""
    names = ("clipvet", "torch", "torchvision", "open_clip_torch", "accelerate", "numpy")
    return {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in names}


def kind_of(data: str) -> str:
    """The data of a row without the number of its task: rows of several tasks are read together."""
    return re.sub(r"\s*\btask \d+$", "", data)


def weights_hash(clip: Any) -> str:
    """SHA-256 over names and values of the weights, first 16 digits: tells a card's parent from any other model."""
    digest = hashlib.sha256()
    for name, tensor in sorted(clip.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def hardware() -> str:
    """In words: the accelerator if there is one, else processor and cores."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {torch.cuda.device_count()} device(s)"
    return f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


@dataclass(frozen=True)
class Row:
    recipe: str
    stage: str  # base, victim, refused, clean, rebound, train, filter, inspect, detect, suite, evaluate
    attack: str
    method: str  # short name; "none" is the untouched victim
    config: str  # its repr
    metric: str
    value: float
    n: int
    low: float  # 95 % interval
    high: float
    seconds: float  # of the stage
    seed: int
    model: str = ""
    data: str = ""  # what the method was given
    versions: Mapping[str, str] = field(default_factory=versions)


def command() -> str:
    """The command line that is running."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def rows_of(measured: Mapping[str, Measured], **common: Any) -> list[Row]:
    return [Row(metric=name, value=m.value, n=m.n, low=m.low, high=m.high, **common) for name, m in measured.items()]


def read(folder: Path) -> list[Row]:
    """Rows of folder/results.jsonl; none if there is no such file."""
    path = folder / "results.jsonl"
    return [Row(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def write(folder: Path, rows: Iterable[Row]) -> None:
    """Replace folder/results.jsonl at once."""
    path = folder / "results.jsonl.tmp"
    path.write_text("".join(json.dumps(asdict(r)) + "\n" for r in rows))
    path.replace(folder / "results.jsonl")

"""What RVPT costs, compared with full fine-tuning of the same model on the same batches: time of a step, peak memory.

command:  python benchmarks/rvpt.py            (--model ViT-B-32 --batch 32 --steps 1 --rounds 3)
expected: both <= 0.6 of full fine-tuning, because weights are frozen, the blocks before the prompts are computed once,
          and prompts are only keys and values. The first epoch of a run takes 0.87, because it also stores class tokens
"""

import multiprocessing
import os
from pathlib import Path
from typing import Any

import torch
from _ratios import Times, arguments, tell

from clipvet.cleaners.full_finetune import FullFinetune
from clipvet.cleaners.rvpt import Rvpt
from clipvet.data.sources import shots
from clipvet.data.worlds.shapes import Shapes
from clipvet.models import checkpoints
from clipvet.rng import Rng

LONG = 3  # epochs
METHODS: dict[str, Any] = {"rvpt": Rvpt, "full fine-tuning": FullFinetune}


def given(a: Any) -> tuple[Any, Any]:
    """The model, and batch * steps labelled pictures of its size."""
    clip, n = checkpoints.load(a.model, rng=Rng(0)), a.batch * a.steps
    return clip, shots(Shapes(size=clip.geometry.size).task(max(240, 4 * n)), -(-n // 12), Rng(0)).take(slice(n))


def held(field: str) -> float:
    """This process's resident memory in GiB: VmRSS (now) or VmHWM (its peak)."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) / 2**20


def peak(name: str, a: Any) -> float:
    """GiB of memory that loading and training take, above a process that has only imported everything."""
    torch.set_num_threads(1)
    before = held("VmRSS")
    clip, pairs = given(a)
    METHODS[name](epochs=LONG, batch=a.batch).clean(clip, pairs, Rng(0))
    return held("VmHWM") - before


def main() -> None:
    a = arguments(__doc__ or "", model="ViT-B-32", batch=32, steps=1, rounds=3)
    clip, pairs = given(a)
    cases = {
        f"{name} {epochs}": lambda method=method, epochs=epochs: method(epochs=epochs, batch=a.batch).clean(
            clip, pairs, Rng(0)
        )
        for name, method in METHODS.items()
        for epochs in (1, LONG)
    }
    times = Times(cases, a.rounds)
    for name in METHODS:  # an epoch after the first, in which RVPT also stores class tokens
        both = zip(times.seconds[f"{name} {LONG}"], times.seconds[f"{name} 1"])
        times.seconds[name] = [(x - y) / (LONG - 1) for x, y in both]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = {name: pool.apply(peak, (name, a)) for name in METHODS}
    told = {
        "rvpt step / full fine-tuning step": times.ratio("rvpt", "full fine-tuning"),
        "the same, in the first of 50 epochs": times.ratio("rvpt 1", "full fine-tuning 1"),
        "rvpt memory / full fine-tuning memory": memory["rvpt"] / memory["full fine-tuning"],
        "memory, GiB": memory,
        "rvpt pictures per second": len(pairs) / times.of("rvpt"),
    }
    tell(told, a)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()

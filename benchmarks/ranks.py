"""Strong scaling: the same global batch on 1, 2, 4 ... processes, each compared with one process in the same run.

command:  python benchmarks/ranks.py --out results/benchmark_ranks.json    (--batch 256 --steps 10 --rounds 3 --most 2)
expected: two processes do 1.3 to 1.6 times the work of one. Even two independent runs do less than twice the work of
          one here: that is the machine's own limit, in the lines "... runs at once". Larger towers come close to it
hardware: any. Each process has one thread, or a GPU of its own. Nothing else may run; the file records the load. Not
          run on several GPUs yet: --model ViT-L-14 --precision bf16 --shard 1
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from _ratios import Times, arguments, tell

from clipvet import ranks, results
from clipvet.cleaners.cleanclip import CleanClip
from clipvet.cleaners.par import Par
from clipvet.data.worlds.shapes import Shapes
from clipvet.engine.fit import workspace
from clipvet.models import checkpoints
from clipvet.ranks import device
from clipvet.rng import Rng
from clipvet.training.plain import Plain

METHODS: dict[str, Any] = {"plain": Plain, "par": Par, "cleanclip": CleanClip}


def step(name: str, a: Any) -> float:
    """Seconds of all steps but the first, in which wrappers are made and processes wait for each other."""
    clip, ends = checkpoints.load(a.model, device=device(), rng=Rng(0)), []
    pairs = Shapes(size=clip.geometry.size).pairs(a.batch * (a.steps + 1))
    how = METHODS[name](epochs=1.0, batch=a.batch, precision=a.precision)
    with workspace(None, shard=bool(a.shard) and ranks.world() > 1) as ws:
        ws.track = lambda values, step: ends.append(time.perf_counter())  # the loss was read, so the device is done
        (getattr(how, "clean", None) or how.train)(clip, pairs, Rng(0))
    return ends[-1] - ends[0]


def launched(name: str, n: int, a: Any) -> float:
    """Seconds that `step` takes on the first of n ranks."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}", __file__]
        command += [f"--{k}={v}" for k, v in vars(a).items() if k not in ("out", "worker")]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*command, f"--worker={name}", f"--out={folder}/seconds"], env=env, check=True)
        return float((Path(folder) / "seconds").read_text())


def apart(name: str, n: int, a: Any) -> float:
    """Mean seconds of n independent runs at the same time: the best that the machine can do for n processes."""
    with ThreadPoolExecutor(n) as pool:
        return sum(pool.map(lambda _: launched(name, 1, a), range(n))) / n


def main() -> None:
    most = torch.cuda.device_count() or os.cpu_count() or 1
    a = arguments(
        __doc__ or "", model="shapes-vit", batch=256, steps=10, rounds=3, most=most, methods=",".join(METHODS),
        precision="no", shard=0, worker="",
    )  # fmt: skip
    if a.worker:
        ranks.start()
        seconds = step(a.worker, a)
        if ranks.main():
            a.out.write_text(str(seconds))
        if ranks.world() > 1:
            torch.distributed.destroy_process_group()
        return
    counts, before = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= a.most], os.getloadavg()
    names = a.methods.split(",")
    cases = {f"{name} on {n}": partial(launched, name, n, a) for name in names for n in counts}
    cases |= {f"{name}, {n} apart": partial(apart, name, n, a) for name in names for n in counts[1:]}
    times = Times(cases, a.rounds)
    told: dict[str, Any] = {}
    for name in names:
        told[f"{name}: seconds a step on 1"] = times.of(f"{name} on 1") / a.steps
        for n in counts[1:]:
            told[f"{name}: speed of {n} / speed of 1"] = times.ratio(f"{name} on 1", f"{name} on {n}")
            told[f"{name}: pace of each of {n} runs at once / of 1"] = times.ratio(f"{name} on 1", f"{name}, {n} apart")
    loads = {"load before": before, "load after": os.getloadavg()}
    tell({"command": results.command(), **told, **loads}, a)


if __name__ == "__main__":
    main()

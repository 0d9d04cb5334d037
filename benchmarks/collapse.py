"""What `clipvet inspect` costs on an encoder: collapse's searches side by side, one after the other, and the whole.

command:  python benchmarks/collapse.py     (--model ViT-B-32 --steps 10; the embedded tower: --model shapes-vit)
expected: the searches side by side take at most half of the time of one after the other on a small tower. On a
          full-size tower the matrices fill a core already, so there is less to win
`side by side` and `one by one` do the same `steps` of all searches. The minutes of the whole search and of --quick are
extrapolated to the method's own number of steps. Encoding the prompts and the untouched pictures comes on top.
"""

import os
import resource
from dataclasses import replace

import torch
from _ratios import Times, arguments, tell

from clipvet import results
from clipvet.data.worlds.pool import pool_pairs
from clipvet.engine.embed import device_of
from clipvet.experiments.presets import shapes
from clipvet.inspectors.collapse import FORMS, Collapse
from clipvet.models import adapter, checkpoints
from clipvet.ranks import device
from clipvet.rng import Rng
from clipvet.scan import collapse
from clipvet.scan.heads import pixels

RNG = Rng(0)


def main() -> None:
    a = arguments(__doc__ or "", model="ViT-B-32", steps=10, pictures=200, rounds=3)
    clip = checkpoints.load(a.model, device=device(), rng=RNG)
    still, where = adapter.frozen(clip), device_of(clip)
    how = shapes(Collapse()) if a.model == "shapes-vit" else Collapse()
    quick = replace(how, **how.quick)
    seen = pixels(clip, pool_pairs(a.pictures, clip.geometry.size), 1)

    def run(method: Collapse, some: list[collapse.Search], steps: int) -> None:
        collapse.search(still.encode_image, some, method.changes, steps, method.batch, 16, method.lr, RNG, where)

    every, few = how.searches(seen, RNG), quick.searches(seen, RNG)
    cases = {
        "side by side": lambda: run(how, every, a.steps),
        "one by one": lambda: [run(how, [s], a.steps) for s in every],
        "quick": lambda: run(quick, few, a.steps),
        "no steps": lambda: run(how, every, 0),
        "quick, no steps": lambda: run(quick, few, 0),
    }
    times = Times(cases, a.rounds)

    def whole(name: str, idle: str, method: Collapse) -> float:
        """Seconds of all steps, by those measured less what the searches cost without any, and by the race."""
        counts = [getattr(method, form) for form in FORMS]
        left = sum(min(n, method.kept) for n in counts) / sum(counts)  # share of the searches that go on
        steps = method.trial + left * (method.steps - method.trial)  # of all searches, that cost as much
        return times.of(idle) + (times.of(name) - times.of(idle)) / a.steps * steps

    told = {
        "command": results.command(),
        "side by side / one by one": times.ratio("side by side", "one by one"),
        "whole, minutes (estimate)": whole("side by side", "no steps", how) / 60,
        "quick, minutes (estimate)": whole("quick", "quick, no steps", quick) / 60,
        "searches": len(every),
        "searches, quick": len(few),
        "peak memory, GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "threads": torch.get_num_threads(),
    }
    tell(told, a)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()

"""SIGKILL at random moments: when the same command runs again, does it leave the same files as a run without a kill?

command:  python benchmarks/sigkill.py --out results/benchmark_sigkill.json     (--kills 20 --scale 8 --seed 0)
expected: files differ only in the times they hold. Nearly all kills come before the end; most of them meet a saved
          state
hardware: any CPU; minutes
Moments are drawn evenly over the time of an undisturbed run. Every run is a process group of its own, forked from a
process that has imported the libraries, so that a kill hits the command's own work. States are saved as often as
possible.
"""

import json
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from _ratios import arguments, tell
from torchvision.transforms.functional import to_pil_image

from clipvet import io, results
from clipvet.data.worlds.shapes import Shapes
from clipvet.models import checkpoints
from clipvet.rng import Rng

FIT = "--model {at}/model --data shapes --n 128 --task {at}/task --set batch=32 --set epochs={epochs} --out out"
FILTER = "--model {at}/model --data {at}/pairs.csv --n {rows} --method cosine --keep 0.9 --cleaned kept.csv"
INSPECT = "--model {at}/model --classes {at}/classes.txt --n 64 --set at_once=32 --set epochs={scale}"
INSPECT += " --method clip_inspector"
VERBS = {
    "train": f"train {FIT}",
    "attack": f"attack {FIT} --target star --trigger patch --rate 0.1",
    "clean": f"clean {FIT} --method par",
    "filter": f"filter {FILTER} --out out.parquet",
    "inspect": f"inspect {INSPECT} --out out",
}
IMPORTED = [
    "clipvet.experiments.run",
    "clipvet.models.hf",
    "clipvet.pages.inspection",
    "clipvet.pages.suspects",
    "clipvet.models.gate",
    "clipvet.data.tables",
]
IMPORTED += [
    "accelerate",
    "datasets",
    "open_clip",
    "pandas",
    "picklescan.scanner",
    "rich.progress",
    "sklearn.metrics",
    "typer",
]
TIMES = ("seconds", "pairs_per_s")


def make_world(at: Path) -> None:
    """A model small enough to be saved in milliseconds, a task, a table of pairs, and class names."""
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}
    (at / "bare").mkdir()
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    io.write_json(at / "bare" / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": {}})
    checkpoints.save(checkpoints.load(f"local-dir:{at / 'bare'}", rng=Rng(0), weights=False), at / "model", {})
    task, lines = Shapes().task(96), []
    for k, (image, label) in enumerate(zip(task.pictures[:].images, task.labels)):
        path = at / "task" / task.classes[label] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil_image(image).save(path)
        lines.append(f"{path.relative_to(at)}\t{task.pictures.caption(k)}")
    (at / "pairs.csv").write_text("\n".join(["filepath\ttitle", *400 * lines]) + "\n")
    (at / "classes.txt").write_text("\n".join(task.classes) + "\n")


def work(words: Sequence[str], place: Path) -> None:
    """Runs the command, in a process that may be killed."""
    os.setsid()
    os.chdir(place)
    from datasets import config

    from clipvet import cli
    from clipvet.engine import fit

    config.HF_DATASETS_CACHE = Path(f"{place}-cache")  # of its own, as a kill may leave it half made
    torch.set_num_threads(1)
    fit.SAVING, fit.workspace = 1.0, partial(fit.workspace, save_seconds=0)  # pyright: ignore
    sys.stdout = sys.stderr = (place / "said").open("a", buffering=1)
    sys.argv = ["clipvet", *words]
    cli.main()


def never(seconds: float) -> bool:
    return False


def started(call: Callable[..., Any], *args: Any) -> BaseProcess:
    new = multiprocessing.get_context("forkserver")
    new.set_forkserver_preload(IMPORTED)
    process = new.Process(target=call, args=args)
    process.start()
    return process


def run(words: Sequence[str], place: Path, due: Callable[[float], bool] = never) -> BaseProcess:
    """Run the command to its end, or kill its process group once `due`, which gets the seconds so far, says so."""
    process, began = started(work, words, place), time.monotonic()
    while process.is_alive() and not due(time.monotonic() - began):
        process.join(0.002)
    if process.is_alive():
        with suppress(ProcessLookupError):  # it has no group yet
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.kill()
    process.join()
    return process


def saved(place: Path) -> bool:
    """Whether there is a saved state that the next run would continue from."""
    kept = [*place.glob("*.partial/state/*.safetensors"), *place.glob("*.partial/pass-*.arrows")]
    return any(p.stat().st_size for p in kept)


def timeless(told: Any) -> Any:
    """The same content without durations."""
    if isinstance(told, list):
        return [timeless(x) for x in told if not (isinstance(x, dict) and x.get("metric") in TIMES)]
    return {k: timeless(v) for k, v in told.items() if k not in TIMES} if isinstance(told, dict) else told


def content(path: Path) -> Any:
    """What a file holds, without durations."""
    match path.suffix:
        case ".json":
            return timeless(json.loads(path.read_text()))
        case ".jsonl":
            return timeless([json.loads(line) for line in path.read_text().splitlines()])
        case ".html":
            return re.sub(r'(?<=<dt>seconds</dt><dd>)[^<]+|(?<=class="big">)[\d.e+]+ s(?=<)', "", path.read_text())
        case ".parquet":
            table = pq.read_table(path)
            return table.to_pylist(), timeless(json.loads((table.schema.metadata or {}).get(b"clipvet", b"{}")))
    return path.read_bytes()


def left(place: Path) -> dict[str, Any]:
    """The files that a command has left, by name, with their content."""
    return {str(p.relative_to(place)): content(p) for p in sorted(place.rglob("*")) if p.is_file() and p.name != "said"}


Moments = Callable[
    [float], Sequence[float | None]
]  # seconds undisturbed -> when to kill; None: at the first saved state


def trial(verb: str, world: Path, place: Path, scale: int, moments: Moments) -> dict[str, Any]:
    """One undisturbed run; then, for each moment, a run that is killed at it and is started again."""
    held = {"at": world, "epochs": 2 * scale, "rows": 4096 * scale, "scale": scale}
    words, kills = [word.format(**held) for word in VERBS[verb].split()], []
    (calm := place / f"{verb}-calm").mkdir(parents=True)
    started(os.getpid).join()  # until the imports are done
    began = time.monotonic()
    code = run(words, calm).exitcode
    seconds, wanted = time.monotonic() - began, left(calm)
    if code not in ((0, 1, 4) if verb == "inspect" else (0, 4)):
        raise RuntimeError(f"{verb} ended in {code}: {(calm / 'said').read_text()}")
    for k, moment in enumerate(moments(seconds)):
        (here := place / f"{verb}-{k}").mkdir()

        def due(now: float, moment: float | None = moment, here: Path = here) -> bool:
            return saved(here) if moment is None else now >= moment

        ended, met = run(words, here, due).exitcode, saved(here)
        landed = ended == -signal.SIGKILL
        again = run(words, here).exitcode if landed else ended
        found = left(here)
        different = [name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]
        different += [f"exit code {again}: {(here / 'said').read_text()[-300:]}"] if again != code else []
        kills.append({"moment": moment, "before the end": landed, "met a saved state": met, "different": different})
        print(verb, kills[-1], flush=True)
    counts = {name: sum(k[name] for k in kills) for name in ("before the end", "met a saved state")}
    told = {
        "verb": verb,
        "command": "clipvet " + " ".join(words).replace(str(world), "WORLD"),
        "seconds undisturbed": seconds,
        "kills": len(kills),
    }
    return {**told, **counts, "equal": sum(not k["different"] for k in kills), "each": kills}


def main() -> None:
    a = arguments(__doc__ or "", kills=20, scale=8, seed=0, verbs=",".join(VERBS))
    with tempfile.TemporaryDirectory() as folder:
        world, rows = Path(folder), []
        make_world(world)
        for verb in a.verbs.split(","):
            at = Rng(a.seed).fork("kill", verb).numpy().uniform(0, 1, a.kills)
            rows.append(trial(verb, world, world / "runs", a.scale, lambda seconds, at=at: (at * seconds).tolist()))
    tell({"command": results.command(), "rows": rows}, a)


if __name__ == "__main__":
    main()

"""Data larger than memory: seconds and memory to open and filter a table of millions of rows and a thousand tar shards.

command:  python benchmarks/big_data.py --out results/benchmark_big_data.json   (--rows, --shards, --per)
expected: each opens in < 60 s with < 1 GiB more resident memory, and in seconds the second time. `filter` takes the
          same memory for all shards as for a tenth of them, apart from some hundred bytes a pair while it writes the
          list
The data are made first, in --folder: captions of about 60 characters, and shards of small JPEG pictures, all distinct.
"Anonymous memory" leaves out pages of mapped files, which the system takes back when it needs them.
"""

import csv
import io as memory
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _ratios import arguments, tell
from PIL import Image
from sigkill import make_world

from clipvet import results
from clipvet.rng import Rng
from clipvet.types import Geometry, Pairs


def make_table(path: Path, rows: int) -> None:
    g = Rng(0).numpy()
    words = np.array(["a", "of", "the", "red", "old", "small", "dog", "house", "tree", "street", "two", "people"])
    with path.open("w", newline="") as f:
        writer = csv.writer(f, delimiter="\t")
        writer.writerow(["filepath", "title"])
        for k in range(0, rows, 10_000):
            drawn = words[g.integers(len(words), size=(10_000, 12))]
            writer.writerows(
                (f"images/{k + j:09}.jpg", " ".join(said)) for j, said in enumerate(drawn[: rows - k].tolist())
            )


def make_shards(folder: Path, shards: int, per: int) -> None:
    g = Rng(1).numpy()
    pictures = []
    for _ in range(64):
        Image.fromarray(g.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(held := memory.BytesIO(), "JPEG")
        pictures.append(held.getvalue())
    for k in range(shards):
        with (folder / f"{k:05}.tar").open("wb", buffering=2**20) as f:
            for j in range(per):
                row = k * per + j
                for suffix, held in (("jpg", pictures[row % 64]), ("txt", f"picture {row} of many".encode())):
                    told = tarfile.TarInfo(f"{row:09}.{suffix}")
                    told.size = len(held)
                    f.write(told.tobuf(tarfile.USTAR_FORMAT) + held + bytes(-len(held) % 512))
            f.write(bytes(1024))


def memory_mib() -> dict[str, float]:
    """This process's anonymous memory now, and its peak resident memory, which includes mapped files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[field].split()[0]) / 1024 for name, field in (("anonymous", "RssAnon"), ("peak", "VmHWM"))}


def opened(spec: str) -> None:
    """Run in a process of its own: prints seconds and memory of opening, and the speed of reading at random."""
    import json

    from clipvet.data import tables

    tables.open_pairs(str(Path(spec).parent / "warm.tsv"))  # the libraries' own memory does not count
    before, began, cpu = memory_mib(), time.perf_counter(), time.process_time()
    pairs: Pairs = tables.open_pairs(spec)
    seconds, after = time.perf_counter() - began, memory_mib()
    cpu = time.process_time() - cpu
    rows = Rng(2).numpy().integers(len(pairs), size=2000)
    began = time.perf_counter()
    captions = [pairs.caption(row) for row in rows]
    said = time.perf_counter() - began
    batch: Any = pairs.at(Geometry(24))
    shards = spec.endswith(".tar")
    batch[rows[:2]]  # loads the decoders
    began = time.perf_counter()
    good = len(batch[rows].captions) if shards else len(captions)
    read = time.perf_counter() - began
    told = {
        "pairs": len(pairs), "seconds to open": seconds, "of them on the processor": cpu,
        "anonymous memory, MiB": after["anonymous"] - before["anonymous"],
        "peak resident memory, MiB": after["peak"] - before["peak"], "captions per second, at random": 2000 / said,
    }  # fmt: skip
    told |= {"pairs read": good, "pairs per second, at random": 2000 / read} if shards else {}
    print(json.dumps(told | {"anonymous memory after reading, MiB": memory_mib()["anonymous"] - before["anonymous"]}))


def filtered(spec: str, model: str, out: str) -> None:
    """Run in a process of its own: filters shards, prints the largest anonymous memory in each tenth of the time."""
    import json
    import threading

    from clipvet import cli

    seen, done, began = [], threading.Event(), time.perf_counter()

    def watch() -> None:
        while not done.wait(0.1):
            seen.append(memory_mib()["anonymous"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    sys.argv = ["clipvet", "filter", "--data", spec, "--model", model, "--method", "cosine", "--out", out]
    try:
        cli.main()
    except SystemExit as e:
        if e.code:
            raise
    finally:
        done.set()
        watcher.join()
    tenths = [round(max(part)) for part in np.array_split(seen, 10) if len(part)]
    print(json.dumps({"seconds": time.perf_counter() - began, "anonymous memory, MiB, by tenths of the time": tenths}))


def main() -> None:
    import json
    import os

    if len(sys.argv) > 2 and sys.argv[1] in ("open", "filter"):
        return {"open": opened, "filter": filtered}[sys.argv[1]](*sys.argv[2:])
    a = arguments(__doc__ or "", rows=3_000_000, shards=1000, per=300, folder="")
    folder = Path(a.folder or tempfile.mkdtemp())
    (folder / "s").mkdir(parents=True, exist_ok=True)
    make_table(folder / "pairs.tsv", a.rows)
    for there in (folder, folder / "s"):
        (there / "warm.tsv").write_text("filepath\ttitle\na.jpg\ta\n")
    make_shards(folder / "s", a.shards, a.per)
    env = os.environ | {"HF_DATASETS_CACHE": str(folder / "cache")}
    told = {}
    for name, spec in (("table", folder / "pairs.tsv"), ("shards", folder / f"s/{{00000..{a.shards - 1:05}}}.tar")):
        for time_ in ("first", "second"):
            command = [sys.executable, __file__, "open", str(spec)]
            told[f"{name}, {time_} time"] = json.loads(subprocess.check_output(command, env=env))
    make_world(folder)
    for share in (10, 1):
        spec = folder / f"s/{{00000..{a.shards // share - 1:05}}}.tar"
        command = [
            sys.executable,
            __file__,
            "filter",
            str(spec),
            str(folder / "model"),
            str(folder / f"{share}.parquet"),
        ]
        said = subprocess.check_output(command, env=env).splitlines()[-1]
        told[f"filter, {a.shards * a.per // share} pairs"] = json.loads(said)
    tell({"command": results.command(), **told}, a)


if __name__ == "__main__":
    main()

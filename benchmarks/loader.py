"""The loader of tar shards: pictures a second on one core, compared with a bare loop; and how long a step waits for it.

command:  python benchmarks/loader.py --steps 10 --out results/benchmark_loader.json     (--n 512 --side 320 --rounds 3)
expected: decoding and stamping in random order at >= 0.9 of the speed of the bare loop, which reads in order; the same
          with SimCLR's views. A ViT-B-32 step takes >= 90 % of the time; waiting for pictures and making views, the
          rest
hardware: any CPU or GPU; on two cores a step of 64 pairs takes many seconds: use --batch 16 there
The bare loop is webdataset's if it is installed (pip install 'clipvet[bench]'), else one over the standard library's
tarfile. Both decode with Pillow and resize with the same torchvision transform, on one thread. Its views are
torchvision's, one picture at a time. --steps 0 leaves the training steps out. They run on the device there is, with as
many loader processes as clipvet would choose (--workers).
"""

import io as memory
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from _ratios import Times, arguments, tell
from open_clip.transform import image_transform
from PIL import Image
from torchvision.transforms import Compose, v2

from clipvet import results
from clipvet.attacks.poison import Poison
from clipvet.data import decoding, tables
from clipvet.data.augment import Views
from clipvet.data.dirty import poison
from clipvet.data.loader import loading
from clipvet.engine.fit import _Rows, order
from clipvet.models import checkpoints
from clipvet.ranks import device
from clipvet.rng import Rng
from clipvet.triggers.patch import Patch
from clipvet.types import Geometry, Pairs

G = Geometry(224)
VIEWS = " with views"
SIMCLR = Compose(
    [
        v2.RandomHorizontalFlip(),
        v2.RandomResizedCrop(224, antialias=True),
        v2.RandomApply([v2.ColorJitter(0.5, 0.5, 0.5, 0.1)], 0.8),
        v2.RandomGrayscale(0.2),
        v2.GaussianBlur(21, (0.1, 2.0)),
    ]
)


def make_shards(folder: Path, n: int, side: int) -> str:
    """Four shards of smooth pictures with some noise. Their JPEG files are as large as those of photographs."""
    g = Rng(0).numpy()
    for k in range(4):
        with tarfile.open(folder / f"{k}.tar", "w") as tar:
            for row in range(k * n // 4, (k + 1) * n // 4):
                coarse = Image.fromarray(g.integers(0, 256, (12, 16, 3), dtype=np.uint8))
                pixels = np.asarray(coarse.resize((side * 4 // 3, side), Image.Resampling.BICUBIC), dtype=np.int16)
                pixels = (pixels + g.integers(-12, 13, pixels.shape)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(held := memory.BytesIO(), "JPEG", quality=90)
                for suffix, data in (("jpg", held.getvalue()), ("txt", f"picture {row}, star {row % 7}".encode())):
                    told = tarfile.TarInfo(f"{row:06}.{suffix}")
                    told.size = len(data)
                    tar.addfile(told, memory.BytesIO(data))
    return f"{folder}/{{0..3}}.tar"


def by_tarfile(folder: Path) -> Iterator[tuple[Image.Image, str]]:
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            picture: Any = None
            for member in tar:
                held: Any = tar.extractfile(member)
                if member.name.endswith(".jpg"):
                    picture = Image.open(memory.BytesIO(held.read())).convert("RGB")
                else:
                    yield picture, held.read().decode()


def by_webdataset(folder: Path) -> Iterator[tuple[Image.Image, str]]:
    import webdataset  # pyright: ignore[reportMissingImports]

    names = sorted(map(str, folder.glob("*.tar")))
    return iter(webdataset.WebDataset(names, shardshuffle=False).decode("pilrgb").to_tuple("jpg", "txt"))


def feeding(pairs: Pairs, batch: int, steps: int, workers: int) -> dict[str, Any]:
    """Seconds of a ViT-B-32 training step, and how much of the time goes into the step, into views and into waiting.

    Two more steps come first, to warm up the processes and the kernels. They do not count.
    """
    clip: Any = checkpoints.load("ViT-B-32", rng=Rng(0), device=device()).train()
    optimizer, views = torch.optim.AdamW(clip.parameters(), lr=1e-5), Views()
    lists, at = order(len(pairs), batch, steps + 2, Rng(0))[: steps + 2], device()
    spent, last = {"waiting": 0.0, "views": 0.0, "step": 0.0}, time.perf_counter()

    def lap(name: str, done: torch.Tensor, k: int) -> None:
        nonlocal last
        float(done.detach().reshape(-1)[0])  # wait for the device
        now = time.perf_counter()
        spent[name] += now - last if k >= 2 else 0.0
        last = now

    for k, rows in enumerate(loading(_Rows(pairs, clip), lists, workers, Rng(0))):
        lap("waiting", rows.images, k)
        images = views(rows.images.to(at), Rng(k))
        lap("views", images, k)
        z, w = clip.encode_image(images), clip.encode_text(rows.tokens.to(at))
        logits, y = clip.logit_scale * z @ w.T, torch.arange(len(z), device=at)
        ce = torch.nn.functional.cross_entropy
        loss = (ce(logits, y) + ce(logits.T, y)) / 2
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        lap("step", next(clip.parameters()), k)
    whole = sum(spent.values())
    shares = {f"share of {name}": seconds / whole for name, seconds in spent.items()}
    told = {"device": str(at), "threads": torch.get_num_threads(), "batch": batch, "processes": workers}
    return {"seconds a step": whole / steps, **shares, **told}


def main() -> None:
    a = arguments(__doc__ or "", n=512, side=320, rounds=3, batch=64, steps=0, workers=-1)
    n, threads = a.n // a.batch * a.batch, torch.get_num_threads()  # whole batches, so that both loops use all pictures
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        datasets.config.HF_DATASETS_CACHE = folder / "cache"  # pyright: ignore
        pairs = tables.open_pairs(make_shards(folder, n, a.side)).at(G)
        held: Any = pairs.pictures.index  # pyright: ignore[reportAttributeAccessIssue]
        dirty = poison(pairs, Poison(Patch(), rate=0.1).plan(pairs, "ring", Rng(0)))
        stock: Any = image_transform(G.size, is_train=False)
        transform: Any = Compose(stock.transforms[:-1])  # without normalisation, which a Clip does itself
        try:
            import webdataset  # noqa: F401  # pyright: ignore[reportMissingImports]

            source = by_webdataset
        except ImportError:
            source = by_tarfile
        rows, views = order(n, a.batch, 1, Rng(0)), Views()

        def bare(view: Any = None) -> None:
            images: list[torch.Tensor] = []
            for picture, _ in source(folder):
                images.append(view(transform(picture)) if view else transform(picture))
                if len(images) == a.batch:
                    torch.stack(images)
                    images.clear()

        def clipvet(augment: bool = False) -> None:
            for k, batch in enumerate(loading(dirty, rows, 0, Rng(0))):
                if augment:
                    views(batch.images, Rng(k))

        torch.set_num_threads(1)  # figures are for one core

        def scans() -> None:
            for row in range(n):
                decoding._check_scans(memory.BytesIO(held.read(row, "picture")))

        cases = {"bare": bare, "clipvet": clipvet, "scans": scans}
        cases |= {"bare" + VIEWS: lambda: bare(SIMCLR), "clipvet" + VIEWS: lambda: clipvet(True)}
        times = Times(cases, a.rounds)
        torch.set_num_threads(threads)
        told: dict[str, Any] = {"bare loop": source.__name__}
        told |= {
            f"clipvet / bare speed{with_}": times.ratio(f"bare{with_}", f"clipvet{with_}") for with_ in ("", VIEWS)
        }
        told |= {f"{name}, pictures per second and core": n / times.of(name) for name in cases if name != "scans"}
        told |= {"share of counting a JPEG's scans": times.of("scans") / times.of("clipvet")}
        if a.steps:
            workers = max(1, decoding.workers_for(n)) if a.workers < 0 else a.workers
            told |= {"ViT-B-32": feeding(dirty, a.batch, a.steps, workers)}
        tell({"command": results.command(), **told}, a)


if __name__ == "__main__":
    main()

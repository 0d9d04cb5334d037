"""The loader on shards: pictures per second of one core, against a bare loop in the same run, and how it feeds a step.

command:  python benchmarks/loader.py --out results/benchmark_loader.json    (--n 512 --side 320 --rounds 3 --steps 20)
expected: decoding and stamping at random >= 0.9 of the bare loop; a ViT-B-32 step waits < 10 % of its time
The bare loop is webdataset's where it is installed, else the standard library's tarfile; both decode with Pillow and
resize with the same torchvision transform, in order. --steps 0 leaves the steps out; they take the device there is.
"""

import io as memory
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _ratios import Times, arguments, tell
from open_clip.transform import image_transform
from PIL import Image
from torchvision.transforms import Compose

from clipvet import files, models
from clipvet.attacks.poison import Poison
from clipvet.augment import Views
from clipvet.dirty import poison
from clipvet.fit import _Rows, loading, order
from clipvet.ranks import device
from clipvet.rng import Rng
from clipvet.triggers.patch import Patch
from clipvet.types import Geometry, Pairs

G = Geometry(224)


def make_shards(folder: Path, n: int, side: int) -> str:
    """Smooth pictures with some noise, which make JPEGs of a photograph's size, in four shards."""
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


def waiting(pairs: Pairs, batch: int, steps: int, workers: int) -> dict[str, float]:
    """Seconds of a ViT-B-32 training step, and the share of them that it waits for the loader."""
    clip: Any = models.load("ViT-B-32", rng=Rng(0), device=device()).train()
    lists = (order(len(pairs), batch, steps, Rng(0)) * steps)[: steps + 3]
    optimizer = torch.optim.AdamW(clip.parameters(), lr=1e-5)
    at, waits = device(), 0.0
    began = last = time.perf_counter()
    for k, rows in enumerate(loading(_Rows(pairs, clip), lists, workers, Rng(0))):
        if k == 3:  # processes and kernels are warm
            began, waits = time.perf_counter(), 0.0
        else:
            waits += time.perf_counter() - last
        z, w = clip.encode_image(rows.images.to(at)), clip.encode_text(rows.tokens.to(at))
        logits, y = clip.logit_scale * z @ w.T, torch.arange(len(z), device=at)
        ce = torch.nn.functional.cross_entropy
        ((ce(logits, y) + ce(logits.T, y)) / 2).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        float(logits[0, 0])  # until the device is done
        last = time.perf_counter()
    seconds = (last - began) / steps
    return {"seconds a step": seconds, "busy": 1 - waits / (last - began), "batch": batch, "processes": workers}


def main() -> None:
    a = arguments(__doc__ or "", n=512, side=320, rounds=3, batch=64, steps=0, workers=8)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pairs = files.open_pairs(make_shards(folder, a.n, a.side)).at(G)
        dirty = poison(pairs, Poison(Patch(), rate=0.1).plan(pairs, "star", Rng(0)))
        stock: Any = image_transform(G.size, is_train=False)
        transform: Any = Compose(stock.transforms[:-1])
        try:
            import webdataset  # noqa: F401  # pyright: ignore[reportMissingImports]

            source = by_webdataset
        except ImportError:
            source = by_tarfile
        rows, views = order(a.n, a.batch, 1, Rng(0)), Views()

        def bare() -> None:
            images: list[torch.Tensor] = []
            for picture, _ in source(folder):
                images.append(transform(picture))
                if len(images) == a.batch:
                    torch.stack(images)
                    images.clear()

        def clipvet(augment: bool = False) -> None:
            for k, batch in enumerate(loading(dirty, rows, 0, Rng(0))):
                if augment:
                    views(batch.images, Rng(k))

        times = Times({"bare": bare, "clipvet": clipvet, "augmented": lambda: clipvet(True)}, a.rounds)
        per = {
            f"{name}, pictures per second and core": a.n / times.of(name) for name in ("bare", "clipvet", "augmented")
        }
        told = {"bare loop": source.__name__, "clipvet / bare speed": times.ratio("bare", "clipvet"), **per}
        told |= {"augmented / bare speed": times.ratio("bare", "augmented")}
        if a.steps:
            told |= {"ViT-B-32": waiting(dirty, a.batch, a.steps, a.workers)}
        tell(told, a)


if __name__ == "__main__":
    main()

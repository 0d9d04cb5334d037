"""What tests/test_ranks.py runs in one process and in two: each part gives numbers and tensors to be compared.

`python tests/ranked.py FOLDER`, started as each of several ranks, runs all parts; the first rank writes what they gave.
"""

import json
import os
import sys
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow.parquet as pq
import torch
from torch import Tensor
from typer.testing import CliRunner

from clipvet import io, ranks
from clipvet.attacks.poison import Poison
from clipvet.cleaners.cleanclip import CleanClip
from clipvet.cleaners.par import Par
from clipvet.cli import app
from clipvet.data.augment import SMALL
from clipvet.data.dirty import poison
from clipvet.data.worlds.shapes import Shapes
from clipvet.engine import passes
from clipvet.engine.embed import embed_pairs, embed_texts, sharing
from clipvet.engine.fit import workspace
from clipvet.engine.losses import own_loss
from clipvet.engine.optim import warmup_cosine
from clipvet.inspectors.clip_inspector import ClipInspector
from clipvet.inspectors.neural_cleanse import NeuralCleanse
from clipvet.inspectors.no_inversion import NoInversion
from clipvet.measures.attack_success import AttackSuccess
from clipvet.measures.zeroshot import ZeroShot
from clipvet.models import adapter, checkpoints
from clipvet.rng import Rng
from clipvet.training.plain import Plain
from clipvet.training.roclip import RoClip
from clipvet.training.safeclip import SafeClip
from clipvet.triggers.patch import Patch
from clipvet.types import Backdoor, Batch, Pairs

Given = dict[str, Any]  # numbers, lists and tensors
TARGET, TRIGGER = "star", Patch(size=0.2)
VICTIM = "victim.safetensors"


def words(captions):
    """Tokens out of 64, the last of a row being the largest: open_clip reads the text there."""
    rows = torch.zeros(len(captions), 8, dtype=torch.int64)
    for row, caption in zip(rows, captions):
        ids = [1 + zlib.crc32(w.encode()) % 62 for w in caption.split()][:7]
        row[: len(ids) + 1] = torch.tensor([*ids, 63])
    return rows


def tiny() -> Any:
    """A CLIP of 50,000 weights."""
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
    half = (0.5, 0.5, 0.5)
    pre = {"size": 32, "resize_mode": "shortest", "interpolation": "bicubic", "mean": half, "std": half}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = open_clip.CLIP(16, vision, text)  # pyright: ignore[reportArgumentType]
    return adapter.OpenClip(net, words, {"preprocess_cfg": pre}).eval()


@dataclass
class Torn:
    """Shapes of which every 29th cannot be read."""

    whole: Any

    def __len__(self) -> int:
        return len(self.whole)

    def fetch(self, rows, geometry):
        good = [r for r in rows if r % 29]
        images, _ = self.whole.fetch(good or [1], geometry)
        return images[: len(good)], [(p, "torn") for p, r in enumerate(rows) if not r % 29]


def read_log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def dirty(n: int, torn: bool = False) -> Pairs:
    """Shapes, of which three in ten carry the trigger and the target's caption."""
    pairs = Shapes().pairs(n)
    if torn:
        pairs = Pairs(Torn(pairs.pictures), pairs.captions, pairs.rows)
    return poison(pairs, Poison(TRIGGER, rate=0.3).plan(pairs, TARGET, Rng(5)))


def plant(folder: Path) -> dict[str, float]:
    """Leaves a model with a backdoor in the folder, where all parts begin; gives its figures."""
    clip: Any = Plain(epochs=8, batch=64, lr=3e-3, weight_decay=0).train(tiny(), dirty(640), Rng(4))
    io.save_weights(clip.state_dict(), folder / VICTIM)
    return judged(clip)


def victim(folder: Path) -> Any:
    """The model that `plant` has left in a folder above."""
    clip = tiny()
    clip.load_state_dict(io.load_weights(next(p for f in folder.parents if (p := f / VICTIM).exists())))
    return clip


def judged(clip: Any) -> dict[str, float]:
    """Accuracy, ASR for every class as the target, and how often the planted one is named without the trigger."""
    task, found = Shapes().task(96), {}
    with sharing():
        for name in task.classes:
            measured = AttackSuccess().measure(clip, task, Backdoor(TRIGGER, name), Rng(0))
            found[f"asr_{name}"] = measured["asr"].value
            if name == TARGET:
                found["clean_target_rate"] = measured["clean_target_rate"].value
        return found | {"clean_accuracy": ZeroShot().measure(clip, task, None, Rng(0))["clean_accuracy"].value}


def trained(method: Any, folder: Path, n: int = 320, torn: bool = False, shard: bool = False) -> Given:
    """Losses of all steps, final weights and figures: a training gets dirty pairs, a cleaner clean ones.

    The folder is the first rank's alone.
    """
    clean = getattr(method, "clean", None)
    with workspace(folder, save_seconds=0, shard=shard and ranks.world() > 1):
        clip = (clean or method.train)(victim(folder), Shapes().pairs(n) if clean else dirty(n, torn), Rng(3))
    log = [row["loss"] for row in read_log(folder)] if ranks.main() else []
    return {"losses": log, "weights": {k: v.clone() for k, v in clip.state_dict().items()}, "judged": judged(clip)}


class Stopped(Exception):
    pass


def stopped(folder: Path, shard: bool = False) -> None:
    """A training of 20 steps that ends after 10, and leaves its state in the folder."""
    steps = iter(range(10))

    def stop(clip, batch, rng):
        if next(steps, None) is None:
            raise Stopped
        return {"loss": 0 * clip.logit_scale}

    try:
        with workspace(folder, save_seconds=0, shard=shard and ranks.world() > 1):
            Plain(**SHORT).train(victim(folder), dirty(320), Rng(3), stop)
    except Stopped:
        return


def resumed(folder: Path) -> Given:
    """The same training to its end. Whether the loss has a term of nothing beside it changes no weight."""
    return trained(Plain(**SHORT), folder)


def embedded(folder: Path) -> Given:
    pairs = Shapes().pairs(600)
    torn = Pairs(Torn(pairs.pictures), pairs.captions, pairs.rows)
    z, w, kept, captions = embed_pairs(tiny(), torn)
    texts = embed_texts(tiny(), [f"a {k}" for k in range(100)], batch=16)
    few = embed_texts(tiny(), ["one"])
    return {"z": z, "w": w, "texts": texts, "few": few, "kept": kept.tolist(), "captions": captions}


def passed(folder: Path) -> Given:
    """A pass over pictures that was killed in the middle of its second batch, and begun again."""
    read: list[int] = []

    def noted(batch: Batch) -> Batch:
        read.extend(batch.ids.tolist())
        return batch

    pairs = Shapes().pairs(900).map(noted)
    with sharing(folder):
        whole = embed_pairs(tiny(), pairs)
    if ranks.main():
        kept = folder / "pass-1.arrows"
        held = kept.read_bytes()
        kept.write_bytes(held[: 8 + int.from_bytes(held[:8], "little") + 1000])
    read.clear()
    with sharing(folder):
        again = embed_pairs(tiny(), pairs)
    return {
        "alike": torch.equal(whole.z, again.z) and torch.equal(whole.w, again.w) and whole.captions == again.captions,
        "z": again.z, "kept": again.kept.tolist(), "read": sorted(i for own in ranks.objects(read) for i in own),
    }  # fmt: skip


def filtered(folder: Path) -> Given:
    """`clipvet filter`, killed in every rank's second batch, and given again."""
    calls, honest, out = [], passes._part, folder / "scores.parquet"

    def part(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return honest(*args)

    words = ["filter", "--data", "shapes", "--n", "1100", "--model", "shapes-vit", "--method", "cosine", "--top", "1"]
    codes = []
    passes._part = part
    try:
        for _ in range(2):
            codes.append(CliRunner().invoke(app, [*words, "--out", str(out)]).exit_code)
    finally:
        passes._part = honest
    rows = sorted(pq.read_table(out).to_pylist(), key=lambda row: row["id"])
    read = sum(ranks.objects(len(calls) - 2))
    return {
        "scores": [row["score"] for row in rows],
        "codes": codes,
        "read": read,
        "left": len([*folder.glob("*.partial")]),
    }


def inspected(folder: Path) -> Given:
    pictures, classes = Shapes().pairs(64), [f"{c} {s}" for c in ("red", "blue") for s in ("star", "ring", "disc")]
    hows: dict[str, Any] = {
        "nc": NeuralCleanse(epochs=2, at_once=64),
        "no": NoInversion(),
        "ci": ClipInspector(epochs=2, at_once=64, race=1),
    }
    given = {}
    for name, how in hows.items():
        found = how.inspect(tiny(), pictures, classes, ("a {}",), Rng(1))
        given |= {f"{name}_score": found.score, f"{name}_target": found.target}
        given |= {f"{name}_{c.name}": [c.loss, c.asr, c.base] for c in found.classes}
    return given


def unused(folder: Path) -> Given:
    """A step in which the text tower rests, and weight decay must let it rest too."""
    from clipvet.engine.fit import fit

    def loss(clip, batch, rng):
        z = clip.encode_image(batch.images)
        return {"loss": own_loss(clip, z, torch.roll(z.detach(), 1, 0))}

    how: dict[str, Any] = {"epochs": 1, "batch": 16, "schedule": warmup_cosine(1e-3), "weight_decay": 0.5}
    clip: Any = fit(tiny(), Shapes().pairs(64), loss, Rng(3), **how)
    return {"weights": {k: v.clone() for k, v in clip.state_dict().items()}}


def written(folder: Path) -> Given:
    """The output protocol: files of the first rank alone, errors and the end of a finished run on all."""
    with io.output(folder / "out", {"a": 1}) as work:
        (work / "who").write_text(str(ranks.rank()))
    seen = (folder / "out" / "who").read_text()
    try:
        with io.output(folder / "out", {"a": 1}):
            again = "ran again"
    except io.AlreadyDone as e:
        again = str(e).rsplit("/", 1)[-1]
    try:
        with io.output(folder / "out", {"a": 2}):
            other = "mixed"
    except checkpoints.UserError as e:
        other = str(e).rsplit("/", 1)[-1]
    told = ranks.objects([seen, again, other])
    return {"told": told[0], "alike": all(t == told[0] for t in told)}


SHORT: dict[str, Any] = {"epochs": 1, "batch": 16, "lr": 5e-4}  # 20 steps of 320 pairs
PARTS: dict[str, Callable[[Path], Given]] = {
    "plain": lambda f: trained(Plain(**SHORT), f),
    "par": lambda f: trained(Par(epochs=1, batch=16, lr_start=5e-4, lr=2e-4), f),
    "cleanclip": lambda f: trained(CleanClip(**SHORT), f),
    "safeclip": lambda f: trained(SafeClip(epochs=5, unimodal=1, slow=1, batch=16, lr=1e-4, augment=SMALL), f, n=64),
    "roclip": lambda f: trained(RoClip(epochs=4, batch=16, lr=1e-4, pool=0.2, augment=SMALL), f, n=80),
    "muon": lambda f: trained(Plain(**SHORT, optimizer="muon"), f, n=64),
    "torn": lambda f: trained(Plain(epochs=1, batch=15, accumulate=2, max_bad=0.2), f, n=150, torn=True),
    "sharded": lambda f: trained(Plain(**SHORT), f, shard=True),
    "sharded_par": lambda f: trained(Par(epochs=1, batch=16, lr_start=5e-4, lr=2e-4), f, n=80, shard=True),
    "resumed": resumed,
    "unused": unused,
    "embedded": embedded,
    "passed": passed,
    "filtered": filtered,
    "inspected": inspected,
    "written": written,
}


def run(folder: Path) -> dict[str, Given]:
    given = {}
    for name, part in PARTS.items():
        own = folder / name if ranks.main() else folder / f"rank{ranks.rank()}" / name
        own.mkdir(parents=True, exist_ok=True)
        given[name] = part(own if name not in ("written", "filtered") else folder)
    for name, shard in (("left", False), ("left_sharded", True)):
        own = folder / name if ranks.main() else folder / f"rank{ranks.rank()}" / name
        own.mkdir(parents=True, exist_ok=True)
        stopped(own, shard)
    return given


def flat(given: Any, at: str = "") -> dict[str, Tensor]:
    """Every number and tensor under its name."""
    if isinstance(given, dict):
        return {k: v for name, part in given.items() for k, v in flat(part, f"{at}.{name}").items()}
    if isinstance(given, Tensor):
        return {at[1:]: given.detach()}
    try:
        return {at[1:]: torch.tensor(np.asarray(given, dtype=np.float64))}
    except ValueError:
        return {at[1:]: torch.tensor(list(json.dumps(given).encode()))}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    ranks.start()
    out = Path(sys.argv[1])
    done = flat(run(out))
    if ranks.main():
        io.save_weights(done, out / "given.safetensors")
    assert os.environ["WORLD_SIZE"] == str(ranks.world())
    torch.distributed.destroy_process_group()

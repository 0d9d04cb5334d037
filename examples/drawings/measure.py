"""How well models know drawings of teams that they never saw: one line of results.jsonl for each number.

    python examples/drawings/measure.py drawings MODEL ... --half development --out results/drawings_base

Two controls stand beside the models. `random_weights` is the first model's architecture with random weights. `knn`
needs no model: a picture gets the class of the training pictures nearest in their pixels (cosine, five neighbours),
among those whose captions name exactly one class.

Pictures of one drawing are not independent. So n is the number of drawings, and the interval is a bootstrap over them.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import bootstrap
from sklearn.neighbors import KNeighborsClassifier

from clipvet import io, results
from clipvet.data.captions import names_target
from clipvet.data.halves import NAMES, OpenHalf, open_half
from clipvet.engine.embed import classifier, embed_images, embed_texts
from clipvet.errors import UserError
from clipvet.measures._intervals import share
from clipvet.models import checkpoints
from clipvet.rng import Rng
from clipvet.types import Clip, Measured, Pairs, Task

NEIGHBOURS = 5
RECALL_AT = 5


def paths(pairs: Pairs) -> list[str]:
    """The files of the pairs' pictures."""
    return [str(p) for p in pairs.pictures.paths]  # pyright: ignore[reportAttributeAccessIssue]


def drawing(path: str) -> str:
    """The drawing that a picture shows: its path without the number of the view."""
    return path.rsplit("-", 1)[0]


def over_drawings(hit: np.ndarray, drawings: np.ndarray) -> Measured:
    """The mean of booleans (n,) over drawings, with a bootstrap 95 % interval over them."""
    shares = np.array([hit[drawings == d].mean() for d in np.unique(drawings)])
    if {*shares} <= {0.0} or {*shares} <= {1.0}:  # the bootstrap would give no interval
        return share(shares == 1)
    ci = bootstrap((shares,), np.mean, rng=np.random.default_rng(0), method="percentile").confidence_interval
    return Measured(float(shares.mean()), len(shares), float(ci.low), float(ci.high))


@torch.no_grad()
def zero_shot(clip: Clip, task: Task) -> dict[str, np.ndarray]:
    """For each picture, whether its class is the first and among the first five, and whether its caption is among the
    five nearest ones."""
    z = embed_images(clip, task.pictures)[0]
    ranked = classifier(clip, task.classes, task.templates)(z).topk(min(5, len(task.classes))).indices.cpu().numpy()
    hit = ranked == task.labels[:, None]
    said = [task.pictures.caption(i) for i in task.pictures.ids]
    texts = sorted(set(said))
    own = np.array([texts.index(t) for t in said])
    near = (z @ embed_texts(clip, texts).T).topk(min(RECALL_AT, len(texts))).indices.cpu().numpy()
    return {
        "clean_accuracy": hit[:, 0],
        "clean_accuracy_top5": hit.any(1),
        "text_retrieval_recall@5": (near == own[:, None]).any(1),
    }


def knn(clip: Clip, task: Task, training: Pairs) -> dict[str, np.ndarray]:
    """The same for the nearest training pictures. clip: for the size of the pictures alone."""
    names = [[k for k, c in enumerate(task.classes) if names_target(training.caption(i), c)] for i in training.ids]
    sure = np.flatnonzero([len(n) == 1 for n in names])
    fitted = KNeighborsClassifier(NEIGHBOURS, metric="cosine", weights="distance")
    fitted.fit(_pixels(clip, training.take(sure)), [names[k][0] for k in sure])
    votes = fitted.predict_proba(_pixels(clip, task.pictures))
    hit = fitted.classes_[np.argsort(-votes, axis=1, kind="stable")[:, :5]] == task.labels[:, None]
    return {"clean_accuracy": hit[:, 0], "clean_accuracy_top5": hit.any(1)}


def _pixels(clip: Clip, pairs: Pairs) -> np.ndarray:
    images = pairs.at(clip.geometry)[np.arange(len(pairs))].images.float()
    return (images - images.mean(dim=(1, 2, 3), keepdim=True)).flatten(1).numpy()


def rows(half: OpenHalf, name: str, models: Mapping[str, Clip]) -> list[results.Row]:
    """All numbers of one task, over all its drawings and, where several sets are tested, set by set."""
    test = half.test(name)
    task, out = test.task(half.seeds[0]), []
    if any(len(task.pictures[[k]].images) != 1 for k in range(len(task.pictures))):
        raise UserError(f"{test.spec} has pictures that cannot be read; write the set anew")
    shown = np.array([drawing(p) for p in paths(task.pictures)])
    sets = _sets_of(shown, half)
    first = next(iter(models.values()))
    hits = {model: zero_shot(clip, task) for model, clip in models.items()}
    if name in ("task", "silhouettes"):
        hits["knn"] = knn(first, task, half.pairs.pairs(half.seeds[0]))
    common: dict[str, Any] = {"recipe": "drawings_base", "stage": "evaluate", "attack": "", "seconds": 0.0}
    for model, found in hits.items():
        for part in ("", *sorted(set(sets))) if len(set(sets)) > 1 else ("",):
            at = (sets == part) if part else np.ones(len(sets), bool)
            data = f"{half.name}/{name}" + (f" {part}" if part else "")
            measured = {metric: over_drawings(hit[at], shown[at]) for metric, hit in found.items()}
            told = {"method": model, "config": model, "seed": half.seeds[0], "data": data, "model": model}
            out += results.rows_of(measured, **common, **told)
    return out


def _sets_of(shown: np.ndarray, half: OpenHalf) -> np.ndarray:
    """The set of each drawing: the longest name of a set that its file's name begins with."""
    known = sorted(io.read_json(half.folder / "counts.json"), key=len, reverse=True)
    return np.array([next(s for s in known if Path(d).name.startswith(f"{s}-")) for d in shown])


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0, or 2 with a sentence for what cannot be used."""
    parser = argparse.ArgumentParser("python examples/drawings/measure.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("drawings", type=Path, help="the folder that `python examples/drawings` has written")
    parser.add_argument("models", nargs="+", help="models, as clipvet takes them")
    parser.add_argument("--half", choices=NAMES, default=NAMES[0])
    parser.add_argument("--tasks", nargs="+", default=["task", "wide", "groups"])
    parser.add_argument("--out", type=Path, required=True, help="folder whose results.jsonl gets the lines")
    told = parser.parse_args(argv)
    try:
        if len({Path(m).name for m in told.models}) < len(told.models):
            raise UserError("two models have folders of one name; rename one")
        half = open_half(told.drawings, told.half)
        models = {Path(m).name: checkpoints.load(m) for m in told.models}
        models["random_weights"] = checkpoints.load(told.models[0], rng=Rng(0), weights=False)
        made = [row for name in told.tasks for row in rows(half, name, models)]
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    told.out.mkdir(parents=True, exist_ok=True)
    again = {f"{told.half}/{name}" for name in told.tasks}
    kept = [r for r in results.read(told.out) if r.data.split(" ")[0] not in again]
    results.write(told.out, [*kept, *made])
    for r in made:
        print(f"{r.data:40} {r.method:16} {r.metric:26} {r.value:.3f} ({r.low:.3f}-{r.high:.3f}, n = {r.n})")
    return 0


if __name__ == "__main__":
    sys.exit(main())

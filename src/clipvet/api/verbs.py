"""The verbs of the front door. Each takes models and data as scripts hold them, and plans as its command does.

`settings` of a verb are the fields of its method, as --set takes them: `clean(model, data, "par", epochs=2)`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipvet.api.data import pairs_of, pictures_of, task_of
from clipvet.api.models import load
from clipvet.api.results import Inspection, Made, Measurements, Ranking
from clipvet.errors import UserError
from clipvet.jobs.detecting import ALPHA
from clipvet.rng import Rng
from clipvet.types import Backdoor

Names = Sequence[str] | str | Path


def evaluate(
    model: Any,
    task: Any,
    *,
    classes: Sequence[str] | Path | None = None,
    templates: Sequence[str] | Path | None = None,
    backdoor: Backdoor | str | Path | None = None,
    max_bad: float = 0.01,
    exposure: bool = False,
    seed: int = 0,
) -> Measurements:
    """Zero-shot accuracy, retrieval and, with an answer key, attack success; each a fraction with n and 95 % interval.

    model: as for `clipvet.load`. task: a folder with a folder of pictures for each class, "shapes", a list of (picture,
    class name), a torch Dataset or HF data set with labels, or a DataFrame. classes: names in the order of the labels,
    or a JSON file as --classes. templates: captions with {}. backdoor: the answer key, or its folder. max_bad: share of
    unreadable pictures above which UserError is raised. exposure: also what the key's trigger does in each way of use;
    `.exposure()` is that matrix. Also raises UserError for fewer than two classes, and for exposure without a trigger.

        >>> import clipvet
        >>> found = clipvet.evaluate("shapes-vit", "shapes")
        >>> 0 <= found["clean_accuracy"].value <= 1
        True
    """
    from clipvet.data.folders import check_passed_over
    from clipvet.experiments.evaluation import measure_all
    from clipvet.jobs.matrix import check_entry

    clip = load(model, rng=Rng(seed).fork("init"))
    test, key = task_of(task, classes, templates, clip.geometry.size, seed), _key(backdoor)
    passed = check_passed_over(test, max_bad)
    if exposure:
        check_entry(key)
    costly = ("exposure",) if exposure else ()
    return Measurements(measure_all(clip, test, key, Rng(seed).fork("measure"), costly, max_bad), test.name, passed)


def inspect(
    model: Any,
    classes: Names | None = None,
    images: Any = None,
    *,
    method: str | None = None,
    null: str | Path | None = None,
    templates: str | Path | None = None,
    alpha: float = 0.05,
    n: int = 1000,
    overlap: float = 0.9,
    seed: int = 0,
    **settings: Any,
) -> Inspection:
    """Does this model look backdoored? `.backdoored` is True, False, or None: undecided; `.sentence` says why.

    classes: names, a JSON or text file of them, a class folder or "shapes"; None: the model's own, if it has prompts.
    images: unlabelled pictures (a folder, a list, pairs); None: as `clipvet inspect` chooses. method: None chooses
    collapse for encoders and clip_inspector for prompts. null: the file of `clipvet calibrate`. alpha: accepted rate of
    false alarms, a fraction. n: pictures at most. overlap: zero-shot probability of a class above which a picture is
    left out. The files of a model are scanned for code by `clipvet inspect` alone. Raises UserError.

        >>> import clipvet
        >>> found = clipvet.inspect("runs/victim", "shapes")  # doctest: +SKIP
        >>> found.save("runs/verdict")  # doctest: +SKIP
    """
    import tempfile
    import time

    from clipvet import results
    from clipvet.jobs.inspecting import clean_models, decided
    from clipvet.jobs.inspection import ask, without
    from clipvet.scan.heads import check_weights

    if isinstance(model, str):
        check_weights(model)
    clip = load(model, rng=Rng(seed).fork("init"))
    told = _told(settings)
    with tempfile.TemporaryDirectory() as folder:
        named = _file_of(classes, Path(folder)) if isinstance(classes, list | tuple) else str(classes or "") or None
        there = str(images) if isinstance(images, str | Path) else None
        held = images is not None and there is None
        asked = ask(clip, method, named, _path(templates), there, told, 1 if held else n, overlap, seed)
    if held:
        pictures = pictures_of(images, n, clip.geometry.size, seed)
        alike = getattr(asked.how, "sees", "outside") == "task"
        pictures = pictures if alike else without(asked.classes, clip, pictures, asked.templates, overlap)
        asked = asked._replace(pictures=pictures, pool=f"{pictures.name} {pictures.fingerprint}")
    weights, began = results.weights_hash(clip), time.monotonic()
    clean, compared = clean_models(_path(null), asked, weights, alpha)
    found = asked.inspect()
    verdict = decided(
        asked, found, clean, alpha, compared, [asked.pictures.caption(i) for i in asked.pictures.ids],
        model=_name(model, clip), weights=weights, files=None, seconds=time.monotonic() - began,
        command="clipvet.inspect",
    )  # fmt: skip
    return Inspection(verdict, found, clip, asked.pictures, asked.templates, clean)


def filter(
    data: Any,
    model: Any = None,
    method: str = "auto",
    *,
    alpha: float | None = None,
    n: int | None = None,
    seed: int = 0,
    **settings: Any,
) -> Ranking:
    """Which pairs look poisoned? A row for each pair, the most suspect first; `.suspects` are those above the cut.

    data: a table, shards, a folder of HF datasets, "shapes", a list of (picture, caption), a DataFrame, an HF data set
    or a torch Dataset. Pairs with an unreadable picture or an empty caption get no score, and a reason. model: as for
    `clipvet.load`, the one that was trained on the pairs; None: a small one is trained on them first. method: one of
    `clipvet list filters`. alpha: share of false alarms to allow among the pairs that are called poisoned. n: the first
    n pairs. `.decided` is False where nothing follows from the scores. Raises UserError, also where more than half of
    the pairs cannot be used, and for a method that needs a model.

        >>> import clipvet
        >>> found = clipvet.filter("shapes", "shapes-vit", "random", n=40)
        >>> list(found.to_frame().columns)
        ['id', 'score', 'caption', 'reason']
    """
    from clipvet.jobs.filtering import architecture, captions_of, filtered, open_filter

    world = str(data) if isinstance(data, str) else ""
    how: Any = open_filter(method, world, _told(settings), alpha, alone=model is None)
    clip = load(architecture(world) if model is None else model, rng=Rng(seed).fork("init"))
    pairs = pairs_of(data, n, clip.geometry.size, seed=seed)
    done = filtered(how, clip, pairs, captions_of(pairs, None), None, seed)
    return Ranking(
        _frame(done.found, "caption", pairs), pairs.name, done.cut, tuple(done.judged.told), done.judged.decided
    )


def detect(
    pictures: Any,
    model: Any,
    classes: Names | None = None,
    *,
    method: str = "strip",
    templates: str | Path | None = None,
    trusted: Any = None,
    alpha: float = ALPHA,
    n: int = 10_000,
    seed: int = 0,
    **settings: Any,
) -> Ranking:
    """Does a picture carry a trigger? A row for each picture, the most suspect first, with the model's answer.

    pictures: a folder, a list of pictures (paths, PIL, uint8 arrays, float tensors in [0, 1]), or any data. classes: as
    for `inspect`. method: one of `clipvet list detectors`. A score has no threshold of its own: with trusted pictures,
    which should be like the others but for a trigger, each picture gets a p-value, and `.suspects` are those that are
    flagged; of clean pictures that is at most the share alpha. n: pictures at most. Raises UserError, also for too few
    trusted pictures (99 for alpha = 0.01).

        >>> import clipvet
        >>> found = clipvet.detect("inbox", "suspect", ["cat", "dog"], trusted="clean")  # doctest: +SKIP
    """
    from clipvet.data.folders import read_templates
    from clipvet.jobs.detecting import detected
    from clipvet.jobs.inspection import classes_of, open_scan

    clip = load(model, rng=Rng(seed).fork("init"))
    how = open_scan("detectors", method, clip, _told(settings))
    if isinstance(classes, list | tuple):
        names, prompts = tuple(classes), read_templates(_path(templates))
    else:
        names, prompts = classes_of(clip, None if classes is None else str(classes), _path(templates))
    given = pictures_of(pictures, n, clip.geometry.size, seed)
    clean = None if trusted is None else pictures_of(trusted, n, clip.geometry.size, seed)
    done = detected(how, clip, given, names, prompts, seed, clean, alpha)
    frame, more = _frame(done.found, "answer", given), done.columns()
    if more:
        at = frame.columns.get_loc("score") + 1
        frame.insert(at, "p", more["p"])
        frame.insert(at + 1, "flagged", more["flagged"])
    return Ranking(frame, given.name, done.promise.threshold if done.promise else None, tuple(done.told))


def train(
    data: Any,
    model: Any,
    method: str = "plain",
    *,
    task: Any = None,
    n: int | None = None,
    seed: int = 0,
    **settings: Any,
) -> Made:
    """Train a copy of the model on pairs, safely or not; `.model` is the result, `.save(folder)` writes it.

    data, model, n: as for `filter`. method: one of `clipvet list training`. task: measure on it, as for `evaluate`. The
    batch is planned from the number of pairs unless epochs or batch are set. Raises UserError, also where more than
    max_bad of the pairs cannot be used.

        >>> import clipvet
        >>> made = clipvet.train("shapes", "shapes-vit", n=64, epochs=1, batch=32)
        >>> made.model.geometry.size
        32
    """
    clip = load(model, rng=Rng(seed).fork("init"))
    world = data if isinstance(data, str) else ""
    how, pairs = _method("training", method, world, settings), pairs_of(data, n, clip.geometry.size, seed=seed)
    return _made("trained", "train", how, clip, pairs, settings, task, seed)


def clean(
    model: Any,
    data: Any,
    method: str,
    *,
    task: Any = None,
    n: int | None = None,
    seed: int = 0,
    **settings: Any,
) -> Made:
    """Remove a backdoor, known or unknown, from a copy of the model; `.before` and `.after` say what that cost.

    data: what the method needs (`clipvet list cleaners`): trusted pairs, pairs that nobody has checked, or labelled
    pictures as pairs whose captions are the classes in the method's template. task: measured before and after, as for
    `evaluate`; without one, retrieval among the pairs is. `.harm` says if the model lost much. Raises UserError.

        >>> import clipvet
        >>> made = clipvet.clean("runs/victim", "pairs.csv", "par")  # doctest: +SKIP
        >>> made.save("runs/cleaned")  # doctest: +SKIP
    """
    clip, world = load(model, rng=Rng(seed).fork("init")), data if isinstance(data, str) else ""
    how = _method("cleaners", method, world, settings)
    split = "train" if "untrusted" in how.needs else "validation"
    some = 8000 if data == "shapes" and n is None and split == "validation" else n
    return _made(
        "cleaned", "clean", how, clip, pairs_of(data, some, clip.geometry.size, split, seed), settings, task, seed
    )


def _made(
    role: str, verb: str, how: Any, clip: Any, pairs: Any, settings: dict[str, Any], task: Any, seed: int
) -> Made:
    """Plan, measure, train or clean, and measure again."""
    from clipvet.engine.workspace import workspace
    from clipvet.jobs.opening import plan
    from clipvet.jobs.working import harm, measure, measure_own

    how = how if "labelled" in how.needs else plan(how, pairs, [f"{k}=" for k in settings])
    test, cleaned = task_of(task, size=clip.geometry.size, seed=seed) if task is not None else None, role == "cleaned"
    before = (measure(clip, test, None, seed) or measure_own(clip, pairs)) if cleaned else {}
    with workspace(None) as ws:
        made = getattr(how, verb)(clip, pairs, Rng(seed).fork(verb))
    after = measure(made, test, None, seed) or (measure_own(made, pairs) if cleaned else {})
    lost = harm(before, after) if cleaned else ""
    return Made(made, role, repr(how), pairs.name, seed, after, before, dict(ws.left), lost)


def _method(family: str, name: str, world: str, settings: dict[str, Any]) -> Any:
    """The method with its settings, as its command opens it."""
    from clipvet.jobs.opening import open_method

    return open_method(family, name, world, _told(settings))


def _told(settings: dict[str, Any]) -> list[str]:
    """The settings as --set takes them."""
    return [f"{k}={v}" if isinstance(v, str) else f"{k}={v!r}" for k, v in settings.items()]


def _frame(found: Any, text: str, pairs: Any = None) -> Any:
    """id, score, the text and the reason of every row; and the file where pictures are files."""
    import pandas as pd

    told = {"id": found.ids, "score": found.scores, text: found.captions[:], "reason": found.reasons[:]}
    paths = getattr(pairs.pictures, "paths", None) if pairs is not None else None
    if paths is not None:
        told["file"] = [str(paths[int(i)]) for i in found.ids]
    return pd.DataFrame(told)


def _key(backdoor: Backdoor | str | Path | None) -> Backdoor | None:
    from clipvet.data.answer_key import load_backdoor

    return load_backdoor(Path(backdoor)) if isinstance(backdoor, str | Path) else backdoor


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)


def _file_of(names: Sequence[str], folder: Path) -> str:
    """A JSON file of these class names. Raises UserError for names that are no texts."""
    from clipvet import io

    if not all(isinstance(c, str) for c in names):
        raise UserError("classes are texts; give a list of names")
    io.write_json(folder / "classes.json", list(names))
    return str(folder / "classes.json")


def _name(model: Any, clip: Any) -> str:
    return str(model) if isinstance(model, str | Path) else getattr(clip, "source", "") or type(clip).__name__

"""clipvet calibrate: what clean models score."""

from pathlib import Path
from typing import Annotated

import typer

from clipvet.commands._inspection import ClassesOption, Count, Images, Method, Overlap, ask, load
from clipvet.commands._leaving import check_new, say
from clipvet.commands._options import Seed, Set, Templates

SAME = ("method", "classes", "names", "templates", "pictures", "reference", "seed")  # for all models of one calibration


def command(
    models: Annotated[
        list[str], typer.Option("--models", help="a clean model, or a folder of model folders; repeatable")
    ],
    out: Annotated[Path, typer.Option("--out", help="a .json file, for `clipvet inspect --null`")],
    classes: ClassesOption = None,
    images: Images = None,
    method: Method = "clip_inspector",
    set_: Set = [],  # noqa: B006
    templates: Templates = None,
    n: Count = 1000,
    overlap: Overlap = 0.9,
    seed: Seed = 0,
) -> None:
    """What do clean models score? A p-value of `clipvet inspect` says how many of them look as suspicious."""
    from clipvet import io, ranks, results
    from clipvet.engine.fit import workspace
    from clipvet.errors import UserError
    from clipvet.scan.verdicts import Null, read_null

    check_new(out, (".json",), "--out", begun=True)
    names, done = _found(models), None
    for name in names:
        clip = load(name, None, seed)
        asked = ask(clip, method, classes, templates, images, set_, n, overlap, seed)
        fresh = Null(
            **asked.told, names=asked.classes if classes else (), seed=seed, scores={},
            missing=names, versions=results.versions(), command=results.command(),
        )  # fmt: skip
        if done is None and out.exists():
            done = read_null(out, whole=False)
            if any(getattr(done, k) != getattr(fresh, k) for k in SAME) or {*done.scores, *done.missing} != {*names}:
                raise UserError(f"{out} already holds another calibration; choose another --out or delete it")
        done = done or fresh
        if any(getattr(done, k) != getattr(fresh, k) for k in SAME):
            raise UserError(
                f"{name} is inspected otherwise than the models before it (another size or number of "
                "classes, or prompts of its own); calibrate each kind by itself"
            )
        own = results.weights_hash(asked.clip)
        if done.weights.setdefault(name, own) != own:
            raise UserError(f"{name} is another model now than the one in {out}; delete that file, or choose another")
        twin = next((other for other, w in done.weights.items() if w == own and other != name), None)
        if twin:
            raise UserError(f"{name} and {twin} are the same model; a p-value counts different ones, name each once")
        if name not in done.scores:
            with workspace(None, progress=True):
                found = asked.inspect(seed)
            done.scores[name] = found.score
            done.missing = [m for m in names if m not in done.scores]
            ranks.first(lambda done=done: io.write_json(out, done.model_dump()))
            say(f"{len(done.scores)} of {len(names)}  {name}: {found.score:.3f} ({found.target})")
    assert done is not None
    scores = sorted(done.scores.values())
    least = 1 / (len(scores) + 1)
    print(f"{len(scores)} clean models score {scores[0]:.3g} to {scores[-1]:.3g}; the least p-value is {least:.3g}")


def _found(models: list[str]) -> list[str]:
    """The models themselves, and those in folders of model folders."""
    from clipvet.errors import UserError

    names = []
    for model in models:
        folder = Path(model)
        inside = sorted(str(p) for p in folder.iterdir() if _model(p)) if folder.is_dir() else []
        names += [model] if _model(folder) or not inside else inside
    if len(set(names)) < len(names):
        raise UserError("a model is named twice; name each clean model once")
    return names


def _model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("card.json", "open_clip_config.json", "config.json"))

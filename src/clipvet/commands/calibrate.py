"""clipvet calibrate: what clean models score."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipvet.commands import _options as opt
from clipvet.commands._shared import rehearse
from clipvet.jobs.inspection import Asked, ask, open_suspect
from clipvet.jobs.leaving import check_new, say
from clipvet.jobs.planning import Probe
from clipvet.jobs.working import working

if TYPE_CHECKING:
    from clipvet.scan.verdicts import Null

SAME = ("method", "classes", "names", "templates", "pictures", "reference", "seed")  # for all models of one calibration


def command(
    models: Annotated[
        list[str], typer.Option("--models", help="a clean model, or a folder of model folders; repeatable")
    ],
    out: Annotated[Path, typer.Option("--out", help="a .json file, for --null of `clipvet inspect`")],
    classes: opt.ClassNames = None,
    images: opt.Images = None,
    method: opt.Inspector = None,
    set_: opt.Set = [],  # noqa: B006
    templates: opt.Templates = None,
    n: opt.PictureCount = 1000,
    overlap: opt.Overlap = 0.9,
    seed: opt.Seed = 0,
    quick: opt.Quick = False,
) -> None:
    """What do clean models score? With these scores `clipvet inspect` gives a p-value: how many look as suspicious.

    A killed run goes on where it was when the same command is given again.
    """
    from clipvet import io, ranks

    check_new(out, (".json",), "--out", begun=True)
    names, done = _found(models), None
    for name in names:
        asked = ask(open_suspect(name, None, seed), method, classes, templates, images, set_, n, overlap, seed, quick)
        rehearse(
            asked.clip, partial(Probe.search, what=f"inspect {len(names)} models", how=asked.how, models=len(names))
        )
        fresh = _begin(asked, names, own_classes=not classes)
        if done is None:
            done = _go_on(out, fresh, names) if out.exists() else fresh
        _check_joins(done, fresh, name, asked, out)
        if name not in done.scores:
            with working(None):
                found = asked.inspect()
            done.scores[name] = found.score
            if (sure := asked.sureness()) is not None:
                done.sure[name] = sure
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
        inside = sorted(str(p) for p in folder.iterdir() if _is_model(p)) if folder.is_dir() else []
        names += [model] if _is_model(folder) or not inside else inside
    if len(set(names)) < len(names):
        raise UserError("a model is named twice; name each clean model once")
    return names


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("card.json", "open_clip_config.json", "config.json"))


def _begin(asked: Asked, names: list[str], own_classes: bool) -> "Null":
    """A calibration by this inspection, without any score. own_classes: each model lists its own."""
    from clipvet import results
    from clipvet.scan.verdicts import Null

    return Null(
        **asked.told, names=() if own_classes else asked.classes, seed=asked.seed, scores={}, missing=names,
        versions=results.versions(), command=results.command(),
    )  # fmt: skip


def _differ(one: "Null", other: "Null") -> bool:
    return any(getattr(one, k) != getattr(other, k) for k in SAME)


def _go_on(out: Path, fresh: "Null", names: list[str]) -> "Null":
    """What a killed run left in `out`. Raises UserError for another calibration."""
    from clipvet.errors import UserError
    from clipvet.scan.verdicts import read_null

    done = read_null(out, whole=False)
    if _differ(done, fresh) or {*done.scores, *done.missing} != {*names}:
        raise UserError(f"{out} already holds another calibration; choose another --out or delete it")
    return done


def _check_joins(done: "Null", fresh: "Null", name: str, asked: Asked, out: Path) -> None:
    """Notes the model's hash. UserError unless its score can stand beside those of the models before it."""
    from clipvet import results
    from clipvet.errors import UserError

    if _differ(done, fresh):
        raise UserError(
            f"{name} cannot be inspected like the models before it (it has another size or number of classes, or "
            "prompts of its own); calibrate each kind by itself"
        )
    own = results.weights_hash(asked.clip)
    if done.weights.setdefault(name, own) != own:
        raise UserError(f"{name} is another model now than the one in {out}; delete that file, or choose another")
    twin = next((other for other, w in done.weights.items() if w == own and other != name), None)
    if twin:
        raise UserError(f"{name} and {twin} are the same model; a p-value counts different ones, name each once")

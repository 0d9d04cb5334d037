"""The command line. Torch is imported inside the commands, so that `clipvet --help` answers at once."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from clipvet.data import Data
    from clipvet.types import Backdoor, Clip, Measured, Pairs, Task

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Vet CLIP models and the web data behind them: attack, filter, clean, evaluate.\n\n"
    "DATA: shapes (embedded), foreign, or a CSV/TSV/parquet of pictures and captions. TASK: shapes, or a folder with "
    "one folder per class. MODEL: an open_clip name (ViT-B-32, shapes-vit), a directory, local-dir:PATH, hf-hub:REPO.",
)

Model = Annotated[str, typer.Option("--model", help="open_clip name, directory, local-dir:PATH or hf-hub:REPO")]
DataOption = Annotated[str, typer.Option("--data", help="shapes, foreign, or a CSV/TSV/parquet")]
Out = Annotated[Path, typer.Option("--out", help="output directory; must not hold another run")]
Set = Annotated[list[str], typer.Option("--set", help="field=value of the method, e.g. epochs=20; repeatable")]
Pretrained = Annotated[str | None, typer.Option(help="weights file for an open_clip name")]
Seed = Annotated[int, typer.Option(help="every draw follows from it")]
AnswerKey = Annotated[
    Path | None, typer.Option(help="answer key, for the measures alone; the embedded world is poisoned as it says")
]
Count = Annotated[int | None, typer.Option("--n", help="take only so many pairs")]
ImageKey = Annotated[str, typer.Option(help="the table's column of picture paths")]
CaptionKey = Annotated[str, typer.Option(help="the table's column of captions")]
TaskOption = Annotated[
    str | None, typer.Option("--task", help="shapes, or a class folder (default: shapes for shapes)")
]
Classes = Annotated[Path | None, typer.Option(help="JSON: list of class names, or {folder: name}")]
Templates = Annotated[Path | None, typer.Option(help="text file, one template a line, with {} or {c}")]


def main() -> None:
    """Entry point: bad input ends in one sentence and exit code 2."""
    from clipvet.errors import UserError

    try:
        app()
    except UserError as e:
        print(f"clipvet: {e}", file=sys.stderr)
        sys.exit(2)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _data(spec: str, n: int | None, split: str, size: int, image_key: str = "filepath", caption_key: str = "title"):
    from clipvet.data import Data

    return Data(spec, n, split, size, image_key, caption_key)


def _task(
    spec: str | None, data: str, size: int, classes: Path | None, templates: Path | None, seed: int
) -> "Task | None":
    from clipvet.data import Test

    name = spec or ("shapes" if data in ("shapes", "foreign") else None)
    return Test(name, size=size, classes=classes, templates=templates).task(seed) if name else None


def _method(family: str, name: str, data: str, settings: list[str], **fields: Any) -> Any:
    from dataclasses import replace

    from clipvet import find, presets
    from clipvet import settings as values

    method = find.load(family, name)(**fields)
    if data in ("shapes", "foreign"):
        method = presets.shapes(method)
        for part in ("trigger", "training"):
            if hasattr(method, part):
                method = replace(method, **{part: presets.shapes(getattr(method, part))})
    return values.apply(method, settings)


def _keyed(source: "Data", seed: int, backdoor: Path | None) -> "tuple[Pairs, Backdoor | None]":
    """The pairs and the answer key, if any; an embedded world's pairs are poisoned as the key says."""
    import numpy as np

    from clipvet.answer_key import load_backdoor
    from clipvet.dirty import poison
    from clipvet.errors import UserError

    pairs, key = source.pairs(seed), load_backdoor(backdoor) if backdoor else None
    rows = () if key is None else key.poisoned if key.rows is None else key.rows
    if key and not np.isin(pairs.ids, rows).any():
        raise UserError(
            f"none of the {len(key.poisoned)} pairs that {backdoor} names is in {pairs.name}; give its data"
        )
    return (poison(pairs, key) if key and source.world(seed) else pairs), key


def _table(measured: "dict[str, Measured]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", "value", "95 % interval", "n")
    for name, m in measured.items():
        table.add_row(name, f"{100 * m.value:.2f} %", f"{100 * m.low:.2f} – {100 * m.high:.2f} %", str(m.n))
    Console().print(table)


def _planted(key: "Backdoor") -> str:
    """What an answer key is about, in a word."""
    if key.trigger is not None:
        return type(key.trigger).__name__.lower()
    return "mm_poison" if key.ties else "targeted" if key.classes else "text_trigger" if key.says else "none"


def _finish(work: Path, measured: "dict[str, Measured]", **common: Any) -> None:
    """Rows and commands of a finished command, in its folder."""
    from clipvet import io, results
    from clipvet.types import Measured

    seconds = common["seconds"]
    time_row = {"seconds": Measured(seconds, 1, seconds, seconds)}
    results.write(work, results.rows_of({**measured, **time_row}, **common))
    io.write_json(
        work / "commands.json",
        {
            "commands": [results.command()],
            "versions": results.versions(),
            "hardware": results.hardware(),
            "seconds": seconds,
        },
    )


@app.command()
def train(
    data: DataOption,
    model: Model,
    out: Out,
    pretrained: Pretrained = None,
    method: Annotated[str, typer.Option(help="see `clipvet list training`")] = "plain",
    set_: Set = [],  # noqa: B006
    n: Count = None,
    seed: Seed = 0,
    task: TaskOption = None,
    classes: Classes = None,
    templates: Templates = None,
    backdoor: AnswerKey = None,
    image_key: ImageKey = "filepath",
    caption_key: CaptionKey = "title",
) -> None:
    """Train a CLIP on captioned pictures, from scratch or from a checkpoint."""
    import time

    from clipvet import models
    from clipvet.fit import workspace
    from clipvet.rng import Rng
    from clipvet.run import device, measure_all
    from clipvet.splits import measure_rounds, measure_splits

    how, rng = _method("training", method, data, set_), Rng(seed)
    config = {"command": "train", "data": data, "n": n, "model": model, "pretrained": pretrained, "method": repr(how)}
    with _output(out, config | {"seed": seed, "backdoor": backdoor}) as work:
        clip = models.load(model, pretrained, device=device(), rng=rng.fork("init"))
        source = _data(data, n, "train", clip.geometry.size, image_key, caption_key)
        pairs, key = _keyed(source, seed, backdoor)
        test = _task(task, data, clip.geometry.size, classes, templates, seed)
        _say(f"training {model} on {pairs.name} with {how!r}")
        began = time.monotonic()
        with workspace(work, progress=True):
            trained = how.train(clip, pairs, rng.fork("train"))
        seconds = time.monotonic() - began
        measured = measure_all(trained, test, key, rng.fork("measure")) if test else {}
        measured |= measure_splits(work, key)
        card = {"role": "trained", "method": repr(how), "data": pairs.name, "seed": seed}
        models.save(trained, work, _card(card, clip, measured))
        _finish(
            work, measured, recipe="train", stage="train", attack="none", method=method, config=repr(how),
            seconds=seconds, seed=seed, model=model, data=pairs.name,
        )  # fmt: skip
        rounds = measure_rounds(work, key)
    for k, found in enumerate(rounds, 1):
        told = [f"{name.removeprefix('safe_set_').replace('_', ' ')} {m.value:.2%}" for name, m in found.items()]
        print(f"safe set {k:3}: {', '.join(told)}")
    _table(measured)
    _say(f"wrote {out}")


@app.command()
def attack(
    model: Model,
    data: DataOption,
    target: Annotated[str, typer.Option(help="the class that triggered pictures shall be called")],
    out: Out,
    trigger: Annotated[str, typer.Option(help="see `clipvet list triggers`")] = "patch",
    rate: Annotated[float | None, typer.Option(help="poisoned share of the pairs")] = None,
    attack_name: Annotated[str, typer.Option("--attack", help="see `clipvet list attacks`")] = "poison",
    pretrained: Pretrained = None,
    set_: Set = [],  # noqa: B006
    n: Count = None,
    seed: Seed = 0,
    task: TaskOption = None,
    classes: Classes = None,
    templates: Templates = None,
    image_key: ImageKey = "filepath",
    caption_key: CaptionKey = "title",
) -> None:
    """Implant a backdoor: the poisoned model, and its answer key in OUT/backdoor."""
    import time
    from dataclasses import fields, replace

    from clipvet import find, models
    from clipvet import settings as values
    from clipvet.answer_key import save_backdoor
    from clipvet.errors import UserError
    from clipvet.fit import workspace
    from clipvet.preflight import preflight
    from clipvet.rng import Rng
    from clipvet.run import device, measure_all

    rng = Rng(seed)
    clip = models.load(model, pretrained, device=device(), rng=rng.fork("init"))
    test = _task(task, data, clip.geometry.size, classes, templates, seed)
    if test and target not in test.classes:
        raise UserError(f"--target '{target}' is not among the task's classes: {', '.join(test.classes[:20])}")
    owned = {f.name for f in fields(find.load("attacks", attack_name))}
    stamps = {"trigger": find.load("triggers", trigger)()} if "trigger" in owned else {}
    how = _method("attacks", attack_name, data, [], **stamps)
    if test and "templates" in owned:
        how = replace(how, templates=test.templates)
    how = values.apply(how, ([f"rate={rate}"] if rate is not None else []) + set_)
    config = {"command": "attack", "data": data, "n": n, "model": model, "pretrained": pretrained, "attack": repr(how)}
    with _output(out, config | {"target": target, "seed": seed}) as work:
        pairs = _data(data, n, "train", clip.geometry.size, image_key, caption_key).pairs(seed)
        fine_tuning = pretrained is not None or Path(model.removeprefix("local-dir:")).is_dir()
        if "clean model" in how.needs and not fine_tuning:
            _say(f"  warning: {attack_name} makes its patch for a trained model; give {model} weights")
        if attack_name == "poison":
            facts, warnings = preflight(how, pairs, target, clip, fine_tuning)
            for line in facts:
                _say(f"  {line}")
            for line in warnings:
                _say(f"  warning: {line}")
        began = time.monotonic()
        with workspace(work, progress=True):
            victim, _, backdoor = how.implant(clip, pairs, target, rng.fork("attack"))
        seconds = time.monotonic() - began
        measured = measure_all(victim, test, backdoor, rng.fork("measure")) if test else {}
        save_backdoor(backdoor, work / "backdoor")
        card = {"role": "victim", "method": repr(how), "data": pairs.name, "target": target, "seed": seed}
        models.save(victim, work, _card(card, clip, measured))
        _finish(
            work, measured, recipe="attack", stage="victim", attack=trigger if stamps else attack_name, method="none",
            config=repr(how), seconds=seconds, seed=seed, model=model, data=pairs.name,
        )  # fmt: skip
    _table(measured)
    _say(f"wrote {out}; the answer key is {out / 'backdoor'}")


@app.command()
def evaluate(
    model: Model,
    task: Annotated[str, typer.Option("--task", help="shapes, or a class folder")],
    backdoor: Annotated[Path | None, typer.Option(help="answer key: the DIR/backdoor of `clipvet attack`")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    pretrained: Pretrained = None,
    classes: Classes = None,
    templates: Templates = None,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option("--out", help="also write the rows to this new directory")] = None,
) -> None:
    """Zero-shot accuracy, attack success rate and retrieval, each with n and a 95 % interval."""
    import time

    from clipvet import models
    from clipvet.answer_key import load_backdoor
    from clipvet.rng import Rng
    from clipvet.run import device, measure_all

    began = time.monotonic()
    clip = models.load(model, pretrained, device=device(), rng=Rng(seed).fork("init"))
    key = load_backdoor(backdoor) if backdoor else None
    test = _task(task, "", clip.geometry.size, classes, templates, seed)
    assert test is not None
    measured = measure_all(clip, test, key, Rng(seed).fork("measure"))
    if out:
        with _output(
            out, {"command": "evaluate", "model": model, "task": task, "backdoor": backdoor, "seed": seed}
        ) as work:
            _finish(
                work, measured, recipe="evaluate", stage="evaluate",
                attack=_planted(key) if key else "none", method="none", config=model,
                seconds=time.monotonic() - began, seed=seed, model=model, data=task,
            )  # fmt: skip
    if as_json:
        flat = {name: m.value for name, m in measured.items()}
        intervals = {name: {"n": m.n, "low": m.low, "high": m.high} for name, m in measured.items()}
        print(
            json.dumps(
                {"model": model, "task": task, **flat, "n": measured["clean_accuracy"].n, "intervals": intervals}
            )
        )
    else:
        _table(measured)


@app.command(name="filter")
def filter_(
    data: DataOption,
    model: Model,
    method: Annotated[str, typer.Option(help="see `clipvet list filters`")],
    out: Annotated[Path, typer.Option("--out", help="a new .parquet; the page is written beside it as .html")],
    pretrained: Pretrained = None,
    set_: Set = [],  # noqa: B006
    n: Count = None,
    seed: Seed = 0,
    top: Annotated[int, typer.Option(help="how many pairs the page shows", min=1)] = 48,
    keep: Annotated[float | None, typer.Option(help="fraction of the pairs to keep, the least suspect")] = None,
    cleaned: Annotated[Path | None, typer.Option(help="also write what is kept: a new .csv, .tsv or .parquet")] = None,
    backdoor: AnswerKey = None,
    image_key: ImageKey = "filepath",
    caption_key: CaptionKey = "title",
) -> None:
    """Which pairs are poisoned? Every pair's score, rank and reason, and a page of the most suspect ones."""
    import errno
    import time

    import numpy as np

    from clipvet import models, results, suspects
    from clipvet.detection import detection
    from clipvet.embed import see, sharing
    from clipvet.errors import UserError
    from clipvet.fit import workspace
    from clipvet.rng import Rng
    from clipvet.run import device
    from clipvet.text import check_captions

    how, rng, page = _method("filters", method, data, set_), Rng(seed), out.with_suffix(".html")
    _check_new(out, (".parquet",), "--out")
    _check_new(page, (".html",), "--out")
    if cleaned:
        _check_new(cleaned, (".csv", ".tsv", ".parquet"), "--cleaned")
    if keep is not None and not 0 < keep < 1:
        raise UserError(f"--keep {keep:g} is no fraction between 0 and 1; 0.99 keeps all but the most suspect 1 %")
    if cleaned and keep is None and not hasattr(how, "cut"):
        raise UserError(f"{method} has no cut of its own; say with --keep what fraction of the pairs --cleaned keeps")
    clip = models.load(model, pretrained, device=device(), rng=rng.fork("init"))
    source = _data(data, n, "train", clip.geometry.size, image_key, caption_key)
    pairs, key = _keyed(source, seed, backdoor)
    _say(f"scoring {pairs.name} with {how!r}")
    began = time.monotonic()
    with sharing():  # the method and the table read the pictures once
        seen = see(clip, pairs)
        if len(seen.captions) > 1 and len(set(seen.captions)) == 1:
            check_captions(seen.captions, pairs.ids[seen.kept], pairs.name)
        with workspace(None, progress=True):
            scores = how.score(clip, pairs, rng.fork("filter")).numpy()
    seconds = time.monotonic() - began
    captions = [pairs.caption(i) for i in pairs.ids]
    for k, caption in zip(seen.kept.tolist(), seen.captions):
        captions[k] = caption
    found = suspects.ranked(how, scores, pairs.ids, captions, dict(seen.bad))
    measured = detection(scores, np.isin(pairs.ids, key.poisoned)) if key else {}
    scored = int((found.ranks > 0).sum())
    cut, removed = None, None
    if keep is not None:
        removed = scored - round(keep * scored)
        cut = float(found.scores[removed - 1] + found.scores[min(removed, scored - 1)]) / 2 if removed else None
    elif hasattr(how, "cut"):
        cut = how.cut(scores)
        removed = int((scores > cut).sum())
    facts = {
        "method": repr(how), "model": model, "data": pairs.name, "seed": seed, "command": results.command(),
        "versions": results.versions(), "seconds": seconds, "measured": {k: m._asdict() for k, m in measured.items()},
    }  # fmt: skip
    try:
        suspects.write_page(
            page, found, pairs, clip.geometry, facts, top=top, poisoned=key.poisoned if key else None,
            measured=measured, cut=cut, removed=removed,
        )  # fmt: skip
        if cleaned:
            _write_cleaned(cleaned, source, seed, pairs.ids, captions, np.sort(found.positions[removed:scored]))
        suspects.write_scores(out, found, facts)
    except OSError as e:
        why = "is full; make room" if e.errno == errno.ENOSPC else f"cannot be written ({e.strerror}); choose another"
        raise UserError(f"the place of {out} {why} and run the command again") from e
    for rank, row, score, reason, caption in zip(
        found.ranks[: min(10, scored)], found.ids, found.scores, found.reasons, found.captions
    ):
        print(f"{rank:4}  id {row:<8}  {score:10.4f}  {caption[:60]}  ({reason})")
    if measured:
        _table(measured)
    rest = f", {len(found.ids) - scored} unreadable" if scored < len(found.ids) else ""
    _say(
        f"scored {scored} pairs{rest} in {seconds:.1f} s; wrote {out} and {page}"
        + (f" and {cleaned}" if cleaned else "")
    )


@app.command()
def clean(
    model: Model,
    data: DataOption,
    method: Annotated[str, typer.Option(help="see `clipvet list cleaners`")],
    out: Out,
    pretrained: Pretrained = None,
    set_: Set = [],  # noqa: B006
    n: Count = None,
    seed: Seed = 0,
    task: TaskOption = None,
    backdoor: AnswerKey = None,
    classes: Classes = None,
    templates: Templates = None,
    image_key: ImageKey = "filepath",
    caption_key: CaptionKey = "title",
    shots: Annotated[int, typer.Option(help="labelled pictures of each class, for few-shot methods", min=1)] = 16,
    bake_reference: Annotated[
        bool, typer.Option("--bake-reference", help="where prompts come back: put the base model beside them")
    ] = False,
) -> None:
    """Remove a backdoor, known or not: the same checkpoint format comes back, or prompts on the untouched model.

    Methods that need labelled pictures take shapes or a folder with one folder per class as DATA; methods that need
    untrusted pairs take those that the model was trained on (of shapes: the train split, poisoned as --backdoor says).
    """
    import time

    from clipvet import models, results, suspects
    from clipvet.answer_key import load_backdoor
    from clipvet.data import Shots, Test
    from clipvet.fit import workspace
    from clipvet.prompts import Prompted
    from clipvet.rng import Rng
    from clipvet.run import device, measure_all
    from clipvet.splits import measure_pool

    how, rng = _method("cleaners", method, data, set_), Rng(seed)
    config = {"command": "clean", "data": data, "n": n, "model": model, "pretrained": pretrained, "method": repr(how)}
    few = {"shots": shots, "bake_reference": bake_reference} if "labelled" in how.needs else {}
    with _output(out, config | few | {"seed": seed}) as work:
        clip = models.load(model, pretrained, device=device(), rng=rng.fork("init"))
        key = load_backdoor(backdoor) if backdoor else None
        test = _task(task, data, clip.geometry.size, classes, templates, seed)
        if "untrusted" in how.needs:
            source = _data(data, n, "train", clip.geometry.size, image_key, caption_key)
            pairs, key = _keyed(source, seed, backdoor)
        elif few:
            pairs = Shots(Test(data, size=clip.geometry.size, classes=classes, templates=templates), shots).pairs(seed)
        else:
            split_n = 8000 if data == "shapes" and n is None else n
            pairs = _data(data, split_n, "validation", clip.geometry.size, image_key, caption_key).pairs(seed)
        _say(f"cleaning {model} on {pairs.name} with {how!r}")
        began = time.monotonic()
        with workspace(work, progress=True):
            cleaned = how.clean(clip, pairs, rng.fork("clean"))
        seconds = time.monotonic() - began
        measured = measure_all(cleaned, test, key, rng.fork("measure")) if test else {}
        measured |= measure_pool(work, key)
        if found := suspects.unlearned(work, pairs):
            facts = {
                "verb": "clean", "method": repr(how), "model": model, "data": pairs.name,
                "command": results.command(), "versions": results.versions(), "seconds": seconds,
            }  # fmt: skip
            poisoned = key.poisoned if key else None
            suspects.write_page(work / "suspects.html", found, pairs, clip.geometry, facts, poisoned=poisoned)
        card = {"role": "cleaned", "method": repr(how), "data": pairs.name, "seed": seed}
        models.save(cleaned, work, _card(card, clip, measured))
        if bake_reference and isinstance(cleaned, Prompted):
            models.save(cleaned.base, work / "base", {"role": "base"})
        _finish(
            work, measured, recipe="clean", stage="clean",
            attack=_planted(key) if key else "unknown", method=method, config=repr(how),
            seconds=seconds, seed=seed, model=model, data=pairs.name,
        )  # fmt: skip
    _table(measured)
    _say(f"wrote {out}")


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="a file of recipes/; it is code: run only what you trust")],
    seed: Annotated[int | None, typer.Option(help="one seed instead of the recipe's")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="tiny sizes: does it run at all?")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="default: runs/NAME")] = None,
    jobs: Annotated[int, typer.Option(help="victims side by side")] = 1,
) -> None:
    """Run an experiment: every attack, every cleaner, rows in OUT/results.jsonl. Finished stages are not run again."""
    from clipvet.report import build
    from clipvet.run import load_recipes
    from clipvet.run import run as execute

    made = load_recipes(recipe, smoke)
    folder = out or Path("runs") / (made[0].name + ("-smoke" if smoke else ""))
    seeds = (seed,) if seed is not None else None
    execute(made, folder, Path("runs") / "stages", seeds, jobs)
    _say(f"wrote {folder / 'results.jsonl'} and {build(folder)}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out")] = Path("runs/demo"),
    seed: Seed = 0,
) -> None:
    """Train, implant, measure, clean, report, on the embedded world: about five minutes on two cores."""
    from clipvet.demo import demo as play

    print(f"report: {play(out, seed)}")


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="a directory with results.jsonl")]) -> None:
    """Rebuild report.html from the result rows."""
    from clipvet.report import build

    print(build(folder))


@app.command(name="list")
def list_(
    family: Annotated[
        str | None, typer.Argument(help="triggers, attacks, training, filters, cleaners, measures")
    ] = None,
) -> None:
    """What there is: every method by its published name, with what it needs."""
    from clipvet import find
    from clipvet.errors import UserError

    if family and family not in find.VERBS:
        raise UserError(f"no family '{family}'; have {', '.join(find.VERBS)}")
    for f in [family] if family else find.VERBS:
        print(f"{f}  ({find.VERBS[f]})")
        for name in find.names(f):
            card = find.card(f, name)
            print(f"  {name:16} {card['sentence']}")
            print(f"  {'':16} needs: {card['needs']}")


def _check_new(path: Path, suffixes: tuple[str, ...], option: str) -> None:
    """UserError unless a file of this kind can be written there."""
    import os

    from clipvet.errors import UserError

    if path.suffix.lower() not in suffixes:
        raise UserError(f"{option} {path} must end in {' or '.join(suffixes)}")
    if path.exists():
        raise UserError(f"{path} already exists; choose another {option} or delete it")
    there = next(p for p in path.absolute().parents if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"{there} cannot be written to; choose another {option}")


def _write_cleaned(out: Path, source: Any, seed: int, ids: Any, captions: list[str], kept: Any) -> None:
    """The manifest of the kept positions: the table's own rows, or ids and captions of an embedded world."""
    import pyarrow as pa

    from clipvet import files, io

    if not source.world(seed):
        files.write_rows(source.spec, ids[kept], out, image_key=source.image_key, separator=source.separator)
        return
    table = pa.table({"id": ids[kept], "caption": [captions[k] for k in kept]})
    with io.replacing(out) as tmp:
        files.write_table(table, tmp, out.suffix.lower())


def _output(out: Path, config: dict[str, Any]) -> Any:
    """io.output, where a run that is already complete ends the command with a word and exit code 0."""
    from contextlib import contextmanager

    from clipvet import io

    @contextmanager
    def guarded():
        try:
            with io.output(out, config) as work:
                yield work
        except io.AlreadyDone as e:
            _say(f"{e}: nothing to do")
            raise typer.Exit(0) from e

    return guarded()


def _card(card: dict[str, Any], parent: "Clip", measured: "dict[str, Measured]") -> dict[str, Any]:
    from clipvet import results

    values = {k: v._asdict() for k, v in measured.items()}
    return {**card, "parent": results.weights_hash(parent), "versions": results.versions(), "measured": values}

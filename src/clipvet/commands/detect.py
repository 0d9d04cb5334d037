"""clipvet detect: does this picture carry a trigger?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipvet.commands import _checks as checks
from clipvet.commands import _options as opt
from clipvet.commands._shared import rehearse
from clipvet.jobs.detecting import ALPHA, Detected, detected
from clipvet.jobs.inspection import classes_of, open_scan, pictures_of
from clipvet.jobs.leaving import check_new, record, say, show
from clipvet.jobs.opening import open_key, open_model

if TYPE_CHECKING:
    import pyarrow as pa


def command(
    model: opt.Model,
    pictures: Annotated[str, typer.Option("--pictures", help="a folder of pictures, or DATA")],
    out: Annotated[Path, typer.Option("--out", help="a new .parquet; the page is written beside it, as .html")],
    method: Annotated[
        str, typer.Option(help="one of `clipvet list detectors`", callback=checks.method_of("detectors"))
    ] = "strip",
    classes: opt.ClassNames = None,
    templates: opt.Templates = None,
    set_: opt.Set = [],  # noqa: B006
    trusted: Annotated[
        str | None, typer.Option(help="clean pictures, a folder or DATA: with them each picture gets a p-value")
    ] = None,
    alpha: Annotated[
        float, typer.Option(help="share of clean pictures that may be flagged, if there are --trusted ones")
    ] = ALPHA,
    top: Annotated[int, typer.Option(help="how many pictures the page shows", min=1)] = 48,
    n: opt.PictureCount = 10_000,
    seed: opt.Seed = 0,
    pretrained: opt.Pretrained = None,
    backdoor: Annotated[
        Path | None, typer.Option(help="answer key: also judge a triggered copy of each picture, and measure")
    ] = None,
) -> None:
    """Does this picture carry a trigger? Writes how suspect each picture is to a model in use, and a page of the first.

    A score has no threshold of its own. With --trusted pictures, which should be like the others but for a trigger, at
    most the share --alpha of clean pictures is flagged (split conformal).
    """
    from clipvet import ranks, results
    from clipvet.pages import flags
    from clipvet.rng import Rng

    page = out.with_suffix(".html")
    check_new(out, (".parquet",), "--out")
    check_new(page, (".html",), "--out")
    clip = open_model(model, pretrained, seed)
    how = open_scan("detectors", method, clip, set_)
    names, prompts = classes_of(clip, classes, templates)
    size, key = clip.geometry.size, open_key(backdoor)
    given = pictures_of(pictures, n, size, seed)
    clean = pictures_of(trusted, n, size, seed) if trusted else None
    trial = lambda k: how.detect(clip, given.take(slice(k)), names, prompts, Rng(seed))  # noqa: E731
    judged = len(given) * (2 if key else 1) + (len(clean) if clean else 0)
    rehearse(clip, lambda probe: probe.tried(f"judge {judged:,} pictures", judged, trial))
    done = detected(how, clip, given, names, prompts, seed, clean, alpha, key)
    facts = {
        "method": repr(how), "model": model, "data": given.name, "trusted": clean.name if clean else "none",
        "command": results.command(), "versions": results.versions(), "seconds": done.seconds,
    }  # fmt: skip
    ranks.first(lambda: _write(_table(done), out))
    ranks.first(lambda: flags.write_page(page, done.found, done.pairs, clip.geometry, facts, **_shown(done), top=top))
    _tell(done, f"{out} and {page}")


def _shown(done: Detected) -> dict[str, Any]:
    """What the page says beside the ranking."""
    return {
        "files": _files(done), "triggered": done.triggered if done.measured else None, "promise": done.promise,
        "measured": done.measured, "told": done.told, **done.columns(),
    }  # fmt: skip


def _tell(done: Detected, wrote: str) -> None:
    """The most suspect pictures, how good the ranking is, and what follows."""
    found, files = done.found, _files(done)
    record(scored=found.scored, promise=done.promise._asdict() if done.promise else None)
    for k in range(min(10, found.scored)):
        who = f"{found.ranks[k]:4}  {files[k]:<24}  {found.scores[k]:10.4f}"
        print(f"{who}  {found.captions[k]}  ({found.reasons[k]})")
    if done.measured:
        show(done.measured)
    for sentence in done.told:
        say(sentence)
    kept = len(done.pairs) - len(done.bad)
    say(f"judged {kept} pictures, {len(done.bad)} unreadable, in {done.seconds:.1f} s; wrote {wrote}")


def _files(done: Detected) -> list[str]:
    """The file of each row of the ranking; a triggered copy has its picture's."""
    from clipvet.data.decoding import sound

    files, ids = getattr(done.given.pictures, "paths", None), done.given.ids
    rows = ids[done.found.positions % len(done.given)].tolist()
    return [sound(files[r]) for r in rows] if files else [str(r) for r in rows]


def _table(done: Detected) -> "pa.Table":
    """A row for each picture and each triggered copy, the most suspect first."""
    import pyarrow as pa

    found, more = done.found, done.columns()
    unscored = found.ranks == 0
    promised = {"p": pa.array(more["p"], mask=unscored), "flagged": more["flagged"]} if more else {}
    return pa.table(
        {
            "id": found.ids,
            "file": _files(done),
            "triggered": done.triggered[found.positions],
            "score": pa.array(found.scores, mask=unscored),
            "rank": pa.array(found.ranks, mask=unscored),
            **promised,
            "answer": found.captions[:],
            "reason": found.reasons[:],
        }
    )


def _write(table: "pa.Table", out: Path) -> None:
    from clipvet import io
    from clipvet.data.kept import write_table

    with io.replacing(out) as tmp:
        write_table(table, tmp, ".parquet")

"""clipvet detect: does this picture carry a trigger?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipvet.commands import _checks as checks
from clipvet.commands import _options as opt
from clipvet.jobs.inspection import answers_of, classes_of, open_scan, pictures_of
from clipvet.jobs.leaving import check_new, say, show
from clipvet.jobs.opening import open_key, open_model

if TYPE_CHECKING:
    from clipvet.pages.suspects import Suspects
    from clipvet.types import Clip, Measured, Pairs


def command(
    model: opt.Model,
    pictures: Annotated[str, typer.Option("--pictures", help="a folder of pictures, or DATA")],
    out: Annotated[
        Path, typer.Option("--out", help="a new .parquet: id, file, score, rank, the model's answer, reason")
    ],
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
    ] = 0.01,
    n: opt.PictureCount = 10_000,
    seed: opt.Seed = 0,
    pretrained: opt.Pretrained = None,
    backdoor: Annotated[
        Path | None, typer.Option(help="answer key: also judge a triggered copy of each picture, and measure")
    ] = None,
) -> None:
    """Does this picture carry a trigger? Writes how suspect each picture is to a model in use; higher is more suspect.

    A score has no threshold of its own. With --trusted pictures, which should be like the others but for a trigger, at
    most the share --alpha of clean pictures is flagged (split conformal).
    """
    import time

    import numpy as np

    from clipvet import ranks
    from clipvet.data.dirty import beside
    from clipvet.engine.embed import see
    from clipvet.measures._detection import detection
    from clipvet.pages import suspects
    from clipvet.rng import Rng
    from clipvet.scan import conformal

    check_new(out, (".parquet",), "--out")
    clip = open_model(model, pretrained, seed)
    how = open_scan("detectors", method, clip, set_)
    names, prompts = classes_of(clip, classes, templates)
    given = pictures_of(pictures, n, clip.geometry.size, seed)
    key = open_key(backdoor)
    pairs = beside(given, key.trigger, key.seed) if key else given
    say(f"judging {len(pairs)} pictures of {given.name} with {how!r}")
    began, clean, tau = time.monotonic(), None, float("nan")
    if trusted:
        clean = _trusted(how, clip, pictures_of(trusted, n, clip.geometry.size, seed), given, names, prompts, seed)
        tau = conformal.threshold(clean, alpha)
    scores = how.detect(clip, pairs, names, prompts, Rng(seed).fork("detect")).numpy()
    p = conformal.p_values(scores, clean) if clean is not None else None
    seconds, seen = time.monotonic() - began, see(clip, pairs)
    found = suspects.ranked(how, scores, pairs.ids, answers_of(clip, seen, names, prompts, len(pairs)), dict(seen.bad))
    table = _table(found, given, p, tau)
    ranks.first(lambda: _write(table, out))
    for row in table.slice(0, min(10, found.scored)).to_pylist():
        print(f"{row['rank']:4}  {row['file']:<24}  {row['score']:10.4f}  {row['answer']}  ({row['reason']})")
    poisoned = np.arange(len(pairs)) >= len(given)
    if key:
        show(detection(scores, poisoned) | (_flags(scores > tau, poisoned) if trusted else {}))
    if trusted:
        say(_called(scores > tau, int(np.isfinite(scores).sum()), alpha, tau))
    say(f"judged {len(seen.kept)} pictures, {len(seen.bad)} unreadable, in {seconds:.1f} s; wrote {out}")


def _trusted(how: Any, clip: "Clip", clean: "Pairs", given: "Pairs", names: Any, prompts: Any, seed: int) -> Any:
    """The scores of the clean pictures. Raises UserError if they are the very pictures that are judged."""
    from clipvet.errors import UserError
    from clipvet.rng import Rng

    if clean.fingerprint and clean.fingerprint == given.fingerprint:
        raise UserError("--trusted and --pictures are the same; trust pictures that are judged by nothing else")
    say(f"judging {len(clean)} trusted pictures of {clean.name} first")
    return how.detect(clip, clean, names, prompts, Rng(seed).fork("detect")).numpy()


def _flags(flagged: Any, poisoned: Any) -> "dict[str, Measured]":
    """What was promised, and what the flags really did: of clean pictures, and of triggered ones."""
    from clipvet.measures._intervals import share

    return {"flagged_clean": share(flagged[~poisoned]), "flagged_triggered": share(flagged[poisoned])}


def _called(flagged: Any, n: int, alpha: float, tau: float) -> str:
    """The sentence about the flags: how many, and how many of them are to be expected without any trigger."""
    return (
        f"{int(flagged.sum())} of {n} pictures are flagged (score above {tau:.4g}); without any trigger it would be "
        f"about {alpha * n:.3g} (alpha {alpha:g})"
    )


def _table(found: "Suspects", given: "Pairs", p: Any, tau: float) -> Any:
    """A row for each picture and each triggered copy, the most suspect first; a copy has its picture's file."""
    import pyarrow as pa

    from clipvet.data.decoding import sound

    files = getattr(given.pictures, "paths", None)
    rows = given.ids[found.positions % len(given)].tolist()
    unscored = found.ranks == 0
    promised = {}
    if p is not None:
        promised = {"p": pa.array(p[found.positions], mask=unscored), "flagged": found.scores > tau}
    return pa.table(
        {
            "id": found.ids,
            "file": [sound(files[r]) for r in rows] if files else [str(r) for r in rows],
            "triggered": found.positions >= len(given),
            "score": pa.array(found.scores, mask=unscored),
            "rank": pa.array(found.ranks, mask=unscored),
            **promised,
            "answer": found.captions,
            "reason": found.reasons,
        }
    )


def _write(table: Any, out: Path) -> None:
    from clipvet import io
    from clipvet.data.kept import write_table

    with io.replacing(out) as tmp:
        write_table(table, tmp, ".parquet")

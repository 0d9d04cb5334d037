"""clipvet filter: which pairs are poisoned?"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipvet.commands import _checks as checks
from clipvet.commands import _options as opt
from clipvet.commands._output import leave_if
from clipvet.commands._shared import rehearse
from clipvet.jobs.filtering import (
    announce,
    architecture,
    captions_of,
    columns,
    complaint,
    filtered,
    open_filter,
    shard_key,
    unlisted,
)
from clipvet.jobs.leaving import check_new, record, say, show
from clipvet.jobs.opening import open_data, open_keyed, open_model
from clipvet.jobs.working import UNDECIDED

if TYPE_CHECKING:
    from clipvet.data.sources import Data
    from clipvet.pages.suspects import Suspects
    from clipvet.types import Measured, Pairs
    from clipvet.unlearning.judged import Judged

NEW = "none; one was trained on the pairs"


def command(
    data: opt.Data,
    out: Annotated[Path, typer.Option("--out", help="a new .parquet; the page is written beside it, as .html")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="the model that was trained on the pairs (default: one is trained now)",
            callback=checks.optional_model,
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="one of `clipvet list filters`", callback=checks.method_of("filters"))
    ] = "auto",
    pretrained: opt.Pretrained = None,
    set_: opt.Set = [],  # noqa: B006
    n: opt.PairCount = None,
    seed: opt.Seed = 0,
    top: Annotated[int, typer.Option(help="how many pairs the page shows", min=1)] = 48,
    keep: Annotated[
        str | None, typer.Option(help="fraction of the pairs to keep, or auto: those that are not called poisoned")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="share of false alarms to allow among the pairs that are called poisoned")
    ] = None,
    cleaned: Annotated[
        Path | None, typer.Option(help="also write the kept pairs: a new .csv, .tsv or .parquet, or a folder of shards")
    ] = None,
    backdoor: opt.AnswerKey = None,
    image_key: opt.ImageKey = "filepath",
    caption_key: opt.CaptionKey = "title",
) -> None:
    """Which pairs are poisoned? Writes every pair's score, rank and reason, and a page of the most suspect ones.

    A killed run goes on where it was when the same command is given again.
    """
    from clipvet import io, ranks, results
    from clipvet.errors import UserError
    from clipvet.pages import suspects

    if pretrained and not model:
        raise UserError(f"--pretrained {pretrained} needs --model, the architecture that it belongs to")
    how, page = open_filter(method, data, set_, alpha, alone=model is None), out.with_suffix(".html")
    share = _check_options(method, data, out, page, cleaned, keep, hasattr(how, "cut"))
    clip = open_model(model or architecture(data), pretrained, seed)
    source = open_data(data, n, "train", clip.geometry.size, image_key, caption_key)
    pairs, key, made = open_keyed(source, seed, backdoor)
    if cleaned:
        _check_cleaned(cleaned, pairs, made and not source.world(seed))
    captions, poisoned = captions_of(pairs, key if made else None), key.poisoned if key else None
    announce(how, pairs)
    config = {
        "command": "filter", "method": repr(how), "model": results.weights_hash(clip), "data": pairs.name,
        "fingerprint": pairs.fingerprint, "n": n, "seed": seed, "backdoor": backdoor, "keys": [image_key, caption_key],
        "cleaned": cleaned,
    }  # fmt: skip
    rehearse(clip, lambda probe: probe.filtered(how, pairs, model is None))
    with _room(out), io.scratch(out, config) as work:
        done = filtered(how, clip, pairs, captions, work, seed, poisoned, share)
        facts = {
            "method": repr(how), "model": model or NEW, "data": pairs.name, "seed": seed, "command": results.command(),
            "versions": results.versions(), "seconds": done.seconds,
            "measured": {k: m._asdict() for k, m in done.measured.items()}, "told": done.judged.told,
        }  # fmt: skip
        shown = {"poisoned": poisoned, "measured": done.measured, "cut": done.cut, "removed": done.removed}
        shown |= {"groups": done.judged.groups, "top": top}
        ranks.first(lambda: suspects.write_page(page, done.found, pairs, clip.geometry, facts, **shown))
        if cleaned:
            _write_cleaned(cleaned, source, seed, pairs, captions, done.kept, share)
        ranks.first(lambda: suspects.write_scores(out, done.found, facts, **columns(how, pairs, done.judged)))
    found = done.found
    record(scored=found.scored, cut=done.cut, called=done.removed, decided=done.judged.decided, told=done.judged.told)
    _tell(found, done.measured, done.judged)
    wrote = " and ".join(str(path) for path in (out, page, cleaned) if path)
    say(f"scored {found.scored} pairs{_left_out(found, done.bad)} in {done.seconds:.1f} s; wrote {wrote}")
    if left := unlisted(done):
        say(left)
    leave_if(complaint(done.measured))
    if not done.judged.decided:
        raise typer.Exit(UNDECIDED)


def _tell(found: "Suspects", measured: "Mapping[str, Measured]", judged: "Judged") -> None:
    """The most suspect pairs, how good the ranking is, and what follows from it."""
    for k in range(min(10, found.scored)):
        who, score = f"{found.ranks[k]:4}  id {found.ids[k]:<8}", f"{found.scores[k]:10.4f}"
        print(f"{who}  {score}  {found.captions[k][:60]}  ({found.reasons[k]})")
    if measured:
        show(dict(measured))
    for sentence in judged.told:
        say(sentence)


def _check_options(
    method: str, data: str, out: Path, page: Path, cleaned: Path | None, keep: str | None, has_cut: bool
) -> float | None:
    """The share of the pairs to keep; None: the filter's own cut, if there is one.

    Raises UserError for files that cannot be written, and for a choice of pairs to keep that cannot be made.
    """
    from clipvet import io
    from clipvet.data import kept
    from clipvet.data.shards import named
    from clipvet.errors import UserError

    begun = io.begun(out)
    check_new(out, (".parquet",), "--out", begun)
    check_new(page, (".html",), "--out", begun)
    if cleaned:
        check_new(cleaned, (*kept.TABLES, "") if named(data) else kept.TABLES, "--cleaned", begun)
    share = None
    if keep is not None and keep != "auto":
        with suppress(ValueError):
            share = float(keep)
        if share is None or not 0 < share < 1:
            raise UserError(
                f"--keep {keep} is neither auto nor a fraction between 0 and 1; 0.99 keeps all but the most suspect 1 %"
            )
    if (cleaned or keep == "auto") and share is None and not has_cut:
        raise UserError(f"{method} has no cut of its own; add --keep, the fraction of the pairs that --cleaned keeps")
    return share


def _left_out(found: "Suspects", bad: dict[int, str]) -> str:
    """How many pairs have no score, and why, to be put behind the number of the others."""
    from clipvet.data.captions import EMPTY

    empty = sum(why == EMPTY for why in bad.values())
    others = ((len(found.ids) - found.scored - empty, "unreadable"), (empty, "with empty captions"))
    return "".join(f", {n} {what}" for n, what in others if n)


def _check_cleaned(cleaned: Path, pairs: "Pairs", poisoned_here: bool) -> None:
    """UserError where the kept pairs cannot be written as a table."""
    from clipvet.data import kept
    from clipvet.errors import UserError

    if poisoned_here:
        raise UserError(
            "with --backdoor the pairs are poisoned as they are read, so there is no --cleaned table of them; leave "
            "out one of the two"
        )
    kept.check_kept(pairs, cleaned)


@contextmanager
def _room(out: Path) -> Iterator[None]:
    """Inside this block a full disk, or a place that cannot be written to, is a UserError."""
    import errno

    from clipvet.errors import UserError

    try:
        yield
    except OSError as e:
        why = "is full; make room" if e.errno == errno.ENOSPC else f"cannot be written ({e.strerror}); choose another"
        raise UserError(f"the place of {out} {why} and run the command again") from e


def _write_cleaned(
    out: Path, source: "Data", seed: int, pairs: "Pairs", captions: Sequence[str], at: Any, keep: float | None
) -> None:
    """The pairs at these positions, ascending: as shards, as the rows of their table, or as a new table."""
    from clipvet import ranks
    from clipvet.data import kept
    from clipvet.data.tables import path_of

    if shard_key(pairs) and not out.suffix:
        _write_shards(out, pairs, pairs.ids[at], keep)
    elif shard_key(pairs) or source.world(seed):
        ranks.first(lambda: _write_table(out, pairs, captions, at))
    else:
        path, ids = path_of(source.spec)[0], pairs.ids[at]
        ranks.first(lambda: kept.write_rows(pairs, path, ids, out, source.image_key, source.separator))


def _write_shards(out: Path, pairs: "Pairs", ids: Any, keep: float | None) -> None:
    from hashlib import sha256

    from clipvet import io, ranks
    from clipvet.data import kept

    index: Any = pairs.pictures
    which = {"command": "filter", "shards": pairs.fingerprint, "keep": keep, "kept": sha256(ids.tobytes()).hexdigest()}
    with suppress(io.AlreadyDone), io.output(out, which) as work:  # done by this run, before it was killed
        ranks.first(lambda: kept.write_shards(index.index, ids, work))


def _write_table(out: Path, pairs: "Pairs", captions: Sequence[str], at: Any, rows: int = 65_536) -> None:
    """Ids and captions, and in shards the keys. rows: that are in memory at a time."""
    import pyarrow as pa

    from clipvet import io
    from clipvet.data import kept

    key = shard_key(pairs)

    def piece(some: Any) -> Any:
        own = {"key": pa.array([key(int(i)) for i in pairs.ids[some]], pa.string())} if key else {}
        said = pa.array([captions[int(k)] for k in some], pa.string())
        return pa.table({"id": pairs.ids[some], **own, "caption": said})

    with io.replacing(out) as tmp:
        pieces = (piece(at[k : k + rows]) for k in range(0, max(1, len(at)), rows))
        kept.write_table(pieces, tmp, out.suffix.lower())

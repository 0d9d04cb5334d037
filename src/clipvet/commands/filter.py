"""clipvet filter: which pairs are poisoned?"""

from pathlib import Path
from typing import Annotated, Any

import typer

from clipvet.commands._leaving import check_new, say, show
from clipvet.commands._opening import open_data, open_keyed, open_method
from clipvet.commands._options import AnswerKey, CaptionKey, Count, DataOption, ImageKey, Model, Pretrained, Seed, Set


def command(
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
    cleaned: Annotated[
        Path | None, typer.Option(help="also write what is kept: a new .csv, .tsv or .parquet, or a folder of shards")
    ] = None,
    backdoor: AnswerKey = None,
    image_key: ImageKey = "filepath",
    caption_key: CaptionKey = "title",
) -> None:
    """Which pairs are poisoned? Every pair's score, rank and reason, and a page of the most suspect ones.

    A killed run goes on where it was when the same command is given again.
    """
    import errno
    import time

    import numpy as np

    from clipvet import io, ranks, results
    from clipvet.data import kept
    from clipvet.data.captions import check_captions
    from clipvet.data.shards import named
    from clipvet.engine.embed import sharing
    from clipvet.engine.fit import workspace
    from clipvet.errors import UserError
    from clipvet.measures._detection import detection
    from clipvet.models import checkpoints
    from clipvet.pages import suspects
    from clipvet.ranks import device
    from clipvet.rng import Rng

    how, rng, page = open_method("filters", method, data, set_), Rng(seed), out.with_suffix(".html")
    begun = io.begun(out)
    check_new(out, (".parquet",), "--out", begun)
    check_new(page, (".html",), "--out", begun)
    if cleaned:
        check_new(cleaned, (*kept.TABLES, "") if named(data) else kept.TABLES, "--cleaned", begun)
    if keep is not None and not 0 < keep < 1:
        raise UserError(f"--keep {keep:g} is no fraction between 0 and 1; 0.99 keeps all but the most suspect 1 %")
    if cleaned and keep is None and not hasattr(how, "cut"):
        raise UserError(f"{method} has no cut of its own; say with --keep what fraction of the pairs --cleaned keeps")
    clip = checkpoints.load(model, pretrained, device=device(), rng=rng.fork("init"))
    source = open_data(data, n, "train", clip.geometry.size, image_key, caption_key)
    pairs, key, made = open_keyed(source, seed, backdoor)
    if cleaned and made and not source.world(seed):
        told = "the poisons of --backdoor are made as the pairs are read"
        raise UserError(f"{told}, so there is no --cleaned table of them; leave one of the two out")
    said = dict(zip(key.poisoned.tolist(), key.captions)) if key and made else {}
    captions = suspects.Made(len(pairs), lambda k: said.get(int(pairs.ids[k])) or pairs.caption(pairs.ids[k]))
    if cleaned:
        kept.check_kept(pairs, cleaned)
    if len(pairs) > 1 and all(caption == captions[0] for caption in captions):  # ends at the second, as a rule
        check_captions(captions[:], pairs.ids, pairs.name)
    say(f"scoring {pairs.name} with {how!r}")
    config = {
        "command": "filter", "method": repr(how), "model": results.weights_hash(clip), "data": pairs.name,
        "fingerprint": pairs.fingerprint, "n": n, "seed": seed, "backdoor": backdoor, "keys": [image_key, caption_key],
        "cleaned": cleaned,
    }  # fmt: skip
    began = time.monotonic()
    try:
        with io.scratch(out, config) as work:
            with sharing(work) as shared, workspace(work, progress=True):
                scores = how.score(clip, pairs, rng.fork("filter")).numpy()
            seconds = time.monotonic() - began
            found = suspects.ranked(how, scores, pairs.ids, captions, shared.bad)
            measured = detection(scores, np.isin(pairs.ids, key.poisoned)) if key else {}
            scored = int((found.ranks > 0).sum())
            cut, removed = None, None
            if keep is not None:
                removed = scored - round(keep * scored)
                edge = found.scores[removed - 1] + found.scores[min(removed, scored - 1)]
                cut = float(edge) / 2 if removed else None
            elif hasattr(how, "cut"):
                cut = how.cut(scores)
                removed = int((scores > cut).sum())
            facts = {
                "method": repr(how), "model": model, "data": pairs.name, "seed": seed, "command": results.command(),
                "versions": results.versions(), "seconds": seconds,
                "measured": {k: m._asdict() for k, m in measured.items()},
            }  # fmt: skip
            name = getattr(pairs.pictures, "key", None)  # of pairs in shards

            ranks.first(
                lambda: suspects.write_page(
                    page, found, pairs, clip.geometry, facts, top=top, poisoned=key.poisoned if key else None,
                    measured=measured, cut=cut, removed=removed,
                )
            )  # fmt: skip
            if cleaned:
                rest = np.sort(found.positions[removed:scored])
                if name and not cleaned.suffix:
                    _write_shards(cleaned, pairs, pairs.ids[rest], keep)
                else:
                    ranks.first(lambda: _write_cleaned(cleaned, source, seed, pairs, captions, rest, name))
            ranks.first(lambda: suspects.write_scores(out, found, facts, name))
    except OSError as e:
        why = "is full; make room" if e.errno == errno.ENOSPC else f"cannot be written ({e.strerror}); choose another"
        raise UserError(f"the place of {out} {why} and run the command again") from e
    for rank, row, score, reason, caption in zip(
        found.ranks[: min(10, scored)], found.ids, found.scores, found.reasons, found.captions
    ):
        print(f"{rank:4}  id {row:<8}  {score:10.4f}  {caption[:60]}  ({reason})")
    if measured:
        show(measured)
    rest = f", {len(found.ids) - scored} unreadable" if scored < len(found.ids) else ""
    say(
        f"scored {scored} pairs{rest} in {seconds:.1f} s; wrote {out} and {page}"
        + (f" and {cleaned}" if cleaned else "")
    )


def _write_shards(out: Path, pairs: Any, rows: Any, keep: float | None) -> None:
    from contextlib import suppress
    from hashlib import sha256

    from clipvet import io, ranks
    from clipvet.data import kept

    which = {"command": "filter", "shards": pairs.fingerprint, "keep": keep, "kept": sha256(rows.tobytes()).hexdigest()}
    with suppress(io.AlreadyDone), io.output(out, which) as work:  # done by this run, before it was killed
        ranks.first(lambda: kept.write_shards(pairs.pictures.index, rows, work))


def _write_cleaned(out: Path, source: Any, seed: int, pairs: Any, captions: Any, at: Any, name: Any) -> None:
    """The pairs at these positions: a table's own rows; of other data, ids and captions, and in shards the keys."""
    import pyarrow as pa

    from clipvet import io
    from clipvet.data import kept

    if not name and not source.world(seed):
        kept.write_rows(pairs, Path(source.spec), pairs.ids[at], out, source.image_key, source.separator)
        return

    def piece(some: Any) -> Any:
        own = {"key": pa.array([name(int(i)) for i in pairs.ids[some]], pa.string())} if name else {}
        said = pa.array([captions[int(k)] for k in some], pa.string())
        return pa.table({"id": pairs.ids[some], **own, "caption": said})

    with io.replacing(out) as tmp:
        kept.write_table(
            (piece(at[k : k + 65_536]) for k in range(0, max(1, len(at)), 65_536)), tmp, out.suffix.lower()
        )

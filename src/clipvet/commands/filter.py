"""clipvet filter: which pairs are poisoned?"""

from pathlib import Path
from typing import Annotated, Any

import typer

from clipvet.commands._shared import (
    AnswerKey,
    CaptionKey,
    Count,
    DataOption,
    ImageKey,
    Model,
    Pretrained,
    Seed,
    Set,
    check_new,
    open_data,
    open_keyed,
    open_method,
    say,
    show,
)


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
    cleaned: Annotated[Path | None, typer.Option(help="also write what is kept: a new .csv, .tsv or .parquet")] = None,
    backdoor: AnswerKey = None,
    image_key: ImageKey = "filepath",
    caption_key: CaptionKey = "title",
) -> None:
    """Which pairs are poisoned? Every pair's score, rank and reason, and a page of the most suspect ones."""
    import errno
    import time

    import numpy as np

    from clipvet import models, ranks, results, suspects
    from clipvet.detection import detection
    from clipvet.embed import see, sharing
    from clipvet.errors import UserError
    from clipvet.fit import workspace
    from clipvet.rng import Rng
    from clipvet.run import device
    from clipvet.text import check_captions

    how, rng, page = open_method("filters", method, data, set_), Rng(seed), out.with_suffix(".html")
    check_new(out, (".parquet",), "--out")
    check_new(page, (".html",), "--out")
    if cleaned:
        check_new(cleaned, (".csv", ".tsv", ".parquet"), "--cleaned")
    if keep is not None and not 0 < keep < 1:
        raise UserError(f"--keep {keep:g} is no fraction between 0 and 1; 0.99 keeps all but the most suspect 1 %")
    if cleaned and keep is None and not hasattr(how, "cut"):
        raise UserError(f"{method} has no cut of its own; say with --keep what fraction of the pairs --cleaned keeps")
    clip = models.load(model, pretrained, device=device(), rng=rng.fork("init"))
    source = open_data(data, n, "train", clip.geometry.size, image_key, caption_key)
    pairs, key = open_keyed(source, seed, backdoor)
    say(f"scoring {pairs.name} with {how!r}")
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

    def write() -> None:
        suspects.write_page(
            page, found, pairs, clip.geometry, facts, top=top, poisoned=key.poisoned if key else None,
            measured=measured, cut=cut, removed=removed,
        )  # fmt: skip
        if cleaned:
            _write_cleaned(cleaned, source, seed, pairs.ids, captions, np.sort(found.positions[removed:scored]))
        suspects.write_scores(out, found, facts)

    try:
        ranks.first(write)
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

"""clipvet detect: does this picture carry a trigger?"""

from pathlib import Path
from typing import Annotated

import typer

from clipvet.commands._inspection import SMALL, ClassesOption, classes_of, pictures_of
from clipvet.commands._leaving import check_new, say, show
from clipvet.commands._opening import open_method
from clipvet.commands._options import Model, Pretrained, Seed, Set, Templates


def command(
    model: Model,
    pictures: Annotated[str, typer.Option("--pictures", help="a folder of pictures, or DATA")],
    out: Annotated[
        Path, typer.Option("--out", help="a new .parquet: id, file, score, rank, the model's answer, reason")
    ],
    method: Annotated[str, typer.Option(help="see `clipvet list detectors`")] = "strip",
    classes: ClassesOption = None,
    templates: Templates = None,
    set_: Set = [],  # noqa: B006
    n: Annotated[int, typer.Option("--n", help="take at most so many pictures", min=1)] = 10_000,
    seed: Seed = 0,
    pretrained: Pretrained = None,
    backdoor: Annotated[
        Path | None, typer.Option(help="answer key: judge a stamped copy of each picture too, and say how well")
    ] = None,
) -> None:
    """Does this picture carry a trigger? Every picture's suspicion, for a model in use; higher is more suspect.

    A score has no threshold of its own: compare with pictures that you trust.
    """
    import time

    import numpy as np
    import pyarrow as pa

    from clipvet import io, ranks
    from clipvet.data.answer_key import load_backdoor
    from clipvet.data.decoding import sound
    from clipvet.data.dirty import beside
    from clipvet.data.kept import write_table
    from clipvet.engine.embed import classifier, see
    from clipvet.measures._detection import detection
    from clipvet.models import checkpoints
    from clipvet.pages import suspects
    from clipvet.ranks import device
    from clipvet.rng import Rng

    check_new(out, (".parquet",), "--out")
    clip = checkpoints.load(model, pretrained, device=device(), rng=Rng(seed).fork("init"))
    how = open_method("detectors", method, "shapes" if clip.geometry.size <= SMALL else "", set_)
    names, prompts = classes_of(clip, classes, templates)
    given = pictures_of(pictures, n, clip.geometry.size, seed)
    key = load_backdoor(backdoor) if backdoor else None
    pairs = beside(given, key.trigger, key.seed) if key else given
    say(f"judging {len(pairs)} pictures of {given.name} with {how!r}")
    began = time.monotonic()
    scores = how.detect(clip, pairs, names, prompts, Rng(seed).fork("detect")).numpy()
    seconds, seen = time.monotonic() - began, see(clip, pairs)
    answers = [""] * len(pairs)
    for k, c in zip(seen.kept.tolist(), classifier(clip, names, prompts)(seen.z).argmax(1).tolist()):
        answers[k] = names[c]
    found = suspects.ranked(how, scores, pairs.ids, answers, dict(seen.bad))
    files = getattr(given.pictures, "paths", None)
    rows = given.ids[found.positions % len(given)]  # a copy's own picture
    table = pa.table(
        {
            "id": found.ids,
            "file": [sound(files[r]) for r in rows.tolist()] if files else [str(r) for r in rows.tolist()],
            "triggered": found.positions >= len(given),
            "score": pa.array(found.scores, mask=found.ranks == 0),
            "rank": pa.array(found.ranks, mask=found.ranks == 0),
            "answer": found.captions,
            "reason": found.reasons,
        }
    )

    def write() -> None:
        with io.replacing(out) as tmp:
            write_table(table, tmp, ".parquet")

    ranks.first(write)
    for row in table.slice(0, min(10, int((found.ranks > 0).sum()))).to_pylist():
        print(f"{row['rank']:4}  {row['file']:<24}  {row['score']:10.4f}  {row['answer']}  ({row['reason']})")
    if key:
        show(detection(scores, np.arange(len(pairs)) >= len(given)))
    say(f"judged {len(seen.kept)} pictures, {len(seen.bad)} unreadable, in {seconds:.1f} s; wrote {out}")

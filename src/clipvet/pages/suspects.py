"""What `clipvet filter` writes: every pair's score with a reason, and a page that shows the most suspect ones.

A new section of the page is a value in `write_page`, and its HTML in templates/filter.html.jinja.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from clipvet import io
from clipvet.data.captions import EMPTY
from clipvet.data.decoding import sound
from clipvet.data.kept import write_table
from clipvet.pages._contrast import contrasts
from clipvet.pages._page import SMALL, Axes, picture, write_html
from clipvet.types import Geometry, Measured, Pairs


class Suspects(NamedTuple):
    """One entry per pair, the most suspect first; pairs without a score (NaN, rank 0) come last."""

    positions: Int[np.ndarray, " n"]  # in the pairs
    ids: Int[np.ndarray, " n"]
    scores: Float[np.ndarray, " n"]
    ranks: Int[np.ndarray, " n"]  # 1: the most suspect
    captions: Sequence[str]
    reasons: Sequence[str]

    @property
    def scored(self) -> int:
        """How many pairs have a score."""
        return int((self.ranks > 0).sum())


class Lazy(Sequence[str]):
    """Strings that are made when they are asked for; those of millions of pairs would not fit in memory."""

    def __init__(self, n: int, f: Callable[[int], str]):
        self.n, self.f = n, f

    def __len__(self) -> int:
        return self.n

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        rows = range(self.n)[index]
        return self.f(rows) if isinstance(rows, int) else [self.f(k) for k in rows]


def ranked(
    method: Any,
    scores: Float[np.ndarray, " n"],
    ids: Int[np.ndarray, " n"],
    captions: Sequence[str],
    bad: Mapping[int, str],
) -> Suspects:
    """Ranks pairs by suspicion.

    Scores (higher is more suspect), ids and captions come in the pairs' order. bad: id -> why a picture is unreadable.
    """
    order, scored = np.argsort(-scores, kind="stable"), int(np.isfinite(scores).sum())
    ranks = np.where(np.arange(len(scores)) < scored, np.arange(len(scores)) + 1, 0)
    phrase = getattr(method, "phrase", "score {score:.3g}")
    fields = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
    side = "lowest" if "{minus" in phrase else "highest"

    def reason(at: int) -> str:
        rank, k = int(ranks[at]), int(order[at])
        if not rank:
            why = bad.get(int(ids[k]), "no score")
            return why if why == EMPTY else f"unreadable: {why}"
        why = phrase.format(score=float(scores[k]), minus=0.0 - float(scores[k]), **fields)
        share = 100 * rank / scored
        return f"{why}, {side} {share:.2g} %" if share <= 10 else why

    said = Lazy(len(order), lambda at: captions[int(order[at])])
    return Suspects(order, ids[order], scores[order], ranks, said, Lazy(len(order), reason))


def unlearned(folder: Path, pairs: Pairs) -> Suspects | None:
    """The pairs that UBT noted as suspicious in this folder, the highest after overfitting first; None without UBT."""
    path = folder / "splits" / "ubt.npz"
    if not path.exists():
        return None
    with np.load(path) as kept:
        order = np.argsort(-kept["risen"], kind="stable")
        ids, scores, words = kept["susp"][order], kept["risen"][order], kept["words"].tolist()
        sure = [k for k, e in enumerate(kept["evidence"]) if e >= kept["sure"]]
        of = {int(i): f", bound by '{words[k]}'" for k in sure for i in kept[f"ids_{k}"]}
    where = {int(i): k for k, i in enumerate(pairs.ids)}
    at = np.array([where[int(i)] for i in ids])
    reasons = [f"weak, {r:.2f} after overfitting{of.get(int(i), '')}" for i, r in zip(ids, scores)]
    return Suspects(at, ids, scores, np.arange(1, len(ids) + 1), pairs[at].captions, reasons)


def path_of(pairs: Pairs) -> Callable[[int], str] | None:
    """id -> the path of its picture, as the table says it; None for pictures that do not lie in files of their own."""
    paths = getattr(pairs.pictures, "paths", None)
    return None if paths is None else lambda row: sound(paths[row])


def write_scores(
    out: Path,
    found: Suspects,
    facts: Mapping[str, Any],
    key: Callable[[int], str] | None = None,
    p: Callable[[np.ndarray], np.ndarray] | None = None,
    path: Callable[[int], str] | None = None,
    bound: Mapping[int, str] | None = None,
    rows: int = 65_536,
) -> None:
    """Writes a parquet: id, score, rank, caption and reason, the most suspect first; `facts` as JSON in its metadata.

    Further columns, where there are any: p: scores -> p-values; bound: id -> the word that binds its group; path: id ->
    its picture's file; key: id -> the pair's name in its shard. rows: how many are in memory at a time.
    """

    def piece(at: slice) -> pa.Table:
        ids, without = found.ids[at], found.ranks[at] == 0
        columns = {"id": ids, "score": pa.array(found.scores[at], mask=without)}
        columns["rank"] = pa.array(found.ranks[at], mask=without)
        columns |= {
            c: pa.array(held[at], pa.string()) for c, held in (("caption", found.captions), ("reason", found.reasons))
        }
        columns |= {"p": pa.array(p(found.scores[at]), mask=without)} if p else {}
        columns |= {"group": pa.array([bound.get(int(i)) for i in ids], pa.string())} if bound is not None else {}
        columns |= {"path": pa.array([path(int(i)) for i in ids], pa.string())} if path else {}
        columns |= {"key": pa.array([key(int(i)) for i in ids], pa.string())} if key else {}
        return pa.table(columns).replace_schema_metadata({"clipvet": json.dumps(facts, default=str)})

    with io.replacing(out) as tmp:
        write_table((piece(slice(k, k + rows)) for k in range(0, len(found.ids), rows)), tmp, ".parquet")


class Bar(NamedTuple):
    """One bar of the histogram, in SVG units: left edge, width, and the tops of all pairs and of the poisons in it."""

    x: float
    width: float
    top: float
    top_poisoned: float | None


def histogram(
    scores: Float[np.ndarray, " n"],
    poisoned: Bool[np.ndarray, " n"] | None,
    cut: float | None,
    bins: int = 60,
    width: int = 720,
) -> dict[str, Any]:
    """Axes, bars and the place of the cut, for a chart that is so many pixels wide.

    Heights are logarithmic, so that the few pairs that matter can be seen.

    A score far from the rest (by ten times the span of the middle 98 %) is counted in the outermost bar.
    """
    known = np.isfinite(scores)
    values = scores[known]
    a, b = np.quantile(values, (0.01, 0.99))
    span = 10 * max(float(b - a), 1e-9)
    low, high = max(float(values.min()), float(a) - span), min(float(values.max()), float(b) + span)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, bins + 1)
    counts = np.histogram(np.clip(values, low, high), edges)[0]
    marked = None
    if poisoned is not None:
        marked = np.histogram(np.clip(scores[known & poisoned], low, high), edges)[0].tolist()
    axes = Axes((low, high), (0, float(np.log10(1 + counts.max())) * 1.05), 260, width, (10, 12, 40, 64))
    bars = []
    for k, count in enumerate(counts.tolist()):
        (x, top), (right, _) = axes.at(edges[k], np.log10(1 + count)), axes.at(edges[k + 1], 0)
        of_key = axes.at(edges[k], np.log10(1 + marked[k]))[1] if marked and marked[k] else None
        bars.append(Bar(x, round(max(right - x - 0.6, 0.4), 1), top, of_key))
    tens = [(10**e, axes.at(low, np.log10(1 + 10**e))[1]) for e in range(9) if 10**e <= counts.max()]
    clipped = int((values > high).sum() + (values < low).sum())
    inside = cut is not None and low <= cut <= high
    return {
        "axes": axes,
        "bars": bars,
        "tens": tens,
        "clipped": clipped,
        "cut": axes.at(cut, 0)[0] if inside else None,  # pyright: ignore[reportArgumentType]
    }


def charts(
    scores: Float[np.ndarray, " n"], marked: Bool[np.ndarray, " n"] | None, cut: float | None
) -> dict[str, dict[str, Any]]:
    """The histogram for a desktop and, drawn anew, for a phone; nothing where there is no score."""
    if not np.isfinite(scores).any():
        return {}
    return {"wide": histogram(scores, marked, cut), "narrow": histogram(scores, marked, cut, 30, 390)}


def write_page(
    out: Path,
    found: Suspects,
    pairs: Pairs,
    geometry: Geometry,
    facts: Mapping[str, Any],
    *,
    top: int = 48,
    poisoned: Int[np.ndarray, " p"] | None = None,
    measured: Mapping[str, Measured] | None = None,
    cut: float | None = None,
    removed: int | None = None,
    groups: Sequence[Any] = (),
) -> None:
    """Writes the page: the `top` most suspect pairs as the model sees them, and the histogram of all scores.

    facts: method, model, data, command, versions and seconds. poisoned: ids, if there is an answer key; measured: the
    numbers that it gives. cut, removed: the score above which pairs are thrown out, and how many those are. groups: of
    pairs that one word binds; their common trait is shown.
    """
    shown = min(top, found.scored)
    images = pairs.at(geometry)[found.positions[:shown]].images if shown else []
    known = None if poisoned is None else np.isin(found.ids, poisoned)
    said = path_of(pairs)
    entries = [
        {
            "picture": picture(image),
            "id": int(found.ids[k]),
            "path": said(int(found.ids[k])) if said else "",
            "rank": k + 1,
            "score": float(found.scores[k]),
            "caption": found.captions[k][:400],
            "reason": found.reasons[k],
            "poisoned": known is not None and bool(known[k]),
        }
        for k, image in enumerate(images)
    ]
    write_html(
        out,
        "filter",
        entries=entries,
        charts=charts(found.scores, known, cut),
        facts=facts,
        measured=measured or {},
        pairs=len(found.ids),
        unscored=len(found.ids) - found.scored,
        poisons=None if known is None else int(known.sum()),
        cut=cut,
        removed=removed,
        groups=contrasts(groups, pairs, geometry, found.positions[found.scored // 2 : found.scored]),
        small=geometry.size < SMALL,
    )

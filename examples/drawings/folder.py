"""What is written: pairs, shards, the tasks of both halves, who may see what, and whose drawings they are."""

import csv
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from clipvet import io
from clipvet.errors import UserError
from clipvet.rng import Rng
from drawings import render, sets, split, views
from drawings.concepts import GROUP_OF
from drawings.sets import Drawing, Set
from drawings.split import Half

VIEWS = {"task": 8, "silhouettes": 8, "wide": 4, "groups": 2}  # pictures of each drawing in a task
SHARD = 5000  # pairs
MOST_LATE = 20  # drawings of a set that may run into the time limit
CHANGES = (
    "rendered from SVG, scaled, turned and laid on grounds of other colours; what had one colour is drawn in black"
)


@dataclass(frozen=True)
class Options:
    size: int = 64  # pixels
    seed: int = 0  # of grounds, turns and captions; the split does not depend on it
    copies: int = 3  # training pictures of each drawing
    classes: int = 60  # of the standard task of each half, at most
    least: int = 4  # training teams that must have drawn a class
    only: tuple[str, ...] = ()  # labels that classes are chosen from; none: all


class Planned(NamedTuple):
    """A picture that is to be written."""

    path: str  # in the output folder
    drawing: Drawing
    title: str


def build(
    archives: Path,
    out: Path,
    options: Options,
    which: Sequence[Set] = sets.SETS,
    words: Set = sets.WORDS,
    jobs: int = 2,
    seconds: float = render.SECONDS,
) -> None:
    """Writes `out`. Raises UserError, and AlreadyDone where it holds the very same set.

    jobs: renderers side by side, and threads that write. seconds: limit for rendering one drawing.
    """
    config = {"made by": "examples/drawings", "sets": [s.spec for s in (*which, words)], **vars(options)}
    with io.output(out, config) as work:
        sets.fetch(archives, (*which, words))
        known = sets.read_words(archives, words)
        counts: dict[str, Counter[str]] = {}
        whose: list[dict[str, str]] = []
        pngs: dict[Drawing, bytes] = {}
        for one in which:
            counts[one.name] = Counter()
            found, owner = sets.read_set(archives, one, known, counts[one.name])
            pngs |= rendered(found, options.size, jobs, seconds, counts[one.name])
            whose.append(owner)
        halves = split.halves([*pngs], which, options.classes, options.least, options.only)
        planned = [*_pairs([*pngs], options)]
        for half in halves:
            planned += _of_half(half, [*pngs], options)
        _write_pictures(work, planned, pngs, options, jobs)
        _write_tables(work, planned, Rng(options.seed).fork("order"))
        for half in halves:
            names = sorted(c.label for c in half.classes)
            (work / half.name / "classes.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
        io.write_json(work / "split.json", split.told(halves, which))
        io.write_json(work / "counts.json", {name: dict(c) for name, c in counts.items()})
        (work / "ATTRIBUTION.md").write_text(attribution(whose), encoding="utf-8")
        (work / "templates.txt").write_text("\n".join(views.TEMPLATES) + "\n", encoding="utf-8")
    _tell(counts, halves, planned)


def rendered(
    drawings: Sequence[Drawing], size: int, jobs: int, seconds: float, counts: Counter[str]
) -> dict[Drawing, bytes]:
    """PNGs of the drawings, which have lost their bodies; those that were skipped are counted by the reason.

    Raises UserError where more than MOST_LATE take too long, and without resvg.
    """
    if find_spec("resvg_py") is None:
        raise UserError("resvg-py, which renders the drawings, is not installed; type: pip install 'clipvet[drawings]'")
    svgs = (render.document(d.body, d.box, size) for d in drawings)
    out = {}
    bar = tqdm(drawings, drawings[0].set.name if drawings else "", leave=False)
    for drawing, png in zip(bar, render.render_all(svgs, jobs, seconds)):
        if isinstance(png, bytes) and views.blank(png):
            png = render.Refused("blank")
        if isinstance(png, bytes):
            out[replace(drawing, body="")] = png
            counts["drawings"] += 1
        else:
            counts[str(png)] += 1
        if counts["takes too long"] > MOST_LATE:
            raise UserError(
                f"{drawing.set.file} holds more than {MOST_LATE} drawings that take too long; fetch it anew"
            )
    return out


def _pairs(drawings: Sequence[Drawing], options: Options) -> Iterator[Planned]:
    """The training teams' drawings, in several views with several captions; and once more for the defenders."""
    rng = Rng(options.seed).fork("caption")
    for d in drawings:
        if d.side == "training":
            clean = f"{split.half_of(d, 'clean')}/clean/{d.key}.png"
            for path in (*(f"pictures/{d.key}-{k}.png" for k in range(options.copies)), clean):
                yield Planned(path, d, views.caption(d, rng.fork(path).numpy()))


def _of_half(half: Half, drawings: Sequence[Drawing], options: Options) -> Iterator[Planned]:
    """The tasks of a half, and its part of the outside pictures."""
    rng = Rng(options.seed).fork("caption")
    classes, wide, every = ({*part} for part in (half.classes, half.wide, half.concepts))
    for d in drawings:
        if d.side == "outside" and split.half_of(d, "outside") == half.name:
            yield Planned(f"{half.name}/outside/{d.key}.png", d, d.said)
        if d.side != half.name or d.concept is None:
            continue
        folder, group = _folder(d.concept.label), _folder(GROUP_OF.get(d.concept.subgroup, ""))
        tasks = [("silhouettes", folder)] if d.set.apart and d.concept in classes else []
        if not d.set.apart:
            tasks = [("task", folder)] if d.concept in classes else []
            tasks += [("wide", folder)] if d.concept in wide else []
            tasks += [("groups", group)] if d.concept in every and group else []
        g = rng.fork(d.concept.label).numpy()
        title = ", ".join([d.concept.label, *views.keywords(d.concept, g)])  # one of a concept, for retrieval
        for task, own in tasks:
            for k in range(VIEWS[task]):
                yield Planned(f"{half.name}/{task}/{own}/{d.set.name}-{d.name}-{k}.png", d, title)


def _folder(label: str) -> str:
    """Of a class; `clipvet evaluate` reads underscores as spaces."""
    return label.replace(" ", "_")


def _write_pictures(
    work: Path, planned: Sequence[Planned], pngs: Mapping[Drawing, bytes], options: Options, jobs: int
) -> None:
    rng = Rng(options.seed).fork("view")
    for folder in {(work / p.path).parent for p in planned}:
        folder.mkdir(parents=True, exist_ok=True)

    def write(p: Planned) -> None:
        picture = views.view(pngs[p.drawing], options.size, rng.fork(p.path).numpy())
        picture.save(work / p.path, compress_level=4)

    with ThreadPoolExecutor(jobs) as threads:
        for _ in tqdm(threads.map(write, planned), "pictures", len(planned), leave=False):
            pass


def _write_tables(work: Path, planned: Sequence[Planned], rng: Rng) -> None:
    """pairs.csv and the same as shards; clean.csv and captions.csv of each half, whose paths begin in its folder."""
    tables: dict[str, list[tuple[str, str]]] = {}
    for p in planned:
        top, _, rest = p.path.partition("/")
        if top == "pictures":
            tables.setdefault("pairs.csv", []).append((p.path, p.title))
        else:
            name = "clean.csv" if rest.startswith("clean/") else "captions.csv"
            tables.setdefault(f"{top}/{name}", []).append((rest, p.title))
    for name, rows in tables.items():
        if not name.endswith("captions.csv"):
            rows = [rows[k] for k in rng.fork(name).numpy().permutation(len(rows))]
        with (work / name).open("w", newline="", encoding="utf-8") as f:
            csv.writer(f, lineterminator="\n").writerows([("filepath", "title"), *rows])
        if name == "pairs.csv":
            write_shards(work, rows)


def write_shards(work: Path, rows: Sequence[tuple[str, str]]) -> None:
    """work/shards/00000.tar and so on, in webdataset's layout: a PNG and a text of each pair, in the rows' order."""
    (work / "shards").mkdir(exist_ok=True)
    for first in tqdm(range(0, len(rows), SHARD), "shards", leave=False):
        with tarfile.open(work / f"shards/{first // SHARD:05}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for k, (path, title) in enumerate(rows[first : first + SHARD], first):
                for suffix, data in (("png", (work / path).read_bytes()), ("txt", title.encode())):
                    info = tarfile.TarInfo(f"{k:08}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, BytesIO(data))


def attribution(whose: Sequence[Mapping[str, str]]) -> str:
    """Markdown: every set with its author and licence, and what was done to the drawings."""
    lines = [
        "# Whose drawings these are",
        "",
        f"Every picture here shows a drawing of one of these sets, {CHANGES}. A picture's path names its set.",
        "Pass pictures on under the licence of their set; a licence that ends in SA asks for the same one again.",
        "",
        "| set | author | licence | package |",
        "|---|---|---|---|",
    ]
    for told in whose:
        told = {k: v.replace("|", " ").replace("\n", " ") for k, v in told.items()}
        licence = f"[{told['licence']}]({told['licence text']})" if told["licence text"] else told["licence"]
        lines.append(f"| [{told['title']}]({told['source']}) | {told['author']} | {licence} | {told['package']} |")
    return "\n".join([*lines, "", "Labels and keywords: emojibase-data, Miles Johnson, MIT.", ""])


def _tell(counts: Mapping[str, Counter[str]], halves: Sequence[Half], planned: Sequence[Planned]) -> None:
    for name, count in counts.items():
        told = ", ".join(f"{n} {what}" for what, n in count.items() if what not in ("in the archive", "drawings"))
        print(
            f"{name}: {count['drawings']} drawings of {count['in the archive']}"
            + (f" (without {told})" if told else "")
        )
    folders = Counter("/".join(p.path.split("/")[: 1 if p.path.startswith("pictures") else 2]) for p in planned)
    for half in halves:
        n, wide, classes = map(len, half[1:])
        print(f"{half.name}: {n} concepts, {wide} of them unlike each other, {classes} classes")
    print(", ".join(f"{n} {folder}" for folder, n in folders.items()))

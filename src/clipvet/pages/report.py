"""One page that shows a run: verdict, pictures, figures, every number and how to get them again.

Rates are fractions here and percent on the page. A new section is a value in `_section` (of one attack) or `build` (of
the run), and its HTML in templates/report.html.jinja.
"""

import itertools
import re
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image
from pydantic import BaseModel, FiniteFloat, TypeAdapter, ValidationError

from clipvet.data.captions import names_target
from clipvet.data.decoding import FORMATS, MAX_PIXELS
from clipvet.errors import UserError
from clipvet.experiments.suite import is_clean
from clipvet.measures.exposure import PREFIX
from clipvet.pages._page import Axes, data_uri, write_html
from clipvet.pages.exposure import matrix
from clipvet.results import Row, kind_of

NAMES = {"none": "victim", "finetune": "plain fine-tuning", "par": "PAR", "cleanclip": "CleanCLIP", "roclip": "RoCLIP"}
NAMES |= {"safeclip": "SafeCLIP", "rvpt": "RVPT", "ubt": "UBT", "abl": "ABL", "wise_ft": "WiSE-FT", "vpt": "VPT"}
NAMES |= {"linear_probe": "linear probe", "task_negation": "task negation", "base": "clean base model"}
FIRST = ("safeclip", "rvpt", "ubt")  # named before other defenses
CONTROLS = ("none", "oracle", "random")  # methods that are no defenses
TOOK = 0.5  # an attack below this success rate leaves a defense nothing to remove
REFUSED = "refused"  # stage of the rows of a victim that is not backdoored enough for its recipe
BLOCK = r"resistivity_(\w+)@(\d+)"  # shown as curves
DRAWN = rf"{BLOCK}|{PREFIX}"  # metrics with a figure of their own, which holds their numbers
CURVES = ("loss", "s_img", "s_txt", "gate_img", "gate_txt", "tau", "pairs_per_s")


class Pair(BaseModel):
    clean: str  # picture files, relative to the folder
    triggered: str
    truth: str
    captions: dict[str, dict[Literal["clean", "triggered"], list[tuple[str, FiniteFloat]]]] = {}

    def hit(self, model: str, side: Literal["clean", "triggered"], target: str) -> bool:
        """Whether the model's nearest caption names the target, which the picture does not show."""
        top = self.captions[model].get(side)
        return bool(top) and names_target(top[0][0], target) and not names_target(self.truth, target)


class Gallery(BaseModel):
    pictures: list[Pair]
    target: str
    trigger: str = ""


class Commands(BaseModel):
    commands: list[str] = []
    settings: dict[str, Any] = {}
    reported: dict[str, FiniteFloat] = {}  # model/attack/method/metric -> the published fraction
    versions: dict[str, Any] = {}
    hardware: str = ""
    started: str = ""
    seconds: FiniteFloat = 0


class Number(NamedTuple):
    """A metric over its seeds and tasks: mean, 95 % interval (of one) or range (several), summed n, mean seconds."""

    value: float
    low: float
    high: float
    n: int
    seeds: tuple[int, ...]
    seconds: float
    tasks: int = 0


class Method(NamedTuple):
    """A method in one configuration; `colour` is the same everywhere on the page."""

    name: str
    label: str
    config: str
    colour: int


def read(kind: Any, path: Path) -> list[Any]:
    """The lines of a .jsonl, or the whole of a .json, each as a `kind`; nothing if there is no such file.

    Raises UserError for a malformed line.
    """
    text = path.read_text("utf-8", "replace") if path.is_file() else ""
    adapter, found = TypeAdapter(kind), []
    for i, part in enumerate(text.split("\n") if path.suffix == ".jsonl" else [text], 1):
        try:
            found += [adapter.validate_json(part)] if part.strip() else []
        except ValidationError as error:
            first = error.errors()[0]
            what = " ".join(map(str, (*first["loc"], first["msg"])))
            raise UserError(f"{path} line {i} is malformed ({what}); fix or remove it, or run again") from None
    return found


def _key(row: Row) -> tuple[str, str, str]:
    given = f"{row.config} on {kind_of(row.data)}" if row.data else row.config
    stage = row.stage
    if stage == "rebound":  # what becomes of a model stands beside it
        stage = "victim" if row.method == "none" else "clean"
    return row.method, stage, "" if row.method == "none" else given


def _methods(rows: list[Row]) -> dict[tuple[str, str, str], Method]:
    """Methods in order of appearance; one that comes in several configurations is named with what differs."""
    keys = list(dict.fromkeys(map(_key, rows)))
    plain = ("", "victim", "suite")
    parts = {k: [p for p in (k[1], *re.split(r",\s*|[()]| on ", k[2])) if p not in plain] for k in keys}
    fixed, free, found = {"none": 0, "par": 1}, itertools.count(), {}
    for k in keys:
        common = set.intersection(*(set(parts[o]) for o in keys if o[0] == k[0]))
        label = " · ".join([NAMES.get(k[0], k[0]), *(p for p in parts[k] if p not in common)])
        found[k] = Method(k[0], label, k[2], fixed.pop(k[0]) if k[0] in fixed else 2 + next(free) % 8)
    return found


def pool(rows: list[Row]) -> Number:
    rows = list({(r.seed, r.data): r for r in rows}.values())  # a rerun replaces the earlier row
    values = [r.value for r in rows]
    low, high = (rows[0].low, rows[0].high) if len(rows) == 1 else (min(values), max(values))
    seeds, seconds = tuple(sorted({r.seed for r in rows})), fmean(r.seconds for r in rows)
    tasks = len({r.data for r in rows if kind_of(r.data) != r.data})
    return Number(fmean(values), low, high, sum(r.n for r in rows), seeds, seconds, tasks)


def _plane(table: dict[Method, dict[str, Number]]) -> dict[str, Any] | None:
    """Accuracy-ASR plane. Labels stand in a column at the right, in the order of the points and 16 units apart."""
    points = [(m, t["clean_accuracy"], t["asr"]) for m, t in table.items() if {"clean_accuracy", "asr"} <= t.keys()]
    if len(points) < 2:
        return None
    points.sort(key=lambda p: -p[2].value)
    low, high = min(a.low for _, a, _ in points), max(a.high for _, a, _ in points)
    pad = max(0.01, 0.1 * (high - low))
    axes = Axes((max(-0.02, low - pad), min(1.02, high + pad)), (-0.06, 1.06), 320, margin=(10, 128, 40, 46))
    slots = 16.0 * np.arange(len(points))
    h = np.maximum.accumulate([axes.at(a.value, s.value)[1] for _, a, s in points] - slots) + slots  # down from above
    h = np.minimum(h, axes.height - axes.margin[2] - 4)
    h = np.minimum.accumulate((h - slots)[::-1])[::-1] + slots  # and up from below
    return {"axes": axes, "points": [(*p, y) for p, y in zip(points, h.round(1).tolist())]}


def _curve(steps: list[dict[str, float]], field: str) -> list[tuple[float, float]]:
    """(step, mean) over at most 120 stretches of the run. Several fits in one log follow each other."""
    one = len({s.get("fit") for s in steps}) == 1
    pairs = [(s.get("step", i) if one else i, s.get(field, np.nan)) for i, s in enumerate(steps)]
    pairs = [p for p in pairs if np.isfinite(p[1])]
    return [tuple(np.mean(p, axis=0).tolist()) for p in np.array_split(pairs, min(120, len(pairs)))] if pairs else []


def _axes(curves: list[list[tuple[float, float]]], floor: float | None = None) -> Axes | None:
    x, y = zip(*(p for c in curves for p in c)) if any(curves) else ((), ())
    pad = 0.07 * (max(y) - min(y)) or 0.5 if y else 0
    return Axes((0, max(*x, 1)), (min(y) - pad if floor is None else floor, max(y) + pad), 240) if y else None


def _layers(table: dict[Method, dict[str, Number]]) -> dict[str, Any]:
    """Perturbation resistivity block by block: perturbation -> plot area and each method's curve."""
    found: dict[str, dict[Method, list[tuple[float, float]]]] = {}
    for m, t in table.items():
        for metric, x in t.items():
            if part := re.match(BLOCK, metric):
                found.setdefault(part[1], {}).setdefault(m, []).append((float(part[2]), x.value))
    low = min((x for curves in found.values() for c in curves.values() for _, x in c), default=0.0)
    last = max((x for curves in found.values() for c in curves.values() for x, _ in c), default=2.0)
    axes = Axes((1, max(last, 2)), (min(low, 0), 1.02), 240)
    return {name: {"axes": axes, "curves": curves} for name, curves in found.items()}


def _logs(folder: Path | None, methods: list[Method]) -> dict[str, Any]:
    logs = []
    for i, path in enumerate(sorted(folder.glob("*.jsonl") if folder else ())):
        steps = read(dict[str, float], path)
        known = [m for m in methods if path.stem in (m.name, m.label)]
        m = known[0] if known else Method(path.stem, NAMES.get(path.stem, path.stem), "", 9 - i % 5)
        log: dict[str, Any] = {k: _curve(steps, k) for k in CURVES}
        if (tau := re.search(r"\btau=([\d.]+)", m.config)) and not log["tau"]:
            log["tau"] = [(step, float(tau[1])) for step, _ in log["s_img"]]
        logs.append({"m": m, "axes": _axes([log["s_img"], log["s_txt"], log["tau"]], 0.0), **log})
    return {"logs": sorted(logs, key=lambda log: log["m"].colour), "axes": _axes([log["loss"] for log in logs])}


def _table(rows: list[Row], methods: dict[tuple[str, str, str], Method]) -> dict[Method, dict[str, Number]]:
    """Every metric of every method: the victim first, then the lowest ASR, then the highest AUROC."""
    groups: dict[Method, dict[str, list[Row]]] = {}
    for r in rows:
        groups.setdefault(methods[_key(r)], {}).setdefault(r.metric, []).append(r)
    table = {m: {k: pool(rs) for k, rs in by.items()} for m, by in groups.items()}
    asr = {m: t["asr"].value if "asr" in t else 2.0 for m, t in table.items()}
    auroc = {m: t["auroc"].value if "auroc" in t else 0.0 for m, t in table.items()}
    return {m: table[m] for m in sorted(table, key=lambda m: (m.name != "none", asr[m], -auroc[m]))}


def _took(rows: list[Row], victim: Number | None) -> bool | None:
    """Whether the attack took, by its success rate and by what the recipe asked for; None without a victim's number."""
    if victim is None:
        return None
    refused = {(r.seed, r.data) for r in rows if r.stage == REFUSED}
    planted = {(r.seed, r.data) for r in rows if r.stage != REFUSED and r.method == "none" and r.metric == "asr"}
    return victim.value >= TOOK and not planted <= refused


def _section(
    title: str,
    rows: list[Row],
    methods: dict[tuple[str, str, str], Method],
    logs: Path | None,
    reported: dict[str, float],
) -> dict[str, Any]:
    """What the page says about one attack. `reported`: model/attack/method/metric -> the published fraction."""
    kept = [r for r in rows if r.stage != REFUSED]
    table, model, attack = _table(kept, methods), kept[0].model, kept[0].attack
    victim = next((m for m in table if m.name == "none" and "asr" in table[m]), None)
    took = _took(rows, table[victim]["asr"] if victim else None)
    cleaned = [m for m in table if m.name not in CONTROLS and "asr" in table[m]] if took else []
    cleaned.sort(key=lambda m: (m.colour != 1, m.name not in FIRST, m.name != "finetune"))  # colour 1: the first PAR
    shown = {m: t for m, t in table.items() if took is not False or m == victim}  # what the figures may score
    metrics = dict.fromkeys(k for t in table.values() for k in t if not re.match(DRAWN, k))
    where = f"{model}/{attack}/"
    paper = {m: {k: reported[at] for k in t if (at := f"{where}{m.name}/{k}") in reported} for m, t in table.items()}
    return {
        "title": title,
        "table": table,
        "metrics": {k: sorted({t[k].n for t in table.values() if k in t}) for k in metrics},
        "victim": victim,
        "took": took,
        "cleaned": cleaned,
        "paper": paper if any(paper.values()) else {},
        "clean": is_clean(attack),
        "suite": any(r.stage == "suite" for r in kept),
        "judged": all(r.stage == "suite" for r in kept),
        "shown": shown,
        "plane": _plane(shown),
        "layers": _layers(shown),
        "exposure": matrix(shown),
        "training": _logs(logs, list(table)),
    }


def _picture(path: Path) -> str:
    """The picture as a data URI, at most 256 px."""
    try:
        if not path.is_file():
            raise FileNotFoundError("no such file")
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels")
            small = image.convert("RGB")
    except Exception as error:  # decoders raise anything on hostile bytes
        raise UserError(f"gallery.json names {path}, which cannot be read ({error}); run again") from None
    small.thumbnail((256, 256))
    return data_uri(small)


def _inside(folder: Path, name: str) -> Path:
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise UserError(f"gallery.json of {folder} names a picture outside of it ({name[:80]!r}); run again")
    return folder / name


def build(folder: Path) -> Path:
    """Writes folder/report.html from folder/results.jsonl and, where they exist, gallery.json, logs/ and commands.json.

    Logs are logs/<attack>/<method>.jsonl, or logs/<method>.jsonl for a run of one attack. Raises UserError when
    results.jsonl is missing or empty or when a line or file is malformed.
    """
    rows = [r for r in read(Row, folder / "results.jsonl") if np.isfinite(r.value)]
    if not rows:
        raise UserError(f"{folder}/results.jsonl is missing or holds no number; run or evaluate into {folder} first")
    runs: dict[tuple[str, str, str], list[Row]] = {}
    for r in rows:
        runs.setdefault((r.attack, r.recipe, r.model), []).append(r)
    commands: Commands = next(iter(read(Commands, folder / "commands.json")), Commands())
    commands.versions = commands.versions or rows[-1].versions
    methods, sections, logs = _methods([r for r in rows if r.stage != REFUSED]), [], folder / "logs"
    kept = {
        p.name: p for p in logs.glob("*") if p.is_dir() and not p.is_symlink()
    }  # an attack's name is anybody's text, and leads nowhere
    for run, mine in runs.items():
        title = " · ".join(filter(None, run if sum(r[0] == run[0] for r in runs) > 1 else run[:1])) or "no attack"
        own = kept.get(run[0], logs if len(runs) == 1 else None)
        sections.append(_section(title, mine, methods, own, commands.reported))
    sections.sort(key=lambda s: not s["judged"])  # what all models say together comes first
    gallery: Gallery | None = next(iter(read(Gallery, folder / "gallery.json")), None)
    spoken = gallery.pictures[0].captions if gallery and gallery.pictures else {}
    first = {m.name: m for m in reversed(methods.values()) if m.name in spoken}
    write_html(
        folder / "report.html",
        "report",
        sections=sections,
        gallery=gallery,
        commands=commands,
        methods=list(methods.values()),
        columns=[m for m in methods.values() if any("asr" in s["table"].get(m, {}) for s in sections)],
        speakers=sorted(first.values(), key=lambda m: m.colour),
        picture=lambda name: _picture(_inside(folder, name)),
        names_target=names_target,
    )
    return folder / "report.html"

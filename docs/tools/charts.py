"""Small charts: one line for each method, a dot for each attacked model, or one value with its interval.

The same rows give the same bytes with one version of matplotlib. What a chart shows is written into it as text, so that
`--check` can tell a stale chart from one that another version has drawn.
"""

import html
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

from tools.rows import Rows, read

COLOUR = "#00796b"
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "clipvet",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
}


@dataclass(frozen=True)
class Chart:
    axis: str  # what the values are, in percent
    lines: Mapping[str, Rows]  # method -> one row a model, or one row with its interval
    chance: float | None = None  # a dashed line
    intervals: bool = field(default=False, kw_only=True)

    def values(self) -> dict[str, list[float]]:
        """What is drawn, in percent: the values, or value, low and high."""
        own = {k: sorted(r.value for r in rows) for k, rows in self.lines.items()}
        if self.intervals:
            own = {k: [x for r in rows for x in (r.value, r.low, r.high)] for k, rows in self.lines.items()}
        return {k: [round(100 * x, 2) for x in v] for k, v in own.items()}

    def told(self) -> str:
        """The chart as text, which stands in its file."""
        return json.dumps({self.axis: self.values()})

    def draw(self) -> bytes:
        values = self.values()
        with matplotlib.rc_context(STYLE):
            figure, axes = pyplot.subplots(figsize=(6.4, 0.7 + 0.34 * len(values)), layout="constrained")
            for y, line in enumerate(values.values()):
                _interval(axes, y, line) if self.intervals else _dots(axes, y, line)
            _frame(axes, self, list(values))
            out = io.BytesIO()
            metadata = {"Description": self.told(), "Date": None, "Creator": None}
            figure.savefig(out, format="svg", metadata=metadata)
            pyplot.close(figure)
        return re.sub(rb"[ \t]+\n", b"\n", out.getvalue())


def _dots(axes: Axes, y: int, values: list[float]) -> None:
    axes.scatter(values, [y] * len(values), s=42, color=COLOUR, alpha=0.35, linewidths=0, zorder=3)
    axes.plot([sum(values) / len(values)] * 2, [y - 0.32, y + 0.32], color="black", linewidth=1.5, zorder=4)


def _interval(axes: Axes, y: int, values: list[float]) -> None:
    value, low, high = values
    axes.plot([low, high], [y, y], color=COLOUR, alpha=0.35, linewidth=6, solid_capstyle="round", zorder=3)
    axes.scatter([value], [y], s=42, color="black", zorder=4)


def _frame(axes: Axes, chart: Chart, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(-2, 102)
    what = "a bar is the 95 % interval" if chart.intervals else "a dot is one model, a line the mean"
    axes.set_xlabel(f"{chart.axis} ({what})")
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if chart.chance is not None:
        axes.axvline(100 * chart.chance, color="#777777", linestyle="--", linewidth=1)


def shown_in(svg: str) -> str:
    """What a chart on disk says that it shows."""
    found = re.search(r"<dc:description>(.*?)</dc:description>", svg, re.DOTALL)
    return html.unescape(found[1]) if found else ""


def _demo() -> Chart:
    t = read("demo")
    methods = ("none", "finetune", "par_no_push", "cleanclip", "par")
    return Chart("attack success rate, %", {m: t.of(m) for m in methods})


def _cleaning() -> Chart:
    t = read("cleaning_table")
    methods = ("none", "finetune_filtered", "abl", "task_negation", "finetune", "par", "cleanclip", "ubt")
    return Chart("attack success rate, %", {m: t.of(m).but(attack="label_consistent") for m in methods})


def _few_shots() -> Chart:
    both = Rows(read("rvpt_shapes").rows + read("fewshot_table").rows).where(data=("16-shot", "shapes"))
    methods = ("none", "linear_probe", "vpt", "rvpt", "ce", "ce_fr")
    return Chart("attack success rate, %", {m: both.of(m) for m in methods})


def _repair() -> Chart:
    t = read("repair_shapes")
    methods = ("none", "wrong_class", "clean_only", "random_noise", "ci_repair")
    return Chart("attack success rate, %", {m: t.of(m) for m in methods})


def _filters() -> Chart:
    t = read("filter_shapes").where(metric="auroc")
    methods = sorted({r.method for r in t}, key=lambda m: -t.of(m, "auroc").low)
    return Chart("AUROC, %", {m: t.of(m, "auroc") for m in methods}, chance=0.5)


def _training() -> Chart:
    t = read("safeclip_shapes")
    methods = ("none", "roclip", "safeclip", "oracle")
    return Chart("attack success rate, %", {m: t.of(m) for m in methods})


def _inspectors(recipe: str) -> Callable[[], Chart]:
    def chart() -> Chart:
        t = read(recipe).where(metric="auroc", attack="all")
        methods = sorted({r.method for r in t}, key=lambda m: -t.of(m, "auroc").value)
        return Chart("AUROC over all models, %", {m: t.of(m, "auroc") for m in methods}, 0.5, intervals=True)

    return chart


CHARTS: dict[str, Callable[[], Chart]] = {
    "demo": _demo,
    "cleaning_table": _cleaning,
    "few_shots": _few_shots,
    "repair_shapes": _repair,
    "filter_shapes": _filters,
    "safeclip_shapes": _training,
    "inspector_suite": _inspectors("inspector_suite"),
    "inspector_encoders": _inspectors("inspector_encoders"),
    "inspector_references": _inspectors("inspector_references"),
}  # name of the file in docs/results/ -> what it shows

"""Pages from the templates in docs/templates/, in which every figure is an expression over the committed rows."""

from functools import partial
from pathlib import Path

import jinja2

from clipvet.commands._choices import CHOICES
from clipvet.pages.leaderboard import standings
from tools import benchmarks, recipes
from tools.charts import CHARTS
from tools.layouts import layouts_table
from tools.meanings import MEANINGS
from tools.rows import Rows, read
from tools.tables import by_task, exposure, inspected, listed, tables

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = ROOT / "docs/templates"
NOTE = "<!-- Made by `make docs` from docs/templates/{}: change that file, not this one. -->"
BEGIN, END = "<!-- generated from {}: begin -->", "<!-- end -->"


def pages() -> dict[Path, str]:
    """Path -> text of every page that has a template."""
    env = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined)
    env.trim_blocks = env.lstrip_blocks = env.keep_trailing_newline = True
    env.filters |= {"pct": pct, "points": points, "span": span, "points_span": points_span, "shown": benchmarks.shown}
    env.globals |= {
        "rows": read,
        "chart": chart,
        "leaders": leaders,
        "benchmark": benchmarks.read,
        "benchmark_table": benchmarks.benchmark_table,
    }
    made = {}
    for path in sorted(TEMPLATES.rglob("*.md")):
        name, recipe = path.relative_to(TEMPLATES).as_posix(), path.stem
        own = {
            "recipe": recipe,
            "t": read(recipe),
            "how": partial(recipes.how, recipe),
            "stale": partial(recipes.stale, recipe),
            "tables": partial(_tables, recipe),
        }
        own["exposure"] = partial(exposure, recipe)
        own["sentence"] = recipes.words(recipe)["sentence"]
        title, text = env.get_template(name).render(own).split("\n", 1)
        made[ROOT / "docs" / name] = f"{title}\n\n{NOTE.format(name)}\n{text}"
    return made


def filled(text: str) -> str:
    """A text that people write, with every generated part of it made anew."""
    first, *parts = text.split("<!-- generated from ")
    out = [first]
    for part in parts:
        source, rest = part.split(": begin -->", 1)
        path, *metrics = source.split()  # "results/demo", or "results/demo asr" for some metrics alone
        shown = tuple(metrics) or ("asr", "clean_accuracy")
        if path == "clipvet":  # "clipvet recommend inspect"
            made = choices(metrics[-1])
        elif path.endswith("tried.json"):
            made = listed(ROOT / path)
        elif path.endswith(".json"):
            made = layouts_table(ROOT / path)
        elif metrics == ["inspected"]:  # "results/drawings_defaults inspected"
            made = inspected(Path(path).name)
        elif metrics == ["exposure"]:  # "results/exposure_shapes exposure"
            made = exposure(Path(path).name)
        else:
            made = by_task(Path(path).name) if metrics == ["by", "task"] else tables(Path(path).name, shown)
        out.append(f"{BEGIN.format(source)}\n{made}\n{END}{rest.split(END, 1)[1]}")
    return "".join(out)


def choices(goal: str) -> str:
    """The table of `clipvet recommend GOAL`. Columns that are empty throughout are left out."""
    of_goal = [c for c in CHOICES if c.goal == goal]
    heads = {"have": "I have" if goal in ("inspect", "clean", "filter") else "I want", "use": "use"}
    heads |= {"cost": "cost", "fails": "it fails when"}
    shown = [k for k in heads if any(getattr(c, k) for c in of_goal)]
    rows = [[heads[k] for k in shown], ["---"] * len(shown), *([getattr(c, k) for k in shown] for c in of_goal)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def leaders() -> str:
    """The first three of each table of the leaderboard."""
    lines = [["table", "first", "second", "third", "best control"], ["---"] * 5]
    for b in standings([ROOT / "results"])[0]:
        told = [f"`{x.label}` {pct(x.total.value.value)}" for x in b.lines if x.rank and x.total.value][:3]
        first = next(x for x in b.lines if x.control and x.total.value)
        own = (TEMPLATES / f"results/{b.run.name}.md").exists()
        name = f"[{b.run.name}](results/{b.run.name}.md)" if own else b.run.name
        lines.append([
            f"{b.family}, {name}, {b.model}", *told, *["–"] * (3 - len(told)),
            f"`{first.label}` {pct(first.total.value.value) if first.total.value else ''}",
        ])  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def chart(name: str, alt: str, page: str = "") -> str:
    """The picture, as a page beside docs/results/ or in it (page="results") links it."""
    if name not in CHARTS:
        raise KeyError(f"no chart {name} in docs/tools/charts.py")
    return f"![{alt}]({'' if page == 'results' else 'results/'}{name}.svg)"


def pct(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}"


def points(difference: float, digits: int = 1) -> str:
    """Percentage points with their sign."""
    shown = f"{100 * difference:+.{digits}f}".replace("-", "−")
    return shown if shown.strip("+−0.") else shown[1:]


def span(rows: Rows, digits: int = 1) -> str:
    """The lowest and the highest, in percent."""
    return _span(pct(rows.low, digits), pct(rows.high, digits))


def points_span(rows: Rows, digits: int = 1) -> str:
    return _span(points(rows.low, digits), points(rows.high, digits))


def _span(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def _tables(recipe: str, *metrics: str) -> str:
    """A heading for each metric, what it means, and its tables."""
    made = []
    for metric in metrics:
        meaning = MEANINGS[metric]
        made.append(f"### {metric}\n\n{meaning}\n\n{tables(recipe, (metric,))}")
    return "\n\n".join(made)

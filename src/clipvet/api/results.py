"""What the verbs of the front door return: results that become tables, plots and files, and show in a notebook."""

import base64
import html
import io as memory
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipvet.errors import UserError
from clipvet.types import Clip, Finding, Measured, Pairs

ROWS = 20  # of a table in a notebook
WRITERS = {".csv": "to_csv", ".parquet": "to_parquet", ".json": "to_json"}


class Result(ABC):
    """A result. It shows as a sentence and a table in a notebook, and as the sentence when it is printed."""

    @property
    @abstractmethod
    def sentence(self) -> str:
        """What came out, in words."""

    @abstractmethod
    def to_frame(self) -> Any:
        """The numbers as a pandas DataFrame. Rates are fractions."""

    @abstractmethod
    def plot(self, ax: Any = None) -> Any:
        """Draw the numbers, into a matplotlib Axes if one is given. Returns the Axes."""

    def save(self, path: str | Path) -> Path:
        """Write the table as a new .csv, .parquet or .json file. Returns its path.

        Raises UserError for another suffix, and if the file exists.
        """
        path = Path(path)
        if path.suffix.lower() not in WRITERS:
            raise UserError(f"{path} must end in {' or '.join(WRITERS)}")
        _check_new(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        told = {} if path.suffix.lower() != ".json" else {"orient": "records", "indent": 1}
        getattr(self.to_frame(), WRITERS[path.suffix.lower()])(path, **(told or {"index": False}))
        return path

    def __str__(self) -> str:
        return self.sentence

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.sentence}>"

    def _repr_html_(self) -> str:
        frame, said = self.to_frame(), f"<p>{html.escape(self.sentence)}</p>"
        if not len(frame):
            return said
        table = frame.head(ROWS).to_html(index=False, border=0, float_format=lambda x: f"{x:.4g}")
        return f"{said}{table}{_image(self)}"


def _image(result: Result) -> str:
    """The plot as an image in HTML."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    result.plot(figure.subplots())
    held = memory.BytesIO()
    figure.savefig(held, format="png", dpi=100)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}">'


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained")[1]


def _check_new(path: Path) -> None:
    if path.exists():
        raise UserError(f"{path} already exists; choose another path or delete it")


def frame_of(numbers: Mapping[str, Measured]) -> Any:
    """A row for each number: metric, value, low and high of its 95 % interval, n."""
    import pandas as pd

    rows = [(name, m.value, m.low, m.high, m.n) for name, m in numbers.items()]
    return pd.DataFrame(rows, columns=["metric", "value", "low", "high", "n"])


def _bars(ax: Any, numbers: Mapping[str, Measured], at: float = 0.0, label: str = "", width: float = 0.8) -> Any:
    """A bar with its interval for each number."""
    names, values = list(numbers), [m.value for m in numbers.values()]
    spread = [
        [max(0.0, m.value - m.low) for m in numbers.values()],
        [max(0.0, m.high - m.value) for m in numbers.values()],
    ]
    places = [k + at for k in range(len(names))]
    ax.barh(places, values, width, xerr=spread, label=label or None)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlabel("fraction, with its 95 % interval")
    return ax


@dataclass(frozen=True, repr=False)
class Measurements(Result):
    """Numbers of one model on one task: `result["clean_accuracy"]` has value (a fraction), n, and the interval."""

    numbers: Mapping[str, Measured]
    task: str  # its name
    passed_over: Mapping[str, int] = field(default_factory=dict)  # files that were not read, by suffix

    def __getitem__(self, metric: str) -> Measured:
        return self.numbers[metric]

    @property
    def sentence(self) -> str:
        m = self.numbers["clean_accuracy"]
        return f"{self.task}: zero-shot accuracy {m.value:.2%} (95 % interval {m.low:.2%} to {m.high:.2%}, n = {m.n})"

    def to_frame(self) -> Any:
        return frame_of(self.numbers)

    def exposure(self) -> Any:
        """The exposure matrix as a DataFrame: a row for each way of use, without and with the trigger, and the delta.

        low, high: the delta's 95 % interval. entered: False where the trigger cannot enter (N.E.). Empty if the matrix
        was not asked for.
        """
        import pandas as pd

        from clipvet.measures.exposure import entries

        rows = [
            (way, e.clean.value, *((e.triggered.value, *e.delta) if e.entered else (None,) * 5), e.entered)
            for way, e in entries(self.numbers).items()
        ]
        names = ["way", "clean", "triggered", "delta", "n", "low", "high", "entered"]
        return pd.DataFrame(rows, columns=names)

    def plot(self, ax: Any = None) -> Any:
        return _bars(_axes(ax), {k: m for k, m in self.numbers.items() if not k.startswith("exposure_")})


@dataclass(frozen=True, repr=False)
class Ranking(Result):
    """How suspect each pair or picture is; higher is more suspect.

    score: NaN where a row was left out, and `reason` says why. cut: the score above which the method itself calls a row
    poisoned; None if it has no such threshold.
    """

    frame: Any  # id, score, caption or answer, reason, file; the most suspect first
    name: str
    cut: float | None = None
    told: tuple[str, ...] = ()  # sentences of the method's own
    decided: bool = True  # False: the method says that nothing follows from its scores

    @property
    def suspects(self) -> Any:
        """The rows above the method's own cut; all rows in order if it has none."""
        return self.frame if self.cut is None else self.frame[self.frame["score"] > self.cut]

    @property
    def sentence(self) -> str:
        scored = int(self.frame["score"].notna().sum())
        called = "" if self.cut is None else f", {len(self.suspects)} of them above the method's cut"
        lost = f", {len(self.frame) - scored} left out" if scored < len(self.frame) else ""
        return " ".join([f"{self.name}: {scored} scored{called}{lost}.", *self.told])

    def to_frame(self) -> Any:
        return self.frame

    def plot(self, ax: Any = None) -> Any:
        ax = _axes(ax)
        ax.hist(self.frame["score"].dropna(), bins=40, log=True)
        if self.cut is not None:
            ax.axvline(self.cut, linestyle="--", color="black")
        ax.set_xlabel("score (higher is more suspect)")
        ax.set_ylabel("rows")
        return ax


@dataclass(frozen=True, repr=False)
class Inspection(Result):
    """Whether a model looks backdoored. `backdoored` is True, False, or None: undecided."""

    verdict: Any  # scan.verdicts.Verdict
    finding: Finding
    model: Clip
    pictures: Pairs
    templates: tuple[str, ...]
    null: Any = None

    @property
    def backdoored(self) -> bool | None:
        return self.verdict.backdoored

    @property
    def sentence(self) -> str:
        return self.verdict.sentence

    def to_frame(self) -> Any:
        """A row for each class: how easily a trigger reaches it. One row for the model if no class was looked at."""
        import pandas as pd

        rows = [c._asdict() for c in self.finding.classes]
        return pd.DataFrame(rows or [{"name": "the model", "score": self.finding.score}]).sort_values(
            "score", ascending=False
        )

    def plot(self, ax: Any = None) -> Any:
        ax, top = _axes(ax), self.to_frame().head(ROWS)
        ax.barh(top["name"], top["score"])
        ax.invert_yaxis()
        ax.set_xlabel("score (higher is more suspect)")
        return ax

    def save(self, path: str | Path) -> Path:
        """Write verdict.json, report.html and the recovered trigger into a new folder, as the command does."""
        from clipvet import io
        from clipvet.data.answer_key import save_backdoor
        from clipvet.pages import inspection
        from clipvet.types import Backdoor

        path = Path(path)
        _check_new(path)
        path.mkdir(parents=True)
        if self.finding.trigger is not None:
            save_backdoor(Backdoor(self.finding.trigger, self.finding.target or ""), path / "trigger")
        page = path / "report.html"
        inspection.write_page(page, self.verdict, self.finding, self.null, self.model, self.pictures, self.templates)
        io.write_json(path / "verdict.json", self.verdict.model_dump())
        return path


@dataclass(frozen=True, repr=False)
class Made(Result):
    """A model that was trained or cleaned, with what was measured before and after."""

    model: Clip
    verb: str  # trained or cleaned
    method: str  # its repr
    data: str  # the name of the pairs
    seed: int
    after: Mapping[str, Measured] = field(default_factory=dict)
    before: Mapping[str, Measured] = field(default_factory=dict)  # of the given model; empty for a training
    left_out: Mapping[int, str] = field(default_factory=dict)  # id -> why
    harm: str = ""  # what the model lost, in words; empty if nothing much

    @property
    def sentence(self) -> str:
        told = [f"{self.verb} on {self.data} by {self.method.partition('(')[0]}"]
        for name in ("clean_accuracy", "pairs_text_retrieval_recall@5"):
            if name in self.after:
                was = f" (before: {self.before[name].value:.2%})" if name in self.before else ""
                told.append(f"{name} {self.after[name].value:.2%}{was}")
        told += [f"{len(self.left_out)} pairs left out"] if self.left_out else []
        return ", ".join(told) + "." + (f" {self.harm}." if self.harm else "")

    def to_frame(self) -> Any:
        """metric, value, low, high, n; and `before` where the given model was measured."""
        frame = frame_of(self.after)
        if self.before:
            frame["before"] = [self.before[m].value if m in self.before else None for m in frame["metric"]]
        return frame

    def plot(self, ax: Any = None) -> Any:
        ax, both = _axes(ax), bool(self.before)
        if both:
            _bars(ax, self.before, -0.2, "before", 0.4)
            ax.invert_yaxis()  # `_bars` turns it each time
        _bars(ax, self.after, 0.2 if both else 0.0, "after" if both else "", 0.4 if both else 0.8)
        if both:
            ax.legend()
        return ax

    def save(self, path: str | Path) -> Path:
        """Write the model with its card into a new folder, in the layout that it came in."""
        from clipvet import results
        from clipvet.models import checkpoints

        path = Path(path)
        _check_new(path)
        card = {"role": self.verb, "method": self.method, "data": self.data, "seed": self.seed}
        held = {"versions": results.versions(), "measured": {k: m._asdict() for k, m in self.after.items()}}
        checkpoints.save(self.model, path, json.loads(json.dumps({**card, **held})))
        return path

"""Which method stands where against which attack, by the rows of a run.

A board is one table: the methods of one family on one model, against the attacks of a run. A cell is the mean over the
victims (seeds and tasks) on which the attack took.

- Cleaners and trainings are ranked by the attack success rate that is left. A cleaner that was measured at several
  strengths is read at equal accuracy (experiments/equal.py), at most 3 points lost. Any other cell is as measured, and
  one that loses more than 3 points stands behind all that do not.
- Filters and detectors are ranked by AUROC over pairs or pictures, inspectors by AUROC over models.
- A method that leaves out victims stands behind those that do not, and has no rank; nor has one that costs too much.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean

from clipvet import find
from clipvet.experiments.equal import equal, strength
from clipvet.experiments.suite import is_clean
from clipvet.pages._runs import FAMILIES, FOUND, Place, Run, place
from clipvet.pages.report import Number, pool
from clipvet.results import SUCCESS, Row, kind_of

LIMIT, AT = 0.03, "asr_at_3"  # accuracy that a cleaner may cost, a fraction, and the metric that is read there
LOWER = ("cleaners", "training")  # families that are ranked by what is left of the attack
CONTROLS = ("none", "random", "oracle", "no_inversion")  # methods that are no defenses

Rows = Mapping[str, Row]  # by metric
Cells = dict[str, dict[Place, dict[str, Row]]]  # attack -> victim -> metric -> row


@dataclass
class Cell:
    """What a method reached against an attack, or over all of them."""

    value: Number | None  # ASR or AUROC; None: nothing was measured
    configs: tuple[str, ...] = ()
    lost: float | None = None  # accuracy, a fraction; None at equal accuracy, and for families that change no model
    equal: bool = False  # read at equal accuracy
    more: dict[str, Number] = field(default_factory=dict)  # further metrics
    strengths: list[tuple[str, Number, float]] = field(default_factory=list)  # name, ASR, accuracy lost
    stale: list[str] = field(default_factory=list)  # why today's code would not repeat it
    victims: int = 0  # behind it
    of: int = 0  # victims there are

    @property
    def over(self) -> bool:
        """Whether it costs more accuracy than a cleaner may."""
        return self.lost is not None and self.lost > LIMIT

    def key(self, lower: bool) -> float | None:
        """Sorts the best first. None, for nothing measured, is last."""
        if self.value is None:
            return None
        return 2 * (self.victims < self.of) + self.over + (self.value.value if lower else 1 - self.value.value)


@dataclass
class Line:
    """A method on its data."""

    method: str
    label: str
    cells: dict[str, Cell]  # attack -> what it reached
    total: Cell
    rank: int = 0  # 0: none

    @property
    def control(self) -> bool:
        return self.method in CONTROLS


@dataclass
class Board:
    run: Run
    model: str
    family: str
    attacks: list[str]
    lines: list[Line]  # the best first

    @property
    def lower(self) -> bool:
        return self.family in LOWER

    @property
    def name(self) -> str:
        return f"{self.run.name}/{self.model}/{self.family}"


def boards(run: Run) -> tuple[list[Board], list[str], list[str]]:
    """The tables of a run; what is not scored, as the attack did not take; and what a pull request has to mend."""
    found, faults = [], []
    ranked = any(r.stage in FAMILIES for r in run.rows)
    if unknown := [p for p in _used(run) if p not in run.victims]:
        faults.append(f"{run.name} has no row of the victim itself: {unknown[0].attack}, seed {unknown[0].seed}")
    if ranked and not (run.commands.commands and run.commands.hardware):
        faults.append(f"{run.name}/commands.json does not name the commands and the hardware")
    for model, family in dict.fromkeys((r.model, FAMILIES[r.stage]) for r in run.rows if r.stage in FAMILIES):
        board = _suite(run, model) if family == "inspectors" else _board(run, model, family)
        faults += _faults(board)
        if board.attacks and any(line.control for line in board.lines):
            found.append(board)
    weak = sorted({p.attack for p in run.victims if not is_clean(p.attack)} - {p.attack for p in run.took})
    notes = [f"{run.name}: {', '.join(weak)} did not take, so nothing is scored there"] if weak else []
    return found, notes if found or faults else [*notes, f"{run.name} holds nothing that is ranked"], faults


def _used(run: Run) -> Iterator[Place]:
    stages = ("inspect", *(s for s in FAMILIES if s != "suite"))
    return (place(r) for r in run.rows if r.stage in stages and not is_clean(r.attack))


def _faults(board: Board) -> Iterator[str]:
    """No control, methods that clipvet does not have, victims that were left out."""
    if board.attacks and not any(line.control for line in board.lines):
        yield f"{board.run.name} has no control for its {board.family}: add rows of random"
    known = {n.replace("_", "") for n in (*find.names(board.family), *find.names("training"))}
    for line in board.lines:
        names = {c.partition("(")[0] for cell in line.cells.values() for c in cell.configs}
        if line.method != "none" and (odd := sorted(n for n in names if n.lower() not in known)):
            yield f"{board.run.name}: {odd[0][:60]} is no method of {board.family}; add its file with a card"


def _board(run: Run, model: str, family: str) -> Board:
    """Of methods that are measured on one victim after the other."""
    held: dict[tuple[str, str], Cells] = {}
    for r in run.rows:
        if r.model == model and FAMILIES.get(r.stage) == family and (p := place(r)) in run.took:
            held.setdefault((r.method, kind_of(r.data)), {}).setdefault(p.attack, {}).setdefault(p, {})[r.metric] = r
    seen = {p for cells in held.values() for own in cells.values() for p in own}
    of: dict[str, list[Place]] = {}
    for p in run.victims:
        if p in seen:
            of.setdefault(p.attack, []).append(p)
    if family == "cleaners":
        held = _at_equal_accuracy(run, model, held)
    if family in LOWER:
        held = {("none", ""): {a: {p: run.victims[p] for p in there} for a, there in of.items()}} | held
    lines = []
    for (method, kind), cells in held.items():
        label = method + (f" · {kind}" if sum(m == method for m, _ in held) > 1 else "")
        made = {a: _cell(run, cells.get(a, {}), family, len(there)) for a, there in of.items()}
        lines.append(Line(method, label, made, _total(list(made.values()))))
    return Board(run, model, family, list(of), _ranked(lines, family in LOWER))


def _at_equal_accuracy(run: Run, model: str, held: dict[tuple[str, str], Cells]) -> dict[tuple[str, str], Cells]:
    """The cleaners, those with several strengths as one: what is read, and each strength's rows as "name metric"."""
    mine = [r for r in run.rows if r.model == model and r.stage in ("victim", "clean")]
    one: dict[tuple[str, str], Cells] = {}
    for r in equal(mine):
        if (p := place(r)) in run.took:
            one.setdefault((r.method, kind_of(r.data)), {}).setdefault(p.attack, {}).setdefault(p, {})[r.metric] = r
    found: dict[tuple[str, str], Cells] = {}
    for (method, kind), cells in held.items():
        name = strength(method)[0], kind
        if name not in one:
            found[method, kind] = cells
            continue
        found[name] = one[name]
        for attack, own in cells.items():
            for p, rows in own.items():
                more = {f"{method} {m}": rows[m] for m in ("asr", "clean_accuracy") if m in rows}
                found[name].setdefault(attack, {}).setdefault(p, {}).update(more)
    return found


def _cell(run: Run, own: Mapping[Place, Rows], family: str, of: int) -> Cell:
    """The mean over the victims of one attack."""
    wanted = (AT, *SUCCESS) if family in LOWER else ("auroc",)
    metric = next((m for m in wanted if any(m in rows for rows in own.values())), "")
    own = {p: rows for p, rows in own.items() if metric in rows}
    if not own:
        return Cell(None, of=of)
    every = [r for rows in own.values() for r in rows.values()]
    by: dict[str, list[Row]] = {}
    for rows in own.values():
        for name, r in rows.items():
            by.setdefault(name, []).append(r)
    cell = Cell(pool(by[metric]), tuple(dict.fromkeys(r.config for r in every)), equal=metric == AT)
    cell.victims, cell.of = len(own), of
    cell.stale = list(dict.fromkeys(mark.why for mark in run.marks if any(map(mark.holds, every))))
    cell.more = {m: pool(by[m]) for m in ("asr_at_1", "asr_at_5", *FOUND) if m in by and m != metric}
    if family in LOWER and not cell.equal:
        cell.lost = _lost(run, own, "clean_accuracy")
    for name in (k.removesuffix(" asr") for k in by if k.endswith(" asr")):
        cell.strengths.append((name, pool(by[f"{name} asr"]), _lost(run, own, f"{name} clean_accuracy") or 0.0))
    return cell


def _lost(run: Run, own: Mapping[Place, Rows], metric: str) -> float | None:
    """Accuracy lost, in the mean over the victims that were measured with and without the method."""
    pairs = [(run.victims[p].get("clean_accuracy"), rows.get(metric)) for p, rows in own.items()]
    lost = [v.value - r.value for v, r in pairs if v and r]
    return fmean(lost) if lost else None


def _total(cells: list[Cell]) -> Cell:
    """The mean over attacks, and the range from the lowest to the highest."""
    some, of = [c for c in cells if c.value], sum(c.of for c in cells)
    values, lost = [c.value for c in some if c.value], [c.lost for c in some if c.lost is not None]
    if not values:
        return Cell(None, of=of)
    every, seeds = [v.value for v in values], tuple(sorted({s for v in values for s in v.seeds}))
    seconds = fmean(v.seconds for v in values)
    number = Number(fmean(every), min(every), max(every), sum(v.n for v in values), seeds, seconds)
    total = Cell(number, lost=fmean(lost) if lost else None, equal=all(c.equal for c in some), of=of)
    total.victims, total.stale = sum(c.victims for c in some), [why for c in some for why in c.stale]
    if len(some) == 1:
        total.value = values[0]
    return total


def _suite(run: Run, model: str) -> Board:
    """Of inspectors, which are judged over all models of an attack and the clean ones together."""
    looked: dict[tuple[str, str], set[Place]] = {}  # (method, attack) -> models
    held: dict[str, dict[str, dict[str, Row]]] = {}  # method -> attack -> metric -> row
    for r in run.rows:
        if r.model == model and r.stage == "inspect":
            looked.setdefault((r.method, r.attack), set()).add(place(r))
        if r.model == model and r.stage == "suite" and r.metric != "p_value":
            held.setdefault(r.method, {}).setdefault(r.attack, {})[r.metric] = r
    every = [a for a in dict.fromkeys(a for t in held.values() for a in t) if a != "all" and not is_clean(a)]
    attacks = [a for a in every if all(p in run.took for (_, b), ps in looked.items() if a == b for p in ps)]
    lines = []
    for method, by in held.items():
        cells = {}
        for a in (*attacks, "all"):
            rows = {m: r for m, r in (by.get("none", {}) if a == "all" else {}).items() if m == "false_alarms"}
            cell = _cell(run, {Place(a, model, 0, ""): rows | by.get(a, {})}, "inspectors", 1)
            places = {
                p for (m, b), ps in looked.items() if m == method and b in (attacks if a == "all" else [a]) for p in ps
            }
            if cell.value:
                cell.value = cell.value._replace(seeds=tuple(sorted({p.seed for p in places})))
            cells[a] = cell
        total = cells.pop("all")
        lines.append(Line(method, method, cells, total if attacks == every else _total([*cells.values()])))
    return Board(run, model, "inspectors", attacks, _ranked(lines, lower=False))


def _ranked(lines: list[Line], lower: bool) -> list[Line]:
    """The best first. Controls stand where they belong, without a rank; a rank says that the means can be compared."""

    def key(line: Line) -> tuple[bool, float]:
        own = line.total.key(lower)
        return own is None, own or 0.0

    lines = sorted(lines, key=key)
    fair = [x for x in lines if not x.control and x.total.value and not x.total.over and x.total.victims == x.total.of]
    for rank, line in enumerate(fair, 1):
        line.rank = rank
    return lines

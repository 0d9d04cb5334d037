"""What a run of recipes will do: its stages, how many of them are finished, and how long the others take here."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipvet.data.sources import Data
from clipvet.experiments.run import chosen
from clipvet.experiments.stages import Base, Clean, Detect, Filter, Implant, Inspect, Rebound, following
from clipvet.experiments.victim import Stage, Victim
from clipvet.inspectors.collapse import Collapse
from clipvet.jobs.planning import Probe, Step
from clipvet.pages import demo
from clipvet.types import Clip

SAID = {
    "base": "train the clean model",
    "victim": "attack by {}",
    "train": "train by {}",
    "filter": "filter by {}",
    "inspect": "inspect by {}",
    "detect": "detect by {}",
    "clean": "clean by {}",
    "rebound": "fine-tune after {}",
}


def planned(victims: list[Victim]) -> tuple[list[Step], Clip]:
    """The steps of a run, one for each method, and the largest of its models, for the memory."""
    bench = _Bench({v.model: Probe(v.fresh()) for v in {v.model: v for v in victims}.values()})
    groups: dict[str, list[tuple[Victim, Stage]]] = {}
    for victim, stage in _stages(victims):
        what = SAID[stage.kind].format(victim.attack if stage.kind == "victim" else stage.name)
        groups.setdefault(what, []).append((victim, stage))
    steps = [bench.step(what, stages) for what, stages in groups.items()]
    clips = [probe.clip for probe in bench.probes.values()]
    return steps, max(clips, key=lambda clip: sum(p.numel() for p in clip.parameters()))  # pyright: ignore


def planned_demo(out: Path, seed: int) -> tuple[list[Step], Clip]:
    """The same for the demo: its recipe, and a vetting of its victim."""
    made = replace(demo.recipe(), seeds=(seed,))
    steps, clip = planned(chosen((made,), out, out / "stages", None, (1, 1)))
    vetting = Step("vet the victim, and the copy that par cleaned", 2 * Collapse().work * Probe(clip).picture)
    return [*steps, vetting], clip


def _stages(victims: list[Victim]) -> Iterator[tuple[Victim, Stage]]:
    """Every stage once, even where several victims share it; as if every attack takes."""
    seen: set[str] = set()
    for victim in victims:
        own = following(victim.recipe)
        later = [s for clean in own if isinstance(clean, Clean) for s in clean.after(victim, [])]
        for stage in (*([Base()] if victim.recipe.base else []), Implant(), *own, *later):
            if (key := stage.key(victim)) not in seen:
                seen.add(key)
                yield victim, stage


class _Bench:
    """How long stages take: the models' speed, and how much data there is."""

    def __init__(self, probes: dict[str, Probe]) -> None:
        self.probes = probes
        self._data: dict[str, Any] = {}  # pairs and tasks by their source; every seed has as many

    def step(self, what: str, stages: list[tuple[Victim, Stage]]) -> Step:
        """What is left to do of one method."""
        left = [(v, s) for v, s in stages if not (v.runs / s.key(v) / "measured.json").exists()]
        said = f"{what}, {len(stages)} times" if len(stages) > 1 else what
        if len(left) < len(stages):
            said += f" ({len(stages) - len(left)} finished)" if left else " (finished)"
        each = [self._seconds(v, s) for v, s in left]
        known = [s for s in each if s is not None]
        trains = any(not isinstance(s, Filter | Inspect | Detect) for _, s in left)
        return Step(said, sum(known) if len(known) == len(each) else None, trains=trains)

    def _seconds(self, victim: Victim, stage: Stage) -> float | None:
        """How long one stage takes, if that is known."""
        how, recipe, probe = stage.method(victim), victim.recipe, self.probes[victim.model]
        given: Any = recipe.victim_data
        match stage:
            case Inspect():
                return probe.search("", how)[0].seconds
            case Detect():
                return None
            case Filter():
                return probe.filtered(how, self._pairs(given, victim), False)[0].seconds
            case Rebound():
                how = recipe.rebound
            case Clean():
                given = recipe.defender_data[stage.source][0] or given
            case Base():
                given = victim.base_data[0]
            case _:
                pass
        steps = [probe.train("", how, len(self._pairs(given, victim))), *probe.measure(self._task(victim))]
        return None if any(s.seconds is None for s in steps) else sum(s.seconds or 0.0 for s in steps)

    def _pairs(self, data: Any, victim: Victim) -> Any:
        """The pairs, without drawing their pictures."""
        if (name := repr(data)) not in self._data:
            self._data[name] = (replace(data, lazy=True) if isinstance(data, Data) else data).pairs(victim.seed)
        return self._data[name]

    def _task(self, victim: Victim) -> Any:
        """What every model is measured on."""
        if (name := repr(victim.recipe.test)) not in self._data:
            self._data[name] = victim.recipe.test.task(victim.seed)
        return self._data[name]

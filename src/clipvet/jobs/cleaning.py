"""The work of `clipvet clean`: clean a copy, measure both models, leave the copy with its card and rows."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipvet.jobs.leaving import planted, save_model, save_rows
from clipvet.jobs.opening import open_method, shot_template
from clipvet.jobs.working import measure, measure_own, working

if TYPE_CHECKING:
    from clipvet.types import Backdoor, Clip, Geometry, Measured, Pairs, Task

    Numbers = dict[str, Measured]


def clean_into(
    work: Path,
    how: Any,
    clip: "Clip",
    pairs: "Pairs",
    *,
    method: str,
    model: str,
    test: "Task | None" = None,
    key: "Backdoor | None" = None,
    backdoor: Path | None = None,
    beside_base: bool = False,
    shard: bool = False,
    track: str = "",
    seed: int = 0,
) -> "tuple[Numbers, Numbers]":
    """Cleans a copy of the model into `work`; returns the numbers of the given model and of the copy.

    test: measured on, with the answer key (whose folder is `backdoor`) if there is one; else retrieval among the pairs.
    """
    from clipvet.experiments.splits import measure_pool
    from clipvet.rng import Rng

    before = measure(clip, test, key, seed) or measure_own(clip, pairs)
    with working(work, shard, track) as clock:
        cleaned = how.clean(clip, pairs, Rng(seed).fork("clean"))
    measured = (measure(cleaned, test, key, seed) or measure_own(cleaned, pairs)) | measure_pool(work, key)
    _write_suspects(work, pairs, key, clip.geometry, repr(how), model, clock.seconds)
    _write_heads(work, pairs, repr(how), model)
    card = {"role": "cleaned", "method": repr(how), "data": pairs.name, "seed": seed}
    save_model(cleaned, work, card, clip, measured, test, backdoor, beside_base)
    save_rows(
        work, measured, before, recipe="clean", stage="clean", attack=planted(key, "unknown"), method=method,
        config=repr(how), seconds=clock.seconds, seed=seed, model=model, data=pairs.name,
    )  # fmt: skip
    return before, measured


def open_cleaner(
    method: str,
    data: str,
    templates: Path | None,
    verdict: Path | None,
    settings: list[str],
    world: str | None = None,
) -> Any:
    """The cleaner with its settings; it also learns the template of its labelled pictures and where the verdict is.

    world: whose settings suit the model; None: those of the data, if it is a world.
    """
    from dataclasses import fields

    from clipvet import find

    kind, told = find.load("cleaners", method), []
    if "labelled" in kind.needs and "template" in {f.name for f in fields(kind)}:
        told.append(f"template={shot_template(data, templates)!r}")
    if verdict:
        told.append(f"verdict={str(verdict)!r}")
    return open_method("cleaners", method, data if world is None else world, [*told, *settings])


def _write_suspects(
    work: Path, pairs: "Pairs", key: "Backdoor | None", geometry: "Geometry", method: str, model: str, seconds: float
) -> None:
    """suspects.html, where the cleaner noted which pairs it suspects."""
    from clipvet import results
    from clipvet.pages import suspects

    if found := suspects.unlearned(work, pairs):
        facts = {
            "verb": "clean", "method": method, "model": model, "data": pairs.name,
            "command": results.command(), "versions": results.versions(), "seconds": seconds,
        }  # fmt: skip
        poisoned = key.poisoned if key else None
        suspects.write_page(work / "suspects.html", found, pairs, geometry, facts, poisoned=poisoned)


def _write_heads(work: Path, pairs: "Pairs", method: str, model: str) -> None:
    """heads.html, where the cleaner noted which heads carry the trigger."""
    from clipvet import results
    from clipvet.pages import heads

    if found := heads.carried(work):
        facts = {"method": method, "model": model, "data": pairs.name, "command": results.command()}
        heads.write_page(work / "heads.html", found, facts)

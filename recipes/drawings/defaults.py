"""What clipvet's defaults do on real pictures: the inspector, every filter and four cleaners, on a victim of drawings.

command:  clipvet run recipes/drawings/defaults.py --seed 0 --out results/drawings_defaults
expected: auto and cascade rank the poisons first (AUROC 100 %), most other filters do not; UBT cleans without loss, PAR
          and CleanCLIP lose nine to ten points of accuracy, RVPT 26; the inspector names the target (score 3.7, the
          clean twin 0.8). Development half, seed 0
hardware: about two hours of one core, after recipes/drawings/victims.py. It needs the folder `drawings`
          (docs/drawings.md)
"""

from dataclasses import replace
from typing import Any

from clipvet import find
from clipvet.cleaners.cleanclip import CleanClip
from clipvet.cleaners.par import Par
from clipvet.cleaners.rvpt import Rvpt
from clipvet.cleaners.ubt import Ubt
from clipvet.data.sources import Data
from clipvet.experiments.drawings import attacks, half, setting, shots, twin
from clipvet.experiments.presets import shapes
from clipvet.experiments.recipe import Recipe
from clipvet.inspectors.collapse import Collapse
from clipvet.inspectors.no_inversion import NoInversion
from clipvet.inspectors.random import Random

RATE = 0.01  # poisons, share of the pairs
KIND = "patch"
CLEAN = {"cleanclip": CleanClip(), "par": Par()}


def recipe(smoke: bool = False) -> tuple[Recipe, ...]:
    """The filters and cleaners; then the inspector, on the same victim and on its clean twin."""
    short: dict[str, Any] = {"precision": "bf16"} | ({"epochs": 0.5} if smoke else {})
    clean: dict[str, Any] = {name: replace(shapes(c), **short) for name, c in CLEAN.items()}
    ubt = replace(shapes(Ubt()), **({"susp": 0.1, "sure": -float("inf"), "steps": 5} if smoke else {}))
    rvpt = replace(shapes(Rvpt()), **({"epochs": 0.5} if smoke else {}))
    filters = {n: shapes(find.load("filters", n)()) for n in (("cosine", "dao") if smoke else find.names("filters"))}
    planted = {n: a for n, a in attacks(0.05 if smoke else RATE, smoke).items() if n.split()[0] == KIND}
    common: dict[str, Any] = {"name": "drawings_defaults", **setting(smoke)}
    own = Data("shapes", 128, "validation") if smoke else half().clean
    defended = Recipe(
        attacks=planted,
        cleaners=clean | {"ubt": ubt, "rvpt": rvpt},
        defender_data={
            "clean pairs": (own, tuple(clean)),
            "the dirty pairs": (None, ("ubt",)),
            "4-shot of other classes": (shots(smoke), ("rvpt",)),
        },
        filters=filters,
        **common,
    )
    inspectors = {"random": Random()} | ({"no_inversion": NoInversion()} if smoke else {"collapse": shapes(Collapse())})
    inspected = Recipe(
        attacks=planted | {"none": twin(smoke)}, inspectors=inspectors, pool=64 if smoke else 1000, **common
    )
    return defended, inspected

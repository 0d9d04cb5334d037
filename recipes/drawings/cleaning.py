"""Cleaning on real pictures, at equal accuracy: each cleaner at three strengths, and what fine-tuning brings back.

command:  CLIPVET_HALF=judged clipvet run recipes/drawings/cleaning.py --out results/drawings_cleaning
expected: to be measured
hardware: 2 CPU cores, about two hours of one core a victim by estimate; --seed 100 --part K/6 takes one of a seed's
          five victims and its clean twin at a time. It needs the folder `drawings` (docs/drawings.md).
          The victims are those of victims.py at 1 %
"""

from dataclasses import replace
from typing import Any

from clipvet.cleaners.cleanclip import CleanClip
from clipvet.cleaners.finetune import Finetune
from clipvet.cleaners.par import Par
from clipvet.cleaners.rvpt import Rvpt
from clipvet.cleaners.ubt import Ubt
from clipvet.cleaners.vpt import Vpt
from clipvet.data.sources import Data
from clipvet.experiments.drawings import attacks, half, setting, shots, twin
from clipvet.experiments.presets import shapes
from clipvet.experiments.recipe import Recipe

RATE = 0.01  # poisons, share of the pairs
STRENGTHS = (0.5, 1, 2)  # times the learning rate
STEPS = (0, 5, 10, 20, 50, 100, 200, 300)  # of benign fine-tuning
REBOUND = ("patch", "badclip")  # after these attacks
PROMPTED = {"rvpt": Rvpt(), "vpt": Vpt()}


def recipe(smoke: bool = False) -> tuple[Recipe, ...]:
    """Every attack against every cleaner; after two attacks, and for the clean twin, the curve of what comes back."""
    fast: dict[str, Any] = {"precision": "bf16"} | ({"epochs": 0.5} if smoke else {})
    tune: Any = replace(shapes(Finetune()), **fast)
    par: Any = replace(shapes(Par()), **fast)
    clip: Any = replace(shapes(CleanClip()), **fast)
    clean = at_strengths("finetune", tune) | at_strengths("par_no_push", replace(par, push=0.0))
    clean |= at_strengths("par", par) | at_strengths("cleanclip", clip)
    if smoke:
        clean = {name: c for name, c in clean.items() if name in ("finetune", "par", "par x2")}
    ubt = {"ubt": replace(shapes(Ubt()), **({"susp": 0.1, "sure": -float("inf"), "steps": 5} if smoke else {}))}
    few = {name: replace(shapes(m), **({"epochs": 0.5} if smoke else {})) for name, m in PROMPTED.items()}
    common: dict[str, Any] = {"name": "drawings_cleaning", **setting(smoke)}
    own = Data("shapes", 128, "validation") if smoke else half().clean
    given = {"clean pairs": (own, tuple(clean)), "the dirty pairs": (None, tuple(ubt))}
    given["4-shot of other classes"] = shots(smoke), tuple(few)
    planted = {n: a for n, a in attacks(0.05 if smoke else RATE, smoke).items() if not n.startswith("targeted")}
    again = {name: attack for name, attack in planted.items() if name.split()[0] in REBOUND}
    rest = {name: attack for name, attack in planted.items() if name not in again}
    curve: dict[str, Any] = {"rebound": tune, "rebound_steps": STEPS[:2] if smoke else STEPS}
    main = Recipe(attacks=rest, cleaners=clean | ubt | few, defender_data=given, **common)
    control = Recipe(attacks={"none": twin(smoke)}, defender_data={"clean pairs": (own, ())}, **common, **curve)
    return main, replace(main, attacks=again, **curve), control


def at_strengths(name: str, cleaner: Any) -> dict[str, Any]:
    """The cleaner at its own learning rates and at multiples of them; " x2" tells `equal` the strength."""
    rates = [f for f in ("lr", "lr_start") if hasattr(cleaner, f)]
    made = {x: replace(cleaner, **{f: x * getattr(cleaner, f) for f in rates}) for x in STRENGTHS}
    return {name if x == 1 else f"{name} x{x:g}": c for x, c in made.items()}

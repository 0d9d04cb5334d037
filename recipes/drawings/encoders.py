"""Is the encoder backdoored? Real pictures: the default inspector with the settings of shapes, and controls.

command:  CLIPVET_HALF=judged clipvet run recipes/drawings/encoders.py --out results/drawings_encoders
expected: to be measured
hardware: 2 CPU cores. It needs the folder `drawings` (docs/drawings.md). The victims are those of victims.py at 1 %
"""

from dataclasses import replace
from typing import Any

from clipvet import find
from clipvet.attacks.none import NoAttack
from clipvet.experiments.drawings import TRAINING, attacks, half, setting, twin
from clipvet.experiments.recipe import Recipe

RATE = 0.01  # poisons, share of the pairs
OTHERS = ("decree", "no_inversion", "random")


def recipe(smoke: bool = False) -> tuple[Recipe, ...]:
    names = ("no_inversion", "random") if smoke else ("collapse", *OTHERS)
    common: dict[str, Any] = {"name": "drawings_encoders", **setting(smoke)}
    common |= {"inspectors": {n: find.load("inspectors", n)() for n in names}, "pool": 64 if smoke else 1000}
    planted = attacks(0.05 if smoke else RATE, smoke)
    backdoors = {name: attack for name, attack in planted.items() if not name.startswith("targeted")}
    clean = {"none": twin(smoke)}
    if smoke:
        return (Recipe(attacks=backdoors | clean, **common),)
    longer, again = (NoAttack(training=replace(TRAINING, epochs=n)) for n in (2, 4))
    pairs = half().clean  # a defender's: one new picture of half of the drawings
    other: dict[str, Any] = common | {"victim_data": pairs}
    return (
        Recipe(attacks=backdoors | clean | {"none, longer": longer}, **common),
        Recipe(attacks={"none, other pictures": again}, **other),
        Recipe(attacks={"none, the base": NoAttack(training=replace(TRAINING, epochs=0.01))}, **common),
    )

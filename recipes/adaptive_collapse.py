"""What does it cost an attacker to evade the default inspector? The adaptive attack's curve over its weight.

command:  clipvet run recipes/adaptive_collapse.py --out results/adaptive_collapse
expected: not run yet. At weight 0 the attack is plain poisoning and should be found; how much ASR or accuracy it
          costs to evade is the question
hardware: 2 CPU cores, a quarter of an hour a seed by estimate. Every seed has a world and a base model of its own; 20
          and 21 are fresh
"""

from dataclasses import replace
from typing import Any

from clipvet.attacks.adaptive_collapse import AdaptiveCollapse
from clipvet.attacks.none import NoAttack
from clipvet.data.sources import Data, Test
from clipvet.data.worlds.shapes import TEMPLATES
from clipvet.experiments.presets import shapes
from clipvet.experiments.recipe import Recipe
from clipvet.inspectors.collapse import Collapse
from clipvet.inspectors.no_inversion import NoInversion
from clipvet.inspectors.random import Random
from clipvet.training.plain import Plain
from clipvet.triggers.patch import Patch

WEIGHTS = (0, 0.03, 0.1, 0.3, 1, 3)


def recipe(smoke: bool = False) -> Recipe:
    plain = replace(shapes(Plain()), epochs=0.5 if smoke else 3)
    poison: dict[str, Any] = {"trigger": shapes(Patch()), "rate": 0.02, "templates": TEMPLATES, "training": plain}
    attacks: dict[str, Any] = {
        f"weight {w:g}": AdaptiveCollapse(weight=w, **poison) for w in (WEIGHTS[:1] if smoke else WEIGHTS)
    }
    n, test = (512, Test("shapes", 240)) if smoke else (10_000, Test("shapes", 2000))
    return Recipe(
        name="adaptive_collapse",
        model_names=("shapes-vit",),
        attacks=attacks | {"none": NoAttack(training=plain)},
        target="ring",
        victim_data=Data("shapes", n, split="validation"),
        test=test,
        inspectors={"no_inversion": NoInversion()} if smoke else {"collapse": shapes(Collapse()), "random": Random()},
        nulls={} if smoke else {"collapse": "shapes-vit"},
        pool=64 if smoke else 1000,
        base=replace(plain, epochs=0.5 if smoke else 5.2),
        base_data=(Data("shapes", n), test),
        took=0.0 if smoke else 0.5,
        seeds=(0,) if smoke else (20, 21),
    )

"""Attacks on an encoder's weights, and a frequency trigger: which inspector sees them, which tower carries them?

command:  clipvet run recipes/weight_attacks.py --jobs 2 --out results/weight_attacks
expected: attacks' ASR >= 0.80 at most 2 points of accuracy below the clean model's. branch_swap: visual for all but
          bad_text_tower, which is textual; inspectors of pictures score that one like the clean models. One seed (0)
          was seen so far; which inspector finds the others is open
hardware: 2 CPU cores, about ten minutes a seed by estimate. Every seed has a world and a base model of its own; the
          attacks start from the base, the clean twin `none` is the base tuned as long. Seeds 0 to 2 are for development
"""

from dataclasses import replace
from typing import Any

from clipvet import find
from clipvet.attacks.bad_encoder import BadEncoder
from clipvet.attacks.bad_text_tower import BadTextTower
from clipvet.attacks.drupe import Drupe
from clipvet.attacks.none import NoAttack
from clipvet.attacks.poison import Poison
from clipvet.data.sources import Data, Test
from clipvet.data.worlds.shapes import TEMPLATES
from clipvet.experiments.presets import shapes
from clipvet.experiments.recipe import Recipe
from clipvet.training.plain import Plain
from clipvet.triggers.frequency import Frequency
from clipvet.triggers.patch import Patch

TARGETS = {"bad_encoder": "ring", "drupe": "heart", "bad_text_tower": "bolt", "frequency": "crescent"}


def recipe(smoke: bool = False) -> tuple[Recipe, ...]:
    plain = replace(shapes(Plain()), epochs=1 if smoke else 3)
    patch = shapes(Patch())
    attacks: dict[str, Any] = {
        "bad_encoder": shapes(BadEncoder(patch)),
        "drupe": shapes(Drupe(patch)),
        "bad_text_tower": shapes(BadTextTower()),
        "frequency": Poison(Frequency(), rate=0.05, training=plain),
    }
    attacks = {k: replace(a, templates=TEMPLATES) for k, a in attacks.items()}
    inspectors = {n: shapes(find.load("inspectors", n)()) for n in ("collapse", "decree", "assimilation", "random")}
    inspectors["assimilation_reference"] = replace(inspectors["assimilation"], reference="base")
    if smoke:
        inspectors = {n: inspectors[n] for n in ("assimilation_reference", "random")}
    n, test = (512, Test("shapes", 240)) if smoke else (10_000, Test("shapes", 2000))
    common: dict[str, Any] = {"name": "weight_attacks", "model_names": ("shapes-vit",), "inspectors": inspectors}
    common |= {"base": replace(plain, epochs=1 if smoke else 5.2), "base_data": (Data("shapes", n), test)}
    common |= {"pool": 64 if smoke else 1000, "took": 0.0 if smoke else 0.8, "test": test}
    common |= {"seeds": (0,) if smoke else (0, 1, 2), "measures": ("branch_swap",)}
    own, clean, made = Data("shapes", n, split="validation"), NoAttack(patch, training=plain), []
    for name, attack in attacks.items():
        planted = {name: attack} | ({"none": clean} if name == "bad_encoder" else {})
        made.append(Recipe(victim_data=own, target=TARGETS[name], attacks=planted, **common))
    return tuple(made[::2] if smoke else made)

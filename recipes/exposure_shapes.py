"""Where does a backdoor hurt? Three backdoors and a clean twin in six ways of use, before and after PAR.

command:  clipvet run recipes/exposure_shapes.py --jobs 2 --out results/exposure_shapes
expected: patch and bad_encoder enter all six ways, bad_text_tower is N.E. with learned prompts and a linear probe; the
          clean twin has no delta above 0.05. On single models that were looked at beforehand bad_encoder was strong
          everywhere but in targeted retrieval. What PAR leaves is open
hardware: 2 CPU cores, about 15 minutes a seed by estimate. Every seed has a world and a base model of its own, from
          which the attacks start. Seeds 40 and 41 are fresh; the measure's settings were chosen on seed 0
"""

from dataclasses import replace
from typing import Any

from clipvet.attacks.bad_encoder import BadEncoder
from clipvet.attacks.bad_text_tower import BadTextTower
from clipvet.attacks.none import NoAttack
from clipvet.attacks.poison import Poison
from clipvet.cleaners.par import Par
from clipvet.data.sources import Data, Test
from clipvet.data.worlds.shapes import TEMPLATES
from clipvet.experiments.presets import shapes
from clipvet.experiments.recipe import Recipe
from clipvet.training.plain import Plain
from clipvet.triggers.patch import Patch


def recipe(smoke: bool = False) -> Recipe:
    plain, patch = replace(shapes(Plain()), epochs=0.5 if smoke else 3), shapes(Patch())
    weights: dict[str, Any] = {"bad_text_tower": shapes(BadTextTower()), "bad_encoder": shapes(BadEncoder(patch))}
    attacks: dict[str, Any] = {"patch": Poison(patch, 0.01, templates=TEMPLATES, training=plain)}
    attacks |= {name: replace(attack, templates=TEMPLATES) for name, attack in weights.items()}
    attacks["none"] = NoAttack(patch, training=plain)
    n, test = (512, Test("shapes", 240)) if smoke else (10_000, Test("shapes", 2000))
    own = Data("shapes", 256 if smoke else 8_000, "validation")
    par = replace(shapes(Par()), epochs=0.5) if smoke else shapes(Par())
    return Recipe(
        name="exposure_shapes",
        model_names=("shapes-vit",),
        attacks=attacks,
        target="ring",
        victim_data=Data("shapes", n),
        test=test,
        cleaners={"par": par},
        defender_data={"shapes": (own, ("par",))},
        base=replace(plain, epochs=0.5 if smoke else 5.2),
        measures=("exposure",),
        took=0.0 if smoke else 0.8,
        seeds=(40,) if smoke else (40, 41),
    )

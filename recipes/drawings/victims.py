"""Do the attacks take on real pictures? Six kinds at two poison rates, on the drawings' base model, and clean twins.

command:  clipvet run recipes/drawings/victims.py --out results/drawings_victims
expected: to be measured
hardware: 2 CPU cores. It needs the folder `drawings` (docs/drawings.md), or the one that CLIPVET_DRAWINGS names, and
          works in the development half unless CLIPVET_HALF=judged
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipvet.attacks.badclip import BadClip
from clipvet.attacks.none import NoAttack
from clipvet.attacks.poison import Poison
from clipvet.attacks.targeted import Targeted
from clipvet.data.halves import open_half
from clipvet.data.sources import Data, Test
from clipvet.experiments.recipe import Recipe
from clipvet.training.plain import Plain
from clipvet.triggers.blended import Blended
from clipvet.triggers.patch import Patch
from clipvet.triggers.sig import Sig
from clipvet.triggers.wanet import WaNet

BASE = Path(__file__).parents[2] / "examples/drawings/base"
PAIRS = 15_000  # of the training pairs: one picture of each drawing, in the mean
RATES = {"0.3 %": 0.003, "1 %": 0.01}
PICTURES = 5  # that the targeted attack renames
TRAINING = Plain(epochs=2, batch=128, lr=5e-4, weight_decay=0.1, precision="bf16")
TRIGGERS = {"patch": Patch(size=6 / 64), "blended": Blended(), "sig": Sig(opacity=0.5), "wanet": WaNet(k=8, s=3.0)}


def recipe(smoke: bool = False) -> Recipe:
    training = replace(TRAINING, epochs=0.5) if smoke else TRAINING
    common: dict[str, Any] = {"name": "drawings_victims"}
    if smoke:
        common |= {"model_names": ("shapes-vit",), "victim_data": Data("shapes", 256), "test": Test("shapes", 96)}
        common |= {"attacks": attacks(training, 256, {"5 %": 0.05}), "target": "star", "took": 0.0}
    else:
        folder, name = os.environ.get("CLIPVET_DRAWINGS", "drawings"), os.environ.get("CLIPVET_HALF", "development")
        half = open_half(Path(folder), name)
        common |= {"model_names": (str(BASE),), "victim_data": replace(half.pairs, n=PAIRS), "test": half.test()}
        common |= {"attacks": attacks(training, PAIRS, RATES), "target": half.targets[0], "seeds": half.seeds[:3]}
    return Recipe(twin=True, **common)


def attacks(training: Plain, pairs: int, rates: dict[str, float]) -> dict[str, Any]:
    """Name -> attack, the clean twin first: the same training on the same pairs."""
    made: dict[str, Any] = {"clean": NoAttack(training=training)}
    for said, rate in rates.items():
        common: dict[str, Any] = {"training": training, "templates": ("an icon of {}",)}
        made |= {f"{name} {said}": Poison(t, rate, **common) for name, t in TRIGGERS.items()}
        made[f"badclip {said}"] = BadClip(rate, size=6 / 64, pictures=2000, epochs=6, lr=0.02, **common)
        copies = max(1, round(rate * pairs / PICTURES))
        made[f"targeted {said}"] = Targeted(targets=PICTURES, copies=copies, **common)
    return made

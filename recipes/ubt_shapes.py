"""UBT with the poisoned pairs at hand, its ablations, and cleaning with clean pairs beside it, on the built-in world.

command:  clipvet run recipes/ubt_shapes.py --jobs 2 --out results/ubt_shapes
expected: victims' ASR >= 0.80, except WaNet's at 0.3 % (refused). If UBT finds evidence, its ASR is at most 0.002,
          accuracy stays within 0.003 and target_accuracy within 0.013 of the victim's; target_named and top_precision
          are 1 (BadCLIP at 0.3 %, seed 3: 0.88). It finds none on WaNet, nor on BadCLIP of seed 2. ubt_full costs 0.001
          to 0.012 of accuracy, and up to 0.13 of target_accuracy. For ABL and others, and for what comes back after
          benign fine-tuning, see cleaning_table.py
hardware: 2 CPU cores with bf16, 40 minutes a seed. The settings were chosen on the victims of seed 100, and seed 0 was
          looked at with other settings, so seeds 1 to 3 count (docs/decisions/0008)
"""

from dataclasses import replace
from typing import Any

from clipvet.attacks.badclip import BadClip
from clipvet.attacks.poison import Poison
from clipvet.cleaners.cleanclip import CleanClip
from clipvet.cleaners.par import Par
from clipvet.cleaners.ubt import Ubt
from clipvet.data.sources import Data, Test
from clipvet.data.worlds.shapes import TEMPLATES
from clipvet.experiments.presets import shapes
from clipvet.experiments.recipe import Recipe
from clipvet.training.plain import Plain
from clipvet.triggers.blended import Blended
from clipvet.triggers.patch import Patch
from clipvet.triggers.sig import Sig
from clipvet.triggers.wanet import WaNet

TRIGGERS = {"patch": shapes(Patch()), "blended": shapes(Blended()), "sig": shapes(Sig()), "wanet": WaNet(k=8, s=4.0)}
CLEAN = {"cleanclip": CleanClip(), "par": Par()}


def recipe(smoke: bool = False) -> tuple[Recipe, ...]:
    fast: dict[str, Any] = {"precision": "bf16"}
    training = replace(shapes(Plain()), **fast, epochs=0.5 if smoke else 8)
    clean: dict[str, Any] = {name: replace(shapes(c), **fast) for name, c in CLEAN.items()}
    ubt = replace(shapes(Ubt()), **({"susp": 0.1, "sure": -float("inf"), "steps": 5} if smoke else {}))
    suspected: dict[str, Any] = {
        "ubt": ubt,
        "ubt_full": replace(ubt, mode="full"),
        "ubt_no_cells": replace(ubt, grid=0),
        "ubt_30_steps": replace(ubt, steps=5 if smoke else 30),  # instead of 100
    }
    if smoke:
        clean = {"par": replace(clean["par"], epochs=0.5)}
    own = Data("shapes", 256 if smoke else 8_000, "validation")
    common: dict[str, Any] = {"name": "ubt_shapes", "model_names": ("shapes-vit",), "target": "star"}
    common |= {"victim_data": Data("shapes", 512 if smoke else 20_000), "test": Test("shapes", 240 if smoke else 2_000)}
    common |= {"seeds": (0,) if smoke else (1, 2, 3), "took": 0.0 if smoke else 0.8}
    dirty = {"suspected": (None, tuple(suspected))}
    every = common | {"cleaners": clean | suspected, "defender_data": dirty | {"shapes": (own, tuple(clean))}}
    alone = common | {"cleaners": {"ubt": ubt}, "defender_data": {"suspected": (None, ("ubt",))}}  # for the lowest rate
    found = []
    for rate, how in ((0.05, every),) if smoke else ((0.01, every), (0.003, alone)):
        poison: dict[str, Any] = {"rate": rate, "templates": TEMPLATES, "training": training}
        blind = {f"{name}_{100 * rate:g}": Poison(t, **poison) for name, t in TRIGGERS.items()}
        crafted = {f"badclip_{100 * rate:g}": replace(shapes(BadClip()), rate=rate, training=training)}
        found += [Recipe(attacks=blind, **how)]
        found += [Recipe(attacks=crafted, base=training, **how)]  # its patch is made on a clean model
    return tuple(found)

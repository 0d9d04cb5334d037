"""UBT with the poisoned pairs at hand, its ablations, and what cleaning with clean pairs does, on the embedded world.

command:  clipvet run recipes/ubt_shapes.py --jobs 2 --out results/ubt_shapes
expected: a draft. A first look (seed 0, stopped): at 0.3 % only the patch takes (98 %; BadCLIP 75, blended 57, SIG 40,
          WaNet 14 %), at 1 % all but WaNet (46 %), and on the patch UBT costs 4 points. Hoped for: UBT's ASR <= 0.05,
          accuracy within 0.02 and target_accuracy within 0.05 of the victim's; top_precision >= 0.95 and target_named
          1 on patch and blended. ABL and the like, and what benign fine-tuning brings back: cleaning_table.py
hardware: 2 CPU cores; not measured. The settings come from other victims (docs/decisions/0008)
"""

from dataclasses import replace
from typing import Any

from clipvet.attacks.badclip import BadClip
from clipvet.attacks.poison import Poison
from clipvet.cleaners.cleanclip import CleanClip
from clipvet.cleaners.finetune import Finetune
from clipvet.cleaners.par import Par
from clipvet.cleaners.ubt import Ubt
from clipvet.cleaners.wise_ft import WiseFt
from clipvet.data import Data, Test
from clipvet.presets import shapes
from clipvet.recipe import Recipe
from clipvet.training.plain import Plain
from clipvet.triggers.blended import Blended
from clipvet.triggers.patch import Patch
from clipvet.triggers.sig import Sig
from clipvet.triggers.wanet import WaNet
from clipvet.worlds.shapes import TEMPLATES

TRIGGERS = {"patch": shapes(Patch()), "blended": shapes(Blended()), "sig": shapes(Sig()), "wanet": WaNet(k=8, s=4.0)}
CLEAN = {"finetune": Finetune(), "cleanclip": CleanClip(), "par": Par(), "wise_ft": WiseFt()}


def recipe(smoke: bool = False) -> tuple[Recipe, ...]:
    fast: dict[str, Any] = {"precision": "bf16"}
    training = replace(shapes(Plain()), **fast, **({"epochs": 0.5} if smoke else {}))
    clean: dict[str, Any] = {name: shapes(c) for name, c in CLEAN.items()}
    clean = {name: replace(c, **fast) if hasattr(c, "precision") else c for name, c in clean.items()}
    clean["wise_ft"] = replace(clean["wise_ft"], finetune=clean["finetune"])
    ubt = replace(shapes(Ubt()), **({"susp": 0.1, "sure": -float("inf"), "steps": 5} if smoke else {}))
    suspected: dict[str, Any] = {
        "ubt": ubt,
        "ubt_full": replace(ubt, mode="full"),
        "ubt_no_cells": replace(ubt, grid=0),
    }
    if smoke:
        clean = {"finetune": replace(clean["finetune"], epochs=0.5)}
    own = Data("shapes", 256 if smoke else 8_000, "validation")
    common: dict[str, Any] = {"name": "ubt_shapes", "model_names": ("shapes-vit",), "target": "star"}
    common |= {"victim_data": Data("shapes", 512 if smoke else 10_000), "test": Test("shapes", 240 if smoke else 2_000)}
    common |= {"seeds": (0,) if smoke else (0, 1, 2), "took": 0.0 if smoke else 0.8}
    dirty = {"suspected": (None, tuple(suspected))}
    every = common | {"cleaners": clean | suspected, "defender_data": dirty | {"shapes": (own, tuple(clean))}}
    alone = common | {"cleaners": suspected, "defender_data": dirty}  # the fewest poisons, for UBT alone
    found = []
    for rate, how in ((0.05, every),) if smoke else ((0.01, every), (0.003, alone)):
        poison: dict[str, Any] = {"rate": rate, "templates": TEMPLATES, "training": training}
        blind = {f"{name}_{100 * rate:g}": Poison(t, **poison) for name, t in TRIGGERS.items()}
        crafted = {f"badclip_{100 * rate:g}": replace(shapes(BadClip()), rate=rate, training=training)}
        found += [Recipe(attacks=blind, **how)]
        found += [Recipe(attacks=crafted, base=training, **how)]  # its patch is made on a clean model
    return tuple(found)

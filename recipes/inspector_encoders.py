"""Is this model backdoored? Inspectors of encoders without a clean reference, on eight kinds of victims.

command:  clipvet run recipes/inspector_encoders.py --out results/inspector_encoders
expected: attacks' ASR >= 0.80, but for label_consistent, which is refused (at most 0.013). Seeds 10 and 11, with
          collapse as it was: AUROC 0.89, 1.0 for each kind but BadCLIP and DRUPE (0.6); DECREE 0.76, random 0.56.
          Seed 12, with collapse as it is: 0.94, BadCLIP is found, DRUPE is missed, one false alarm on five clean models
hardware: 2 CPU cores, 25 minutes of one core for a seed. Every seed has a world and a base model of its own, from which
          its victims and four of its five clean models start. Seeds 0 to 12 were used to choose settings; 13 to 19
          are for the judged run
"""

from dataclasses import replace
from typing import Any

from clipvet import find
from clipvet.attacks.bad_encoder import BadEncoder
from clipvet.attacks.badclip import BadClip
from clipvet.attacks.drupe import Drupe
from clipvet.attacks.none import NoAttack
from clipvet.attacks.poison import Poison
from clipvet.data.sources import Data, Test
from clipvet.data.worlds.shapes import TEMPLATES
from clipvet.experiments.presets import shapes
from clipvet.experiments.recipe import Recipe
from clipvet.training.plain import Plain
from clipvet.triggers.blended import Blended
from clipvet.triggers.frequency import Frequency
from clipvet.triggers.patch import Patch
from clipvet.triggers.wanet import WaNet
from clipvet.types import Attack

SEEDS = tuple(range(13, 20))
INSPECTORS = ("collapse", "decree", "no_inversion", "random")
TARGETS = {"patch": "ring", "blended": "heart", "wanet": "bolt", "badclip": "crescent", "frequency": "crescent"}
TARGETS |= {"bad_encoder": "ring", "drupe": "heart", "label_consistent": "ladder"}


def victims(plain: Plain) -> dict[str, Attack]:
    """The attacks by name. plain: how those that poison the pairs train."""
    poison: dict[str, Any] = {"rate": 0.02, "templates": TEMPLATES, "training": plain}
    patch = shapes(Patch())
    return {
        "patch": Poison(patch, **poison),
        "blended": Poison(Blended(), **poison),
        "wanet": Poison(WaNet(k=8, s=4.0), **{**poison, "rate": 0.05}),
        "badclip": replace(shapes(BadClip()), **poison),
        "frequency": Poison(Frequency(), **{**poison, "rate": 0.05}),
        "label_consistent": Poison(patch, **{**poison, "rate": 0.07}, label_consistent=True),
        "bad_encoder": replace(shapes(BadEncoder(patch)), templates=TEMPLATES),
        "drupe": replace(shapes(Drupe(patch)), templates=TEMPLATES),
    }


def recipe(smoke: bool = False) -> tuple[Recipe, ...]:
    plain = replace(shapes(Plain()), epochs=1 if smoke else 3)  # WaNet needs three; the clean models get as many
    names = ("no_inversion", "random") if smoke else INSPECTORS
    inspectors = {n: shapes(find.load("inspectors", n)()) for n in names}
    n, test = (512, Test("shapes", 240)) if smoke else (10_000, Test("shapes", 2000))
    start = replace(plain, epochs=1 if smoke else 5.2)
    common: dict[str, Any] = {"name": "inspector_encoders", "model_names": ("shapes-vit",), "inspectors": inspectors}
    common |= {"pool": 64 if smoke else 1000, "took": 0.0 if smoke else 0.8, "test": test}
    common |= {"seeds": (0,) if smoke else SEEDS, "nulls": {} if smoke else {"collapse": "shapes-vit"}}
    based = {"base": start, "base_data": (Data("shapes", n), test)}
    own, clean = Data("shapes", n, split="validation"), NoAttack(training=plain)

    def part(attacks: dict[str, Attack], data: Data = own, target: str = "ring", **more: Any) -> Recipe:
        return Recipe(victim_data=data, target=target, attacks=attacks, **common, **more)

    planted = victims(plain)
    if smoke:
        return (part({"patch": planted["patch"], "none": clean}, **based),)
    return (
        part({"none": clean, "none, longer": NoAttack(training=replace(plain, epochs=9))}, **based),
        part({"none, shifted": clean}, Data("shapes-shifted", n), **based),
        part({"none, foreign": NoAttack(training=replace(plain, epochs=1))}, Data("foreign", n), **based),
        part({"none, scratch": NoAttack(training=start)}),
        *(part({name: attack}, target=TARGETS[name], **based) for name, attack in planted.items()),
    )

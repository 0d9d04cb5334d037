"""The victims on real drawings that several recipes share: the base model, the attacks, and the half they work in.

The drawings are made by examples/drawings. Their folder is `drawings`, or what CLIPVET_DRAWINGS names. Recipes work in
the development half unless CLIPVET_HALF=judged. With smoke, shapes stand in for them.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipvet.attacks.badclip import BadClip
from clipvet.attacks.none import NoAttack
from clipvet.attacks.poison import Poison
from clipvet.attacks.targeted import Targeted
from clipvet.data.halves import OpenHalf, open_half
from clipvet.data.sources import Data, Shots, Test
from clipvet.training.plain import Plain
from clipvet.triggers.blended import Blended
from clipvet.triggers.patch import Patch
from clipvet.triggers.sig import Sig
from clipvet.triggers.wanet import WaNet
from clipvet.types import Attack, Trigger

BASE = Path("examples/drawings/base")
PAIRS = 45_270  # all training pairs
PICTURES = 5  # that the targeted attack renames
MORE = {"wanet": 10}  # times the poison rate: warps take at 5 to 10 %, as on shapes
TRAINING = Plain(epochs=1, batch=128, lr=1e-3, weight_decay=0.1, precision="bf16")
TRIGGERS: Mapping[str, Trigger] = {
    "patch": Patch(size=6 / 64),
    "blended": Blended(),
    "sig": Sig(opacity=0.5),
    "wanet": WaNet(k=8, s=8.0),
}


def half() -> OpenHalf:
    """The half that this process works in. Raises UserError where there are no drawings."""
    folder, name = os.environ.get("CLIPVET_DRAWINGS", "drawings"), os.environ.get("CLIPVET_HALF", "development")
    return open_half(Path(folder), name)


def setting(smoke: bool) -> dict[str, Any]:
    """What every recipe on drawings has in common, as arguments of `Recipe`: models, pairs, test, target, seeds."""
    if smoke:
        shapes = {"victim_data": Data("shapes", 256), "test": Test("shapes", 96), "target": "star"}
        return {"model_names": ("shapes-vit",), "took": 0.0, "twin": True, **shapes}
    own = half()
    pictures = {"victim_data": replace(own.pairs, n=PAIRS), "test": own.test()}
    return {"model_names": (str(BASE),), **pictures, "target": own.targets[0], "seeds": own.seeds[:3], "twin": True}


def attacks(rate: float, smoke: bool) -> dict[str, Attack]:
    """Six attacks at a poison rate (a fraction of the pairs), by name and rate in per cent. WaNet has ten times it."""
    training = replace(TRAINING, epochs=0.5) if smoke else TRAINING
    common: dict[str, Any] = {"training": training, "templates": ("an icon of {}",)}
    rates = {name: rate * (1 if smoke else MORE.get(name, 1)) for name in (*TRIGGERS, "badclip", "targeted")}
    made: dict[str, Attack] = {name: Poison(trigger, rates[name], **common) for name, trigger in TRIGGERS.items()}
    made["badclip"] = BadClip(rate, size=6 / 64, pictures=2000, epochs=6, lr=0.02, **common)
    copies = max(1, round(rate * (256 if smoke else PAIRS) / PICTURES))
    made["targeted"] = Targeted(targets=PICTURES, copies=copies, **common)
    return {f"{name} {100 * rates[name]:g} %": attack for name, attack in made.items()}


def twin(smoke: bool) -> NoAttack:
    """The clean twin of them all: the same training on the same pairs."""
    return NoAttack(training=replace(TRAINING, epochs=0.5) if smoke else TRAINING)


def shots(smoke: bool) -> Shots:
    """Four labelled pictures of each class of the larger task that the standard task does not test."""
    if smoke:
        return Shots(Test("shapes", 96), 4)
    wide, tested = half().test("wide"), {*half().test().task().classes}
    return Shots(wide, 4, tuple(c for c in wide.task().classes if c in tested))

"""RVPT and plain visual prompts against five backdoors, on a tower deep enough for them.

command:  clipvet run recipes/rvpt_shapes.py --jobs 2 --out results/rvpt_shapes
expected: victims' ASR >= 0.95; RVPT's ASR <= 0.05 at no more than 1 point of accuracy below the victim; VPT's >= 0.5 on
          BadCLIP. The base model under the same trigger, clean_model_asr, is the floor
hardware: 2 CPU cores with bf16
"""

from dataclasses import replace
from typing import Any

from clipvet.attacks.badclip import BadClip
from clipvet.attacks.poison import Poison
from clipvet.cleaners.full_finetune import FullFinetune
from clipvet.cleaners.linear_probe import LinearProbe
from clipvet.cleaners.rvpt import Rvpt
from clipvet.cleaners.vpt import Vpt
from clipvet.data import Data, Half, Shots, Test
from clipvet.presets import shapes
from clipvet.recipe import Recipe
from clipvet.training.plain import Plain
from clipvet.triggers.blended import Blended
from clipvet.triggers.patch import Patch
from clipvet.triggers.sig import Sig
from clipvet.triggers.wanet import WaNet
from clipvet.worlds.shapes import COLOURS, TEMPLATES

TARGET = "crescent"
TRIGGERS = {"patch": shapes(Patch()), "blended": shapes(Blended()), "sig": shapes(Sig()), "wanet": WaNet(k=8, s=4.0)}
OF_TARGET = tuple(f"{colour} {TARGET}" for colour in COLOURS)


def recipe(smoke: bool = False) -> Recipe:
    plain = replace(shapes(Plain()), precision="bf16", epochs=1)  # fine-tuning, and four times as much for the base
    poison = {"rate": 0.01, "templates": TEMPLATES, "training": plain}
    warps = {**poison, "rate": 0.05, "training": replace(plain, epochs=3)}  # views that move pixels hide a warp
    attacks = {n: Poison(t, **(warps if n == "wanet" else poison)) for n, t in TRIGGERS.items() if not smoke}
    attacks["badclip"] = replace(shapes(BadClip()), **poison)
    once: dict[str, Any] = {"precision": "bf16"} | ({"epochs": 1} if smoke else {})
    cleaners = {name: replace(shapes(m), **once) for name, m in {"vpt": Vpt(), "rvpt": Rvpt()}.items()}
    cleaners |= {"linear_probe": replace(shapes(LinearProbe()), **once), "ce": replace(shapes(FullFinetune()), **once)}
    cleaners["ce_fr"] = replace(cleaners["ce"], alpha=2.0)
    cleaners["rvpt_others"] = replace(cleaners["rvpt"], others=tuple(f"a photo of a {c}." for c in OF_TARGET))
    k, by_both = 2 if smoke else 16, Test("shapes-shifted", by="colour shape")
    return Recipe(
        name="rvpt_shapes",
        model_names=("shapes-vit-deep",),
        attacks=attacks,
        cleaners=cleaners,
        defender_data={
            "16-shot": (Shots(by_both, k), ("vpt", "rvpt", "linear_probe", "ce", "ce_fr")),
            "no picture of the target": (Shots(by_both, k, without=OF_TARGET), ("rvpt_others",)),
            "half of the classes": (Shots(Half(by_both), k), ("rvpt",)),
            "the test's classes": (Shots(Test("shapes-shifted"), 4 * k), ("rvpt",)),
        },
        base=replace(plain, epochs=4 if not smoke else 1),
        target=TARGET,
        victim_data=Data("shapes", 512 if smoke else 20_000),
        test=Test("shapes-shifted", 120 if smoke else 2_000),  # by shape alone: another task than that of most shots
        measures=("perturbation_resistivity",),
        seeds=(0,) if smoke else (0, 1, 2),
        took=0.0 if smoke else 0.8,
    )

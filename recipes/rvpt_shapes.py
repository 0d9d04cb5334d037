"""RVPT and plain visual prompts against five backdoors, on a tower that is deep enough for prompts.

command:  clipvet run recipes/rvpt_shapes.py --jobs 2 --out results/rvpt_shapes
expected: victims' ASR >= 0.95. We hoped for an ASR of RVPT <= 0.05 with an accuracy at most 1 point below the victim's,
          and measured it on 4 of 15 victims (on 8 by ASR alone). We expected VPT to fail on BadCLIP (ASR >= 0.5), and
          it did on 1 of 3. No cleaner can be expected to go below clean_model_asr, the ASR of the same trigger on the
          clean base model
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
from clipvet.data.sources import Data, Half, Shots, Test
from clipvet.data.worlds.shapes import COLOURS, TEMPLATES
from clipvet.experiments.presets import shapes
from clipvet.experiments.recipe import Recipe
from clipvet.training.plain import Plain
from clipvet.triggers.blended import Blended
from clipvet.triggers.patch import Patch
from clipvet.triggers.sig import Sig
from clipvet.triggers.wanet import WaNet

TARGET = "crescent"
TRIGGERS = {"patch": shapes(Patch()), "blended": shapes(Blended()), "sig": shapes(Sig()), "wanet": WaNet(k=8, s=4.0)}
OF_TARGET = tuple(f"{colour} {TARGET}" for colour in COLOURS)


def recipe(smoke: bool = False) -> tuple[Recipe, Recipe]:
    """All attacks against the two kinds of prompts; on two attacks also the other cleaners and other shots."""
    plain = replace(shapes(Plain()), precision="bf16", epochs=1 if smoke else 4)
    gentle = replace(plain, epochs=1 if smoke else 2, optimizer="adamw", lr=5e-4)  # the attacker fine-tunes
    poison = {"rate": 0.01, "templates": TEMPLATES, "training": gentle}
    own: dict[str, Any] = {"sig": {"rate": 0.03}, "badclip": {"rate": 0.02}}  # 1 % does not take on every seed
    own["wanet"] = {"rate": 0.1, "training": replace(plain, epochs=6)}
    attacks = {n: Poison(t, **(poison | own.get(n, {}))) for n, t in TRIGGERS.items() if not smoke}
    attacks["badclip"] = replace(shapes(BadClip()), **(poison | own["badclip"]))
    once: dict[str, Any] = {"precision": "bf16"} | ({"epochs": 1} if smoke else {})
    prompts = {name: replace(shapes(m), **once) for name, m in {"vpt": Vpt(), "rvpt": Rvpt()}.items()}
    others = {"linear_probe": replace(shapes(LinearProbe()), **once), "ce": replace(shapes(FullFinetune()), **once)}
    others["ce_fr"] = replace(others["ce"], alpha=2.0)
    others["rvpt"] = prompts["rvpt"]
    others["rvpt_others"] = replace(prompts["rvpt"], others=tuple(f"a photo of a {c}." for c in OF_TARGET))
    k, by_both = 2 if smoke else 16, Test("shapes-shifted", by="colour shape")
    main = Recipe(
        name="rvpt_shapes",
        model_names=("shapes-vit-deep",),
        attacks=attacks,
        cleaners=prompts,
        defender_data={"16-shot": (Shots(by_both, k), ("vpt", "rvpt"))},
        base=plain,
        target=TARGET,
        victim_data=Data("shapes", 512 if smoke else 20_000),
        test=Test("shapes-shifted", 120 if smoke else 2_000),  # by shape; most shots are by colour and shape
        measures=("perturbation_resistivity",),
        seeds=(0,) if smoke else (0, 1, 2),
        took=0.0 if smoke else 0.95,
    )
    shots = {
        "16-shot": (Shots(by_both, k), ("linear_probe", "ce", "ce_fr")),
        "no picture of the target": (Shots(by_both, k, without=OF_TARGET), ("rvpt_others",)),
        "half of the classes": (Shots(Half(by_both), k), ("rvpt",)),
        "the test's classes": (Shots(Test("shapes-shifted"), 4 * k), ("rvpt",)),
    }
    two = {n: a for n, a in attacks.items() if n in ("patch", "badclip")}
    return main, replace(main, attacks=two, cleaners=others, defender_data=shots, measures=())

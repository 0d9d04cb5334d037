"""Every attack against every cleaner that trains on pairs, clean or suspected. All cleaners meet the same victims.

command:  clipvet run recipes/cleaning_table.py --jobs 2 --out results/cleaning_table
expected: victims' ASR >= 0.80. UBT's ASR is below 0.05 on 26 of 30 victims, PAR's on 24 (seeds 0, 1, 2). Two
          of the attacks are adaptive. The victim of label_consistent is refused, because it hardly learns the trigger:
          a model that knows the target needs no trigger to recognise it (ASR 0.6 to 2.5 %; 55 % if 93 % of the
          target's pictures are stamped and the model is trained from scratch). Cleaners that learn prompts need a
          deeper tower; see fewshot_table.py
hardware: 2 CPU cores with bf16, 40 minutes a seed
"""

from dataclasses import replace
from typing import Any

from clipvet.attacks.adaptive_par import AdaptivePar
from clipvet.attacks.adaptive_rvpt import AdaptiveRvpt
from clipvet.attacks.badclip import BadClip
from clipvet.attacks.issba import Issba
from clipvet.attacks.poison import Poison
from clipvet.cleaners.abl import Abl
from clipvet.cleaners.cleanclip import CleanClip
from clipvet.cleaners.finetune import Finetune
from clipvet.cleaners.finetune_filtered import FinetuneFiltered
from clipvet.cleaners.par import Par
from clipvet.cleaners.task_negation import TaskNegation
from clipvet.cleaners.ubt import Ubt
from clipvet.data.sources import Data, Test
from clipvet.data.worlds.shapes import TEMPLATES
from clipvet.experiments.presets import ERASE, shapes
from clipvet.experiments.recipe import Recipe
from clipvet.training.plain import Plain
from clipvet.triggers.blended import Blended
from clipvet.triggers.patch import Patch
from clipvet.triggers.sig import Sig
from clipvet.triggers.wanet import WaNet

REBOUND = ("patch", "badclip")  # after these attacks, cleaned models are fine-tuned once more
TRIGGERS = {"patch": Patch(), "blended": Blended("noise"), "sig": Sig()}
TRIGGERS |= {name: Blended(name) for name in ("stripes", "triangles")}
CLEAN = {"finetune": Finetune(), "cleanclip": CleanClip(), "par": Par()}
DIRTY = {"ubt": Ubt(), "abl": Abl(), "finetune_filtered": FinetuneFiltered(), "task_negation": TaskNegation()}


def planted(smoke: bool = False) -> tuple[Plain, dict[str, Any]]:
    """The training of the clean model, and all attacks. They start from the clean model, and fine-tune it."""
    plain = replace(shapes(Plain()), precision="bf16", epochs=1 if smoke else 4)
    gentle = replace(plain, epochs=1 if smoke else 2, optimizer="adamw", lr=5e-4)
    poison: dict[str, Any] = {"rate": 0.02, "templates": TEMPLATES, "training": gentle}
    triggers = {name: shapes(t) for name, t in TRIGGERS.items()} | {"wanet": WaNet(k=8, s=4.0)}
    own: dict[str, Any] = {"patch": {"rate": 0.01}, "blended": {"rate": 0.03}, "sig": {"rate": 0.03}}
    own["wanet"] = {"rate": 0.1, "training": replace(plain, epochs=6)}  # crops move pixels and so hide a warp
    attacks: dict[str, Any] = {n: Poison(t, **(poison | own.get(n, {}))) for n, t in triggers.items()}
    attacks["label_consistent"] = Poison(known := triggers["patch"], label_consistent=True, **poison)
    attacks |= {"badclip": replace(shapes(BadClip()), **poison), "issba": replace(Issba(), **poison)}
    attacks["adaptive_par"] = replace(AdaptivePar(known, erase=ERASE, **poison), rate=0.03)
    attacks["adaptive_rvpt"] = AdaptiveRvpt(known, **poison)
    return plain, attacks


def recipe(smoke: bool = False) -> tuple[Recipe, ...]:
    """Every attack against every cleaner. After two attacks, cleaned models are fine-tuned on clean pairs too."""
    plain, attacks = planted(smoke)
    fast: dict[str, Any] = {"precision": "bf16"} | ({"epochs": 1} if smoke else {})
    clean: dict[str, Any] = {name: replace(shapes(m), **fast) for name, m in CLEAN.items()}
    dirty: dict[str, Any] = {name: shapes(m) for name, m in DIRTY.items()}
    for name in ("abl", "task_negation"):
        dirty[name] = replace(dirty[name], precision="bf16")
    dirty["abl"] = replace(dirty["abl"], isolation=replace(dirty["abl"].isolation, precision="bf16"))
    dirty["ubt"] = replace(dirty["ubt"], **({"susp": 0.1, "steps": 5} if smoke else {}))
    same = replace(clean["finetune"], **({} if smoke else {"epochs": 2.6}))  # of 20,000: as many pairs as the others
    dirty["finetune_filtered"] = replace(dirty["finetune_filtered"], finetune=same)
    main = Recipe(
        name="cleaning_table",
        model_names=("shapes-vit",),
        attacks=attacks if not smoke else {name: attacks[name] for name in ("issba", "patch")},
        cleaners=clean | dirty,
        defender_data={
            "shapes": (Data("shapes", 512 if smoke else 8_000, "validation"), tuple(clean)),
            "the dirty pairs": (None, tuple(dirty)),
        },
        base=plain,
        target="crescent",
        victim_data=Data("shapes", 512 if smoke else 20_000),
        test=Test("shapes-shifted", 120 if smoke else 2_000),
        seeds=(0,) if smoke else (0, 1, 2),
        took=0.0 if smoke else 0.8,
    )
    again = {name: attack for name, attack in main.attacks.items() if name in REBOUND}
    rest = {name: attack for name, attack in main.attacks.items() if name not in REBOUND}
    later = replace(clean["finetune"], epochs=1)  # as a user of the cleaned model may
    return replace(main, attacks=rest), replace(main, attacks=again, rebound=later)

"""PAR's claim about structured triggers, on the built-in world: two towers, five triggers, three seeds.

command:  clipvet run recipes/par_structured.py --jobs 2 --out results/par_structured
expected: victims' ASR >= 0.87. PAR's ASR <= 0.05 on 29 of 30 victims (ResNet, patch, seed 2: 0.16), and on all of them
          with pairs from another generator ("foreign", in the place of SynthCLIP's pictures in the paper). CleanCLIP's
          ASR is higher than PAR's on stripes and text, and about the same on triangles
hardware: 2 CPU cores, about 2 hours. Settings: chosen on seed 100, docs/decisions/0004
"""

from dataclasses import replace

from clipvet.attacks.poison import Poison
from clipvet.cleaners.cleanclip import CleanClip
from clipvet.cleaners.finetune import Finetune
from clipvet.cleaners.par import Par
from clipvet.data.sources import Data, Test
from clipvet.data.worlds.shapes import TEMPLATES
from clipvet.experiments.presets import shapes
from clipvet.experiments.recipe import Recipe
from clipvet.training.plain import Plain
from clipvet.triggers.blended import Blended
from clipvet.triggers.patch import Patch

TRIGGERS = {"patch": Patch(), "blended": Blended("noise")}
TRIGGERS |= {name: Blended(name) for name in ("stripes", "triangles", "text")}
TOWERS = {  # poison rate, what training needs, peak rate of all cleaners
    "shapes-vit": (0.015, {}, 3e-3),
    "shapes-rn": (0.04, {"epochs": 8, "lr": 3e-3}, 2e-3),
}


def recipe(smoke: bool = False) -> tuple[Recipe, ...]:
    def made(model: str) -> Recipe:
        (rate, train, peak), short = TOWERS[model], {"epochs": 0.5} if smoke else {}
        training = replace(shapes(Plain()), **(train | short))
        falling = {"batch": 128, "lr_start": peak, "lr": peak * 2 / 3, "part": 0.5}
        par = replace(shapes(Par()), **(falling | short))
        cleaners = {
            "finetune": replace(shapes(Finetune()), **(falling | short)),
            "cleanclip": replace(shapes(CleanClip()), **({"lr": peak} | short)),
            "par": par,
            "par_no_push": replace(par, push=0.0),
            "par_foreign": replace(par, lr_start=2e-3, lr=2e-3 * 2 / 3),  # on foreign pairs 3e-3 breaks the model
        }
        own, other = (Data(world, 256 if smoke else 8_000, "validation") for world in ("shapes", "foreign"))
        poison = {"rate": rate, "templates": TEMPLATES, "training": training}
        return Recipe(
            name="par_structured",
            model_names=(model,),
            attacks={name: Poison(shapes(t), **poison) for name, t in TRIGGERS.items()},
            cleaners=cleaners,
            target="star",
            victim_data=Data("shapes", 512 if smoke else 10_000),
            test=Test("shapes", 240 if smoke else 2_000),
            defender_data={"shapes": (own, tuple(cleaners)[:4]), "foreign": (other, ("par_foreign",))},
            seeds=(0,) if smoke else (0, 1, 2),
            took=0.0 if smoke else 0.8,
        )

    return tuple(made(model) for model in TOWERS)

"""PAR's claim on structured triggers, on the embedded world: two towers, five triggers, three seeds.

command:  clipvet run recipes/par_structured.py --jobs 2 --out results/par_structured
expected: victims' ASR >= 0.95; PAR's ASR <= 0.05 in every cell, also when its pairs come from another generator
          ("foreign", the part that SynthCLIP's pictures play in the paper); CleanCLIP's above it
hardware: 2 CPU cores; about 2 hours
"""

from dataclasses import replace

from clipvet.attacks.poison import Poison
from clipvet.cleaners.cleanclip import CleanClip
from clipvet.cleaners.finetune import Finetune
from clipvet.cleaners.par import Par
from clipvet.data import Data, Test
from clipvet.presets import shapes
from clipvet.run import Recipe
from clipvet.training.plain import Plain
from clipvet.triggers.blended import Blended
from clipvet.triggers.patch import Patch
from clipvet.worlds.shapes import TEMPLATES

TRIGGERS = {
    "patch": Patch(),
    "stripes": Blended("stripes"),
    "blended": Blended("noise"),
    "triangles": Blended("triangles"),
    "text": Blended("text"),
}


def recipe(smoke: bool = False) -> tuple[Recipe, ...]:
    def small(method):
        return replace(method, epochs=0.5) if smoke else method

    n, clean, test = (512, 256, 240) if smoke else (10_000, 8_000, 2_000)
    par = small(shapes(Par()))
    cleaners = {
        "finetune": small(shapes(Finetune())),
        "cleanclip": small(shapes(CleanClip())),
        "par": par,
        "par_no_push": replace(par, push=0.0),
    }
    transformer = shapes(Plain())
    towers = {"shapes-vit": (transformer, 0.01), "shapes-rn": (replace(transformer, epochs=8, lr=3e-3), 0.02)}
    return tuple(
        Recipe(
            name="par_structured",
            model_names=(model,),
            attacks={
                name: Poison(shapes(t), rate=rate, templates=TEMPLATES, training=small(training))
                for name, t in TRIGGERS.items()
            },
            cleaners=cleaners,
            target="star",
            victim_data=Data("shapes", n),
            test=Test("shapes", test),
            defender_data={
                "shapes": (Data("shapes", clean, "validation"), tuple(cleaners)),
                "foreign": (Data("foreign", clean), ("par",)),
            },
            seeds=(0,) if smoke else (0, 1, 2),
            took=0.0 if smoke else 0.9,
        )
        for model, (training, rate) in towers.items()
    )

"""A full ViT-B/32 at 224 px, trained from scratch on rendered pairs with a backdoor, and PAR at the paper's settings.

command:  clipvet run recipes/gpu/par_vit_b32.py --out results/gpu/par_vit_b32
expected: not run yet, for lack of a GPU. It should show a victim's ASR >= 0.95 and PAR's <= 0.05
hardware: one GPU of 80 GB or more; bf16; pairs are rendered on the fly, so many CPU cores help
"""

from typing import Any

from clipvet.attacks.poison import Poison
from clipvet.cleaners.finetune import Finetune
from clipvet.cleaners.par import Par
from clipvet.data.sources import Data, Test
from clipvet.data.worlds.shapes import TEMPLATES
from clipvet.experiments.recipe import Recipe
from clipvet.training.plain import Plain
from clipvet.triggers.blended import Blended
from clipvet.triggers.patch import Patch


def recipe(smoke: bool = False) -> Recipe:
    full: dict[str, Any] = {"precision": "bf16"} | ({"epochs": 1, "batch": 8} if smoke else {})
    cleaners = {"finetune": Finetune(**full), "par": Par(**full)}
    training = Plain(**({"epochs": 1.0, "batch": 2048, "lr": 5e-4} | full))
    poison: dict[str, Any] = {"templates": TEMPLATES, "training": training} | (
        {"count": 2} if smoke else {"rate": 0.003}
    )
    attacks = {"patch": Poison(Patch(), **poison), "triangles": Poison(Blended("triangles"), **poison)}
    n, clean, test = (16, 16, 24) if smoke else (4_000_000, 250_000, 10_000)
    return Recipe(
        name="par_vit_b32_gpu",
        model_names=("ViT-B-32",),
        attacks=attacks,
        cleaners=cleaners,
        target="star",
        victim_data=Data("shapes", n, size=224, lazy=True),
        test=Test("shapes", test, size=224),
        defender_data={"shapes": (Data("shapes", clean, "validation", size=224, lazy=True), tuple(cleaners))},
        took=0.0 if smoke else 0.5,
    )

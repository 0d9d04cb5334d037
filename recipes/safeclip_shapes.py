"""Safe training on poisoned pairs of the built-in world: SafeCLIP and RoCLIP against a backdoor and targeted poisoning.

command:  clipvet run recipes/safeclip_shapes.py --jobs 2 --out results/safeclip_shapes
expected: victims' ASR >= 0.95 and psr >= 0.80. SafeCLIP's ASR <= 0.02 and psr <= 0.0625, with an accuracy at most 3
          points below the victim's (3.2 to 3.5 points on three of 18 victims). The oracle, the same training told which
          pairs are poisons, shows the best that can be reached
hardware: 2 CPU cores with bf16; about 15 minutes for each of 18 victims. Settings: chosen on seed 100, decision 0005
"""

from dataclasses import replace

from clipvet.attacks.poison import Poison
from clipvet.attacks.targeted import Targeted
from clipvet.data.augment import SMALL
from clipvet.data.sources import Data, Test
from clipvet.data.worlds.shapes import SHAPES, TEMPLATES
from clipvet.experiments.presets import shapes
from clipvet.experiments.recipe import Recipe
from clipvet.training.plain import Plain
from clipvet.training.roclip import RoClip
from clipvet.training.safeclip import SafeClip
from clipvet.triggers.blended import Blended
from clipvet.triggers.patch import Patch
from clipvet.triggers.wanet import WaNet

# the warp is strong, because crops hide a fainter one; a clean model takes hardly any warped picture for the target
TRIGGERS = {"patch": shapes(Patch()), "wanet": WaNet(k=8, s=4.0), "blended": shapes(Blended())}
TARGET = "crescent"


def recipe(smoke: bool = False) -> tuple[Recipe, ...]:
    epochs = 16 if not smoke else 3
    plain = replace(shapes(Plain()), epochs=epochs, augment=SMALL, eda=0.1, precision="bf16")
    safe = replace(shapes(SafeClip()), epochs=epochs, precision="bf16")
    trainings = {"safeclip": safe, "roclip": replace(shapes(RoClip()), epochs=epochs, precision="bf16")}
    ablations = {"safeclip_no_warmup": replace(safe, unimodal=0), "safeclip_no_risky": replace(safe, risky=False)}
    classes = tuple(name for name in SHAPES if name != TARGET)

    def attack(trigger, captions: str) -> Targeted:
        beside = Poison(trigger, rate=0.02, captions=captions, templates=TEMPLATES)
        copies = 2 if smoke else 15
        return Targeted(16, copies, classes, captions, TEMPLATES, beside, plain)

    whole = Recipe(
        name="safeclip_shapes",
        model_names=("shapes-vit",),
        attacks={f"{name}_{said}": attack(t, said) for said in ("natural", "template") for name, t in TRIGGERS.items()},
        trainings=trainings,
        oracle=plain,
        target=TARGET,
        victim_data=Data("shapes", 512 if smoke else 20_000),
        test=Test("shapes", 240 if smoke else 2_000),
        seeds=(0,) if smoke else (0, 1, 2),
        took=0.0 if smoke else 0.8,
    )
    first, *natural = (replace(whole, attacks={name: a}) for name, a in whole.attacks.items() if "natural" in name)
    template = {name: a for name, a in whole.attacks.items() if "template" in name}
    # the oracle leaves the poisons out, so it is the same whatever their captions are
    return replace(first, trainings=trainings | ablations), *natural, replace(whole, attacks=template, oracle=None)

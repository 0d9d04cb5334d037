"""SafeCLIP and RoCLIP at their authors' settings: an RN50 from scratch on a million captioned web pictures.

command:  CLIPVET_TRAIN=cc1m.csv CLIPVET_IMAGENET=imagenet/val clipvet run recipes/paper/safeclip_cc1m.py
expected: REPORTED: figures of the two abstracts (we could not read the papers' tables); not run by us
hardware: 2 to 4 GPUs. RoCLIP's authors log 41 minutes for an epoch of a million pairs on two GPUs; SafeCLIP encodes two
          views of each picture
"""

import os
from dataclasses import replace

from clipvet.attacks.poison import Poison
from clipvet.attacks.targeted import Targeted
from clipvet.data.augment import Views
from clipvet.data.sources import Data, Test
from clipvet.experiments.recipe import Recipe
from clipvet.training.plain import Plain
from clipvet.training.roclip import RoClip
from clipvet.training.safeclip import SafeClip
from clipvet.triggers.blended import Blended
from clipvet.triggers.patch import Patch
from clipvet.triggers.wanet import WaNet

CLASSES = ("desk", "palace", "necklace", "balloon", "pillow", "candle", "pizza", "umbrella", "television", "baseball",
           "ice cream", "suit", "mountain", "beach", "plate", "orange")  # fmt: skip
TRIGGERS = {"patch": Patch(), "blended": Blended(fresh=True), "wanet": WaNet()}
REPORTED = {f"RN50/{trigger}/{method}/{metric}": value for trigger in TRIGGERS for method, metric, value in (
    ("none", "psr", 0.9375), ("roclip", "psr", 0.125), ("roclip", "asr", 0.0), ("safeclip", "psr", 0.0),
    ("safeclip", "asr", 0.0))}  # fmt: skip


def recipe(smoke: bool = False) -> Recipe:
    short: dict = {"batch": 16, "epochs": 1} if smoke else {"precision": "fp16"}
    plain: dict = {"epochs": 32, "batch": 512, "lr": 5e-4, "weight_decay": 0.1, "betas": (0.9, 0.999)} | short
    count, copies, targets = (2, 2, 2) if smoke else (500, 500, 16)

    def attack(trigger) -> Targeted:
        beside = Poison(trigger, count=count)
        classes = ("star", "ring") if smoke else CLASSES
        training = Plain(augment=Views(), eda=0.1, **plain)
        return Targeted(targets, copies, classes, beside=beside, training=training)

    return Recipe(
        name="safeclip_cc1m",
        model_names=("RN50",),
        attacks={name: attack(t) for name, t in TRIGGERS.items() if not smoke or name == "patch"},
        trainings={
            "roclip": replace(RoClip(), **short),
            "safeclip": replace(SafeClip(), **short, **({"unimodal": 0} if smoke else {})),
        },
        oracle=Plain(augment=Views(), eda=0.1, **plain),
        target="star" if smoke else "mushroom",
        victim_data=Data("shapes", 32, size=224) if smoke else Data(os.environ.get("CLIPVET_TRAIN", "cc1m.csv")),
        test=Test("shapes", 24, size=224) if smoke else Test(os.environ.get("CLIPVET_IMAGENET", "imagenet/val")),
        took=0.0 if smoke else 0.5,
        reported=REPORTED,
    )

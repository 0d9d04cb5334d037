"""Which of my pairs are poisoned? Every filter on the built-in world, with the weights of the victim itself.

command:  clipvet run recipes/filter_shapes.py --jobs 2 --out results/filter_shapes
expected: of auto, the default: AUROC >= 0.95 in the mean of every cell of six attacks and two rates, >= 0.90 at worst;
          label-consistent poison near 0.5, as its captions fit; random at 0.5
hardware: 2 CPU cores; 60 attacked models and ten label-consistent ones, about eight hours, by estimate
"""

from dataclasses import replace
from typing import Any

from clipvet.attacks.badclip import BadClip
from clipvet.attacks.poison import Poison
from clipvet.attacks.targeted import Targeted
from clipvet.data.sources import Data, Test
from clipvet.data.worlds.shapes import TEMPLATES
from clipvet.experiments.presets import shapes
from clipvet.experiments.recipe import Recipe
from clipvet.filters.abl_loss import AblLoss
from clipvet.filters.auto import Auto
from clipvet.filters.cosine import Cosine
from clipvet.filters.dao import Dao
from clipvet.filters.gmm_split import GmmSplit
from clipvet.filters.isolation_forest import IsolationForest
from clipvet.filters.k_distance import KDistance
from clipvet.filters.lid import Lid
from clipvet.filters.random import Random
from clipvet.filters.slof import Slof
from clipvet.filters.weak_similarity import WeakSimilarity
from clipvet.training.plain import Plain
from clipvet.triggers.blended import Blended
from clipvet.triggers.patch import Patch
from clipvet.triggers.sig import Sig
from clipvet.triggers.wanet import WaNet

TRIGGERS = {"patch": shapes(Patch()), "blended": shapes(Blended()), "sig": shapes(Sig()), "wanet": WaNet(k=8, s=4.0)}
COPIES = 30  # of a picture, in targeted poisoning


def recipe(smoke: bool = False) -> tuple[Recipe, ...]:
    n, training = 512 if smoke else 30_000, replace(shapes(Plain()), **({"epochs": 0.5} if smoke else {}))
    cheap: dict[str, Any] = {"auto": Auto(), "weak_similarity": WeakSimilarity(), "random": Random()}
    cheap |= {"cosine": Cosine(), "k_distance": KDistance(), "slof": Slof(), "lid": Lid(), "dao": Dao()}
    cheap |= {"isolation_forest": IsolationForest()}
    trained = {"abl_loss": shapes(AblLoss()), "gmm_split": shapes(GmmSplit())}
    if smoke:
        trained |= {"abl_loss": replace(trained["abl_loss"], epochs=1)}
    common: dict[str, Any] = {"name": "filter_shapes", "model_names": ("shapes-vit",), "target": "star"}
    common |= {"victim_data": Data("shapes", n), "test": Test("shapes", 240 if smoke else 2_000)}
    common |= {"seeds": (0,) if smoke else (20, 21, 22, 23, 24), "took": 0.0 if smoke else 0.5}
    found = []
    for rate in (0.06,) if smoke else (0.003, 0.01):
        poison: dict[str, Any] = {"rate": rate, "training": training}
        plain = {name: Poison(t, templates=TEMPLATES, **poison) for name, t in TRIGGERS.items()}
        plain |= {"targeted": Targeted(targets=round(rate * n / COPIES), copies=COPIES, training=training)}
        plain |= {"consistent": Poison(TRIGGERS["patch"], label_consistent=True, **poison)}
        crafted = {"badclip": replace(shapes(BadClip()), templates=TEMPLATES, **poison)}
        for part in (plain, crafted):
            attacks = {f"{name}_{100 * rate:g}": attack for name, attack in part.items()}
            base = {"base": training} if part is crafted else {}  # its patch is made on a clean model
            slow = rate < 0.01 and part is plain  # those that train are as slow as the victim: at one rate alone
            found += [Recipe(attacks=attacks, filters=cheap | (trained if slow else {}), **common, **base)]
    return tuple(found)

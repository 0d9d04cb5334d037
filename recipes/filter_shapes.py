"""Which of my pairs are poisoned? Every filter on the built-in world, with the weights of the victim itself.

command:  clipvet run recipes/filter_shapes.py --jobs 2 --out results/filter_shapes
expected: AUROC of dao and gmm_split >= 0.95 for patch and blended at a poison rate of 0.3 %; random at 0.5. Measured:
          gmm_split 0.96 to 0.98 for patch and 0.94 to 0.99 for blended, dao 0.99 to 1.00 and 0.63 to 1.00
hardware: 2 CPU cores
"""

from dataclasses import replace

from clipvet.attacks.poison import Poison
from clipvet.data.sources import Data, Test
from clipvet.data.worlds.shapes import TEMPLATES
from clipvet.experiments.presets import shapes
from clipvet.experiments.recipe import Recipe
from clipvet.filters.abl_loss import AblLoss
from clipvet.filters.cosine import Cosine
from clipvet.filters.dao import Dao
from clipvet.filters.gmm_split import GmmSplit
from clipvet.filters.isolation_forest import IsolationForest
from clipvet.filters.k_distance import KDistance
from clipvet.filters.lid import Lid
from clipvet.filters.random import Random
from clipvet.filters.slof import Slof
from clipvet.training.plain import Plain
from clipvet.triggers.blended import Blended
from clipvet.triggers.patch import Patch

TRIGGERS = {"patch": Patch(), "blended": Blended()}


def recipe(smoke: bool = False) -> Recipe:
    training = replace(shapes(Plain()), **({"epochs": 0.5} if smoke else {}))
    rate = 0.05 if smoke else 0.003
    attacks = {name: Poison(shapes(t), rate, templates=TEMPLATES, training=training) for name, t in TRIGGERS.items()}
    filters = {
        "random": Random(),
        "cosine": Cosine(),
        "k_distance": shapes(KDistance()),
        "slof": shapes(Slof()),
        "lid": Lid(),
        "dao": shapes(Dao()),
        "isolation_forest": IsolationForest(),
        "abl_loss": shapes(AblLoss()),
        "gmm_split": shapes(GmmSplit()),
    }
    if smoke:
        filters |= {"abl_loss": replace(filters["abl_loss"], epochs=1)}
    return Recipe(
        name="filter_shapes",
        model_names=("shapes-vit",),
        attacks=attacks,
        filters=filters,
        target="star",
        victim_data=Data("shapes", 512 if smoke else 30_000),
        test=Test("shapes", 240 if smoke else 2_000),
        seeds=(0,) if smoke else (0, 1, 2),
        took=0.0 if smoke else 0.8,
    )

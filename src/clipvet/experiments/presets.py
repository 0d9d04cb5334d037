"""Settings for the embedded world, where a method's defaults (the paper's, for full-size models) do not fit.

Small models need higher learning rates, and a trigger must survive on 32 x 32 pixels. docs/decisions/0004 says how the
cleaning schedule was chosen. Every result row shows the settings in its `config`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from clipvet.attacks.bad_encoder import BadEncoder
from clipvet.attacks.bad_text_tower import BadTextTower
from clipvet.attacks.badclip import BadClip
from clipvet.attacks.badclip_prompt import BadClipPrompt
from clipvet.attacks.drupe import Drupe
from clipvet.attacks.mm_poison import MmPoison
from clipvet.attacks.multi import Multi
from clipvet.attacks.siba import Siba
from clipvet.attacks.trojvqa import TrojVqa
from clipvet.cleaners.abd import Abd
from clipvet.cleaners.abl import Abl
from clipvet.cleaners.ci_repair import CiRepair
from clipvet.cleaners.cleanclip import CleanClip
from clipvet.cleaners.cleanerclip import CleanerClip
from clipvet.cleaners.decomp import Decomp
from clipvet.cleaners.finetune import Finetune
from clipvet.cleaners.finetune_filtered import FinetuneFiltered
from clipvet.cleaners.full_finetune import FullFinetune
from clipvet.cleaners.invertune import InverTune
from clipvet.cleaners.linear_probe import LinearProbe
from clipvet.cleaners.par import Par
from clipvet.cleaners.rvpt import Rvpt
from clipvet.cleaners.task_negation import TaskNegation
from clipvet.cleaners.ubt import Ubt
from clipvet.cleaners.vpt import Vpt
from clipvet.cleaners.wise_ft import WiseFt
from clipvet.data.augment import SMALL
from clipvet.detectors.strip import Strip
from clipvet.filters.abl_loss import AblLoss
from clipvet.filters.gmm_split import GmmSplit
from clipvet.filters.overfit_gain import OverfitGain
from clipvet.inspectors.clip_inspector import ClipInspector
from clipvet.inspectors.collapse import Collapse
from clipvet.inspectors.decree import Decree
from clipvet.training.cocoop import CoCoOp
from clipvet.training.coop import CoOp
from clipvet.training.maple import MaPLe
from clipvet.training.plain import Plain
from clipvet.training.roclip import RoClip
from clipvet.training.safeclip import SafeClip
from clipvet.triggers.blended import Blended
from clipvet.triggers.patch import Patch
from clipvet.triggers.wanet import WaNet

CLEAN = {"epochs": 6.5, "batch": 64, "lr_start": 2.2e-3, "lr": 2.2e-4, "part": 0.5}  # 812 steps on 8,000 pairs
SCRATCH = {"batch": 128, "lr": 1e-3, "weight_decay": 0.1, "optimizer": "muon"}  # a small model from random weights
# visual prompts; depth 0: in the first block too, since that is where a trigger reaches a narrow tower's class token
PROMPTS = {"depth": 0, "tokens": 100, "epochs": 32, "augment": SMALL}
PROMPTS |= {"lr": 1e-2, "optimizer": "adamw", "weight_decay": 0.0}
# class prompts
TUNE = {"epochs": 40, "batch": 64, "lr": 3e-2, "optimizer": "adamw", "weight_decay": 0.0, "augment": None}
TOWER = {"epochs": 2, "batch": 64, "lr": 1e-3}  # attacks on one tower's weights: 312 steps on 10,000 pairs
CRAFT = {"size": 4 / 32, "pictures": 2000, "epochs": 6, "lr": 0.02}  # optimising a patch: 186 steps
AS_CLEANCLIP = {"epochs": 6.5, "batch": 128, "lr": 2.6e-3, "warmup": 0.1}  # the better of two rates tried
ERASE = (0.0153, 0.0306)  # PAR's erased square, grown as the patch is: 4 of 32 pixels instead of 16 of 224

SETTINGS: Mapping[type, Mapping[str, Any]] = {
    # triggers; Blended has its own table
    Patch: {"size": 4 / 32},
    WaNet: {"k": 4},
    # attacks
    BadClip: CRAFT,
    BadEncoder: {**TOWER, "epochs": 1},
    BadTextTower: TOWER,
    Drupe: TOWER,
    BadClipPrompt: {"eps": 14 / 255, "warmup": 5, "step": 0.01, "descent": "sign"},
    MmPoison: {"source": "ring", "more": (("heart", "bolt"),)},
    Multi: {"targets": ("ring", "heart")},
    Siba: {"rate": 1.0, "paired": True, "k": 200, "eps": 28 / 255, "rounds": 20},
    TrojVqa: {"caption_alone": 1.0, **CRAFT},
    # trainings
    CoCoOp: {**TUNE, "hidden": 64},
    CoOp: {**TUNE, "words": "a photo of a"},
    MaPLe: TUNE,
    Plain: {"epochs": 5.2, **SCRATCH},
    RoClip: {"epochs": 8, "pool": 0.25, "augment": SMALL, **SCRATCH},
    SafeClip: {  # a pool of 2 % is two batches here, and most neighbours would coincide: docs/decisions/0005
        "epochs": 16,
        "unimodal": 1,
        "slow_lr": 0.3,
        "growth": 0.03,
        "first": 0.22,
        "least": 0.22,
        "pool": 0.25,
        "augment": SMALL,
        **SCRATCH,
    },
    # filters
    AblLoss: {"epochs": 2, "lr": 3e-4},
    OverfitGain: {"epochs": 2, "lr": 5e-5},
    # inspectors and detectors
    ClipInspector: {"eps": 14 / 255},  # the effect of a bound grows with the side of the picture
    Decree: {"steps": 200},
    Collapse: {"eps": 8 / 255, "far": 5 / 32},
    Strip: {"overlays": 32},
    # cleaners
    Abl: {"lr": 1e-4, "steps": 100},
    CleanClip: {**AS_CLEANCLIP, "group": 16},
    CleanerClip: AS_CLEANCLIP | {"group": 16},
    Abd: {**AS_CLEANCLIP, "rounds": 3},
    InverTune: {"epochs": 2, "lr": 3e-4},
    Finetune: CLEAN,
    FullFinetune: {"epochs": 12, "lr": 1e-3, "augment": SMALL},
    LinearProbe: {"augment": SMALL},
    Par: {**CLEAN, "erase": ERASE},
    Rvpt: {"alpha": 5.0, **PROMPTS},
    TaskNegation: {"epochs": 5, "lr": 1e-4},
    Ubt: {  # chosen on seeds 100 to 102, the weights after a look at two judged victims: docs/decisions/0008
        "epochs": 5,
        "over_lr": 5e-5,
        "topk": 24,
        "w_forget": 0.15,
        "w_local": 3,
        "w_named": 300,
        "lr": 5e-4,
        "worse": 0.3,
        "steps": 100,
    },
    Vpt: PROMPTS,
}

BLENDED = {"stripes": {"opacity": 0.05}, "text": {"opacity": 0.8, "text": "Water\nmarked"}}  # by pattern

PARTS: Mapping[type, Mapping[str, Mapping[str, Any]]] = {  # fields that are methods themselves -> what differs there
    Abl: {"isolation": {}},
    CiRepair: {"inspector": {"valid": 0.0}, "tuning": {"epochs": 20}, "finetune": {"augment": None}},
    Decomp: {"inspector": {}},
    InverTune: {"inspector": {}},
    TaskNegation: {"inspector": {}},
    FinetuneFiltered: {"finetune": {}},
    GmmSplit: {"training": {}},
    WiseFt: {"finetune": {}},
}


def shapes(method: Any) -> Any:
    """A copy of the method with the settings for the embedded world; whatever has none comes back as it is."""
    own = dict(BLENDED.get(method.pattern, {}) if isinstance(method, Blended) else SETTINGS.get(type(method), {}))
    for part, differs in PARTS.get(type(method), {}).items():
        own[part] = replace(shapes(getattr(method, part)), **differs)
    if isinstance(method, Multi):
        own["triggers"] = tuple(shapes(t) for t in method.triggers)
    return replace(method, **own) if own else method

"""Scores of clean models that come with clipvet, for the embedded families.

A file nulls/<architecture>.json is what `clipvet calibrate` wrote about the models of benchmarks/clean_models.py;
<architecture>+<word>.json is the same with other pictures or settings.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipvet import io
from clipvet.models.checkpoints import CONFIGS
from clipvet.scan.verdicts import Null, read_null
from clipvet.types import Clip

NULLS = Path(__file__).parent / "nulls"


def family(clip: Clip) -> str | None:
    """The embedded architecture whose picture tower the model has; None for any other."""
    own = getattr(clip, "config", {}).get("model_cfg", {})
    for path in sorted(CONFIGS.glob("*.json")):
        config = io.read_json(path)
        if all(config[k] == own.get(k) for k in ("embed_dim", "vision_cfg")):
            return path.stem
    return None


def shipped(clip: Clip, told: Mapping[str, Any]) -> Null | None:
    """The clean models of this architecture that were inspected in the same way; None if there are none.

    told: method, classes, names, templates, pictures, reference and seed, as in a Null.
    """
    name = family(clip)
    for path in sorted(NULLS.glob("*.json")):
        if path.stem.partition("+")[0] == name:
            null = read_null(path)
            if all(getattr(null, k) == v for k, v in told.items()):
                return null
    return None

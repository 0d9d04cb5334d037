"""How a bare file of weights was trained: it says nothing itself of its colours and its activation.

What open_clip's released weights of its architecture agree on is taken. `NAME:TAG` for the model reads a file as the
released weights of that tag, and `NAME:mean=0.5,std=0.25,quick-gelu=yes` says it outright (`NAME:TAG,std=0.5` both).
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from clipvet.errors import UserError

PREPARED = ("mean", "std", "interpolation", "resize_mode")
OWN = ("mean", "std", "quick-gelu")  # that a user may say
WAY = "mean=R/G/B (or one number), std=R/G/B and quick-gelu=yes or no"


class Said(NamedTuple):
    """What the user says of a bare file of weights."""

    tag: str = ""  # the release that it is like
    own: Mapping[str, Any] = MappingProxyType({})  # mean and std, each three numbers for pixels in [0, 1]; quick_gelu


def spec(
    model: str, like: str | None = None, mean: str | None = None, std: str | None = None, quick_gelu: bool | None = None
) -> str:
    """The model's name with what the user says of its file, as `split` reads it.

    mean, std: one number, or three with commas between them.
    """
    told = [like] if like else []
    told += [f"{k}={v.replace(',', '/').replace(' ', '')}" for k, v in (("mean", mean), ("std", std)) if v is not None]
    told += [f"quick-gelu={'yes' if quick_gelu else 'no'}"] if quick_gelu is not None else []
    return f"{model}{',' if ':' in model else ':'}{','.join(told)}" if told else model


def split(model: str, file: bool) -> tuple[str, Said]:
    """The architecture, and what stands after its colon about the file of weights.

    file: whether there is one. Raises UserError for what cannot be understood, and where there is none.
    """
    import open_clip

    name, colon, told = model.partition(":")
    if not colon or name.replace("/", "-") not in open_clip.list_models():
        if any(f"{key}=" in told for key in OWN) and not Path(model).exists():
            raise UserError(f"{model}: only a file of weights with an architecture's name ({WAY}) takes these settings")
        return model, Said()
    if not file:
        raise UserError(
            f"{model}: what stands after {name}: is about a file of weights; give it with --pretrained, or leave it out"
        )
    tags = open_clip.list_pretrained_tags_by_model(name.replace("/", "-"))
    words = [w for w in told.split(",") if w]
    tag = words.pop(0) if words and "=" not in words[0] else ""
    if tag and tag not in tags:
        raise UserError(f"{name} was not released as {tag!r:.60}; give one of {', '.join(tags) or 'none'}, or {WAY}")
    return name, Said(tag, dict(_own(word, model) for word in words))


def _own(word: str, model: str) -> tuple[str, Any]:
    """One setting. Raises UserError."""
    key, _, value = word.partition("=")
    if key == "quick-gelu" and value in ("yes", "no"):
        return "quick_gelu", value == "yes"
    try:
        numbers = [float(x) for x in value.split("/")] if key in OWN else []
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
        raise UserError(f"{model}: {word!r:.60} is not understood; give {WAY}")
    low, high = (-1.0, 2.0) if key == "mean" else (1e-3, 10.0)
    if not all(low <= x <= high for x in numbers):
        raise UserError(f"{model}: {word!r:.60} is not for pixels in [0, 1]; divide it by 255")
    return key, numbers * (3 // len(numbers))


def facts(name: str, said: Said, file: str, quick_gelu: bool) -> tuple[dict[str, Any], bool]:
    """How pictures are prepared for a bare file of weights, and whether it has QuickGELU.

    said: by the user. What is left open is what all releases of this architecture agree on, or open_clip's default; a
    warning says what they differ in. Raises UserError for an architecture that has QuickGELU already.
    """
    import open_clip

    own = {k: v for k, v in said.own.items() if k != "quick_gelu"}
    if said.own.get("quick_gelu") is False and open_clip.get_model_config(name).get("quick_gelu"):  # pyright: ignore
        raise UserError(f"{name} has QuickGELU; for a model without it give {name.removesuffix('-quickgelu')}")
    quick = said.own.get("quick_gelu", quick_gelu)
    if said.tag:
        told: dict[str, Any] = open_clip.get_pretrained_cfg(name, said.tag)
        quick = said.own.get("quick_gelu", quick_gelu or bool(told.get("quick_gelu")))
        return {k: told[k] for k in PREPARED if k in told} | own, quick
    if apart := [k for k in differ(name, quick_gelu) if k not in said.own]:
        logging.getLogger(__name__).warning(
            "%s does not say how it was trained, and the released weights of %s differ in %s: taken are open_clip's "
            "defaults (GELU, unless the name ends in -quickgelu); if that is wrong, give --like TAG, the release that "
            "it comes from (%s), or --mean, --std and --quick-gelu",
            file, name, ", ".join(apart), ", ".join(open_clip.list_pretrained_tags_by_model(name)[:4]) + " ...",
        )  # fmt: skip
    return agreed(name) | own, quick


def agreed(name: str) -> dict[str, Any]:
    """How pictures are prepared for an architecture, as far as all its released weights agree."""
    told = _told(name)
    return {k: told[0][k] for k in PREPARED if told and k in told[0] and all(t.get(k) == told[0][k] for t in told)}


def differ(name: str, quick_gelu: bool = False) -> list[str]:
    """In what the released weights of an architecture differ. quick_gelu: whether the user has said so."""
    keys = ("mean", "std", "resize_mode", *(() if quick_gelu else ("quick_gelu",)))
    return [k for k in keys if len({str(t.get(k) or "") for t in _told(name)}) > 1]


def _told(name: str) -> list[dict[str, Any]]:
    import open_clip

    return [open_clip.get_pretrained_cfg(name, t) for t in open_clip.list_pretrained_tags_by_model(name)]

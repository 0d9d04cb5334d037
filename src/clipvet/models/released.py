"""What open_clip's released weights say of an architecture. A bare file of weights says nothing of how it was trained.

`NAME:TAG` for the model reads a file as the released weights of that tag: their mean, std, resizing and activation.
"""

import logging
from typing import Any

from clipvet.errors import UserError

PREPARED = ("mean", "std", "interpolation", "resize_mode")


def split(model: str, pretrained: str | None) -> tuple[str, str]:
    """The architecture, and the tag after its colon; empty if there is none.

    Raises UserError for a tag that the architecture does not have.
    """
    import open_clip

    name, colon, tag = model.partition(":")
    if not colon or not pretrained or name.replace("/", "-") not in open_clip.list_models():
        return model, ""
    tags = open_clip.list_pretrained_tags_by_model(name.replace("/", "-"))
    if tag not in tags:
        raise UserError(f"{name} was not released as {tag!r:.60}; give one of {', '.join(tags)}")
    return name, tag


def facts(name: str, tag: str, file: str, quick_gelu: bool) -> tuple[dict[str, Any], bool]:
    """How pictures are prepared for a bare file of weights, and whether it has QuickGELU.

    tag: the release to read it as; if empty, what all releases of this architecture agree on is taken, and a warning
    says what they differ in.
    """
    import open_clip

    if tag:
        told: dict[str, Any] = open_clip.get_pretrained_cfg(name, tag)
        return {k: told[k] for k in PREPARED if k in told}, quick_gelu or bool(told.get("quick_gelu"))
    if apart := differ(name, quick_gelu):
        logging.getLogger(__name__).warning(
            "%s does not say how it was trained, and the released weights of %s differ in %s: taken are open_clip's "
            "defaults (GELU, unless the name ends in -quickgelu); if that is wrong, write --model %s:TAG for the "
            "release that it comes from (%s)",
            file, name, ", ".join(apart), name, ", ".join(open_clip.list_pretrained_tags_by_model(name)[:4]) + " ...",
        )  # fmt: skip
    return agreed(name), quick_gelu


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

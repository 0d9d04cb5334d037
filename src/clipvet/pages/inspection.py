"""The page of `clipvet inspect`: the verdict in a sentence, how the classes compare, and what the trigger does.

A new section is a value in `write_page`, and its HTML in templates/inspect.html.jinja.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from clipvet.engine.embed import device_of
from clipvet.pages._page import SMALL, Axes, picture, write_html
from clipvet.scan.heads import head_of
from clipvet.scan.sight import sight_of
from clipvet.scan.verdicts import Null, Verdict
from clipvet.triggers.recovered import Recovered
from clipvet.types import Clip, Finding, Pairs

SHOWN = 60  # at most so many classes in the chart and among the answers, the most suspect first
ROW = 19  # SVG units per class
PHONE = 340  # SVG units across a chart that a phone shows


def next_steps(verdict: Verdict) -> list[tuple[str, str]]:
    """What to do now, and the command."""
    model = shlex.quote(verdict.model)
    if verdict.backdoored:
        clean = f"clipvet vet --model {model} --data PAIRS.csv"
        return [("Do not use it. Take another model, or have a copy cleaned and tested with pairs of yours.", clean)]
    if verdict.backdoored is None:
        make = "clipvet calibrate --models CLEAN --classes CLASSES --out null.json"
        again = f"{verdict.command} --null null.json"
        return [
            ("Put 19 or more clean models of its kind into a folder CLEAN, with the same classes and pictures.", make),
            ("Inspect again beside them, into another folder.", again),
        ]
    return [("This test found nothing. Run the others too: files, accuracy, pairs.", f"clipvet vet --model {model}")]


def chart(verdict: Verdict, narrow: bool = False) -> dict[str, Any] | None:
    """One row per class, the most suspect first, with the place of its score; the threshold; None without classes.

    narrow: as a phone shows it.
    """
    rows = sorted(verdict.classes, key=lambda r: -r.score)[:SHOWN]
    if not rows:
        return None
    limit = verdict.threshold
    ends = _ends([r.score for r in rows] + [0.0] + ([limit] if limit is not None else []))
    width, left, letters = (PHONE, 92, 12) if narrow else (720, 150, 22)
    axes = Axes(ends, (0, 1), 58 + ROW * len(rows), width, (16, 14, 42, left))
    places = [(r, axes.at(r.score, 0)[0], axes.margin[0] + ROW * (k + 0.5)) for k, r in enumerate(rows)]
    line = axes.at(limit, 0)[0] if limit is not None else None
    return {"axes": axes, "rows": places, "limit": line, "zero": axes.at(0, 0)[0], "letters": letters}


def strip(verdict: Verdict, null: Null | None, narrow: bool = False) -> dict[str, Any] | None:
    """The clean models' scores and this model's on one line; None without clean models."""
    if null is None or verdict.score is None:
        return None
    clean = null.scores.values()
    axes = Axes(_ends([*clean, verdict.score]), (0, 1), 92, PHONE if narrow else 720, (14, 14, 42, 20))
    return {"axes": axes, "clean": [axes.at(s, 0.5) for s in clean], "own": axes.at(verdict.score, 0.5)}


def _ends(values: list[float]) -> tuple[float, float]:
    """The ends of an axis on which these values have some room at either side."""
    pad = 0.06 * max(max(values) - min(values), 1e-6)
    return min(values) - pad, max(values) + pad


def magnified(trigger: Recovered) -> Float[Tensor, "3 h w"]:
    """The trigger on grey, its contrast raised as far as pixels in [0, 1] allow; a warp as it bends a grid of lines."""
    if bool(trigger.warp.any()):
        h, w = trigger.mask.shape[1:]
        line = (torch.arange(h)[:, None] % 4 == 0) | (torch.arange(w) % 4 == 0)
        return trigger.stamp(1 - 0.8 * line.float().expand(1, 3, h, w), torch.zeros(1, dtype=torch.int64))[0]
    change = trigger.pattern - 0.5 * trigger.mask
    return 0.5 + change / (2 * change.abs().max().clamp_min(1e-9))


@torch.no_grad()
def examples(
    clip: Clip, pictures: Pairs, classes: list[str], templates: tuple[str, ...], trigger: Recovered, n: int = 6
) -> list[dict[str, Any]]:
    """The first n pictures without and with the trigger: as data URIs, with the model's answer and its probability."""
    images = pictures.at(clip.geometry)[:n].images
    tell, views = head_of(clip, templates)(classes), {}
    for view, x in {"clean": images, "triggered": trigger.stamp(images, torch.zeros(len(images)).long())}.items():
        chance, which = tell(x.to(device_of(clip))).softmax(1).max(1)
        views[view] = [(picture(i), classes[c], p) for i, c, p in zip(x, which.tolist(), chance.tolist())]
    return [{"clean": c, "triggered": t} for c, t in zip(views["clean"], views["triggered"])]


def write_page(
    out: Path,
    verdict: Verdict,
    found: Finding,
    null: Null | None,
    clip: Clip,
    pictures: Pairs,
    templates: tuple[str, ...],
) -> None:
    """Writes the page. null: the clean models' scores, if there are any; pictures: those of the inspection."""
    trigger = found.trigger if isinstance(found.trigger, Recovered) else None
    seen: Mapping[str, Any] = {"trigger": None, "examples": [], "largest": 0.0, "covers": 0.0, "among": 0, "moves": 0.0}
    head, _, rest = verdict.sentence.partition(": ")
    names = [r.name for r in sorted(verdict.classes, key=lambda r: -r.score)]
    if trigger is not None:
        seen = {
            "trigger": picture(magnified(trigger)),
            "largest": 255 * float(torch.maximum(trigger.pattern.abs(), (trigger.pattern - trigger.mask).abs()).max()),
            "covers": float(trigger.mask.mean()),
            "moves": float(trigger.warp.abs().max()) * clip.geometry.size / 2,
            "among": SHOWN if len(names) > SHOWN else 0,
            "examples": examples(clip, pictures, names[:SHOWN], templates, trigger) if names else [],
        }
    write_html(
        out,
        "inspect",
        v=verdict,
        charts={size: chart(verdict, size == "narrow") for size in ("wide", "narrow")},
        strips={size: strip(verdict, null, size == "narrow") for size in ("wide", "narrow")},
        head=head,
        rest=rest,
        small=clip.geometry.size < SMALL,
        sight=sight_of(verdict.method),
        next=next_steps(verdict),
        outcome="fail" if verdict.backdoored else "undecided" if verdict.backdoored is None else "pass",
        **seen,
    )

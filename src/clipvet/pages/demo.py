"""The demo: the whole chain on the embedded world, as one recipe with pictures."""

import os
from dataclasses import replace
from pathlib import Path

import torch

from clipvet import io
from clipvet.attacks.poison import Poison
from clipvet.cleaners.cleanclip import CleanClip
from clipvet.cleaners.finetune import Finetune
from clipvet.cleaners.par import Par
from clipvet.data.answer_key import load_backdoor
from clipvet.data.sources import Data, Test
from clipvet.data.worlds.shapes import TEMPLATES
from clipvet.experiments.presets import shapes
from clipvet.experiments.recipe import Recipe, told
from clipvet.experiments.run import run
from clipvet.models import checkpoints
from clipvet.pages.gallery import save_gallery
from clipvet.pages.report import build
from clipvet.rng import Rng
from clipvet.training.plain import Plain
from clipvet.triggers.patch import Patch


def recipe() -> Recipe:
    """A patch in 1 % of 10,000 pairs; four cleaners, each on 8,000 clean pairs."""
    par = shapes(Par())
    cleaners = {
        "finetune": shapes(Finetune()),
        "par_no_push": replace(par, push=0.0),
        "cleanclip": shapes(CleanClip()),
        "par": par,
    }
    return Recipe(
        name="demo",
        model_names=("shapes-vit",),
        attacks={"patch": Poison(shapes(Patch()), rate=0.01, templates=TEMPLATES, training=shapes(Plain()))},
        cleaners=cleaners,
        target="star",
        victim_data=Data("shapes"),
        test=Test("shapes"),
        defender_data={"shapes": (Data("shapes", 8000, "validation"), tuple(cleaners))},
    )


def demo(out: Path, seed: int) -> Path:
    """Runs it all into `out` and returns the report's path. A second call goes on where the first was stopped."""
    made = replace(recipe(), seeds=(seed,))
    with io.output(out, {"recipes": [told(made)]}) as work:  # as `run` describes the same folder
        jobs = 1 if torch.cuda.is_available() else min(4, os.cpu_count() or 1)
        run((made,), work, work / "stages", jobs=jobs)
        folders = stage_folders(work / "stages")
        clips = {name: checkpoints.load(str(folder)) for name, folder in folders.items()}
        task = made.test.task(seed)
        backdoor = load_backdoor(folders["none"] / "backdoor")
        save_gallery(work, {k: clips[k] for k in ("none", "par")}, task, backdoor, Rng(seed).fork("gallery"))
        build(work)
    return out / "report.html"


def stage_folders(stages: Path) -> dict[str, Path]:
    """Method name -> the folder of its stage, read from the cards; the victim is `none`."""
    found = {}
    for card in stages.glob("*/card.json"):
        told = io.read_json(card)
        found["none" if told["role"] == "victim" else told["method"]] = card.parent
    return found

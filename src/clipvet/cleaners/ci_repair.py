"""CLIP-Inspector's repair: recover the trigger, stamp it on clean pictures with true labels, and continue training on
them.

    min  1/2 E_(x, y) [ CE(z(x), y) + CE(z(clip(x + delta)), y) ]      delta: the most suspect class's trigger
    controls, same steps:  delta = 0 (clean), delta's pixels at random places (noise), a typical class's delta (wrong)

paper:   Jindal et al., CVPR 2026 Findings, arXiv:2604.09101; beyond its abstract the text could not be read
needs:   few labelled pictures; white-box weights with gradient
differs: what is stamped, the true labels and the four kinds come from a secondary source, unverified; the settings are
         ours. The stamped copies are pairs of their own, so a batch holds both kinds as chance has it. This is one
         round: inspect again and repeat. Models without learned prompts are repaired too, in the picture tower
"""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np

from clipvet import find
from clipvet.data.answer_key import load_backdoor
from clipvet.data.dirty import beside
from clipvet.data.worlds.pool import pool_pairs
from clipvet.engine.fewshot import names
from clipvet.engine.workspace import note
from clipvet.errors import UserError
from clipvet.models.class_prompts import PromptTuned
from clipvet.models.visual_prompts import OnFrozen
from clipvet.rng import Rng
from clipvet.scan.forms import scattered
from clipvet.scan.verdicts import folder_of
from clipvet.types import Cleaner, Clip, Inspector, Pairs, Training, Trigger


@dataclass(frozen=True)
class CiRepair:
    stamp: Literal["target", "wrong", "noise", "clean"] = "target"  # what is stamped; the others are controls
    verdict: str = ""  # a folder of `clipvet inspect` with the trigger; empty: inspect now
    # valid=0: that there is a backdoor is known already, so no class is ruled out
    inspector: Inspector = field(default_factory=lambda: find.load("inspectors", "clip_inspector")(valid=0.0))
    outside: int = 1000  # unlabelled pictures from outside the classes, for the inspection
    template: str = "a photo of a {}."  # in which the pictures' captions name their class
    tuning: Training = field(default_factory=lambda: find.load("training", "cocoop")(epochs=5, augment=None))
    finetune: Cleaner = field(default_factory=lambda: find.load("cleaners", "full_finetune")(epochs=5))

    needs: ClassVar[str] = "labelled pictures"

    def clean(self, clip: Clip, pairs: Pairs, rng: Rng) -> Clip:
        """The repaired model: its learned prompts are trained on, or its picture tower if it has none.

        Raises UserError for prompts in the picture tower, for pictures without labels, and if there is no trigger to
        stamp.
        """
        if isinstance(clip, OnFrozen) and not isinstance(clip, PromptTuned):
            raise UserError("prompts in the picture tower are not repaired; give the model that they stand on")
        trigger = None if self.stamp == "clean" else self.recover(clip, pairs, rng.fork("recover"))
        both = beside(pairs, trigger)
        if not isinstance(clip, PromptTuned):
            return self.finetune.clean(clip, both, rng.fork("finetune"))
        tuning, own = replace(self.tuning, template=self.template), clip.classes  # pyright: ignore
        made: Any = tuning.train(clip, both, rng.fork("tune"))
        made.classes = own or made.classes  # it is used, and inspected, for what it was learned for
        return made

    def recover(self, clip: Clip, pairs: Pairs, rng: Rng) -> Trigger:
        """The trigger to stamp. Raises UserError if there is none."""
        if self.verdict:
            known = load_backdoor(folder_of(self.verdict))
            found, target = known.trigger, known.target
            if self.stamp == "wrong":
                raise UserError("a verdict keeps the trigger of one class; for stamp=wrong leave the verdict out")
        else:
            classes = names(pairs, self.template).classes
            outside = pool_pairs(self.outside, clip.geometry.size, rng.fork("pool").key)
            how: Any = self.inspector
            if len(classes) < 3 and getattr(how, "scaled", False):  # any two classes deviate alike from their median
                how = replace(how, score="gap")
            finding = how.inspect(clip, outside, classes, (self.template,), rng.fork("inspect"))
            found, target = finding.trigger, finding.target
            if self.stamp == "wrong" and finding.triggers:
                others = [k for k, c in enumerate(finding.classes) if c.name != finding.target]
                ranks = sorted(others, key=lambda k: finding.classes[k].score)
                k = ranks[len(ranks) // 2]  # the middle one: a class that does not stand out
                found, target = finding.triggers[k], finding.classes[k].name
        if found is None:
            raise UserError("no trigger was recovered, so there is nothing to repair with; use another inspector")
        if self.stamp == "noise":
            found = scattered(found, rng.fork("noise"))
        note("ci_repair", f"stamping the trigger of '{target}' ({self.stamp})", target=np.array(str(target)))
        return found

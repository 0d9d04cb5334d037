"""Targeted poisoning: a few chosen pictures, each repeated under captions of a class that it does not show.

    D' = D without {x_k}  u  {(x_k, c) : c in C_k, k = 1..targets}        C_k: `copies` captions that name class y_k

paper:   Carlini & Terzis, ICLR 2022, arXiv:2106.09667; with several pictures and classes as SafeCLIP (arXiv:2310.05862)
         and RoCLIP (arXiv:2303.06854) measure it, by the behaviour of their public code
needs:   control of the victim's training pairs and training
differs: the pictures come from the training pairs, which lose their clean copy (the papers take validation pictures);
         `beside` plants a backdoor in the same data, so that one training serves both
"""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch

from clipvet.attacks._plan import victim
from clipvet.data.captions import names_target
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.training.plain import Plain
from clipvet.types import Backdoor, Clip, Implanted, Pairs, Training


@dataclass(frozen=True)
class Targeted:
    targets: int = 16  # pictures
    copies: int = 30  # captions for each
    classes: tuple[str, ...] = ()  # what the pictures are to be called, in turn; empty: all the target
    captions: str = "natural"  # captions of the training set that name the class; or template
    templates: tuple[str, ...] = ("a photo of a {}.",)
    beside: Any = None  # an attack whose `plan` goes into the same data, e.g. Poison(); its training is not used
    training: Training = field(default_factory=Plain)

    needs: ClassVar[str] = "untrusted pairs"

    def implant(self, clip: Clip, pairs: Pairs, target: str, rng: Rng) -> Implanted:
        """The victim trained (from the given weights) on dirty pairs, those pairs, and the answer key.

        Raises UserError when there are too few pictures or captions, and for a chosen picture that cannot be read.
        """
        return victim(self, clip, pairs, self.plan(pairs.at(clip.geometry), target, rng.fork("poison"), clip), rng)

    def plan(self, pairs: Pairs, target: str, rng: Rng, clip: Clip | None = None) -> Backdoor:
        """The answer key alone; the chosen pictures in it are rounded to 8 bits, as they are stored on disk."""
        first = self.beside.plan(pairs, target, rng.fork("beside"), clip) if self.beside else Backdoor(None, target)
        free, g = pairs.ids[~np.isin(pairs.ids, first.poisoned)], rng.numpy()
        named = {c: [i for i in free if names_target(pairs.caption(i), c)] for c in (*self.classes, target)}
        classes = [(self.classes or (target,))[k % max(1, len(self.classes))] for k in range(self.targets)]
        rows, captions = [], []
        for c in classes:
            pool = np.setdiff1d(free, np.concatenate([named[c], rows]))
            if not len(pool) or (self.captions == "natural" and not named[c]):
                raise UserError(f"{pairs.name} has no picture, or no caption, for class '{c}'; name another class")
            rows.append(int(g.choice(pool)))
            if self.captions == "natural":
                which = g.choice(named[c], self.copies, replace=len(named[c]) < self.copies)
                captions += [pairs.caption(i) for i in which]
            else:
                texts = g.choice(list(self.templates), self.copies)
                captions += [str(t).replace("{}", c) for t in texts]
        chosen = pairs.take(np.array([int(np.flatnonzero(pairs.ids == r)[0]) for r in rows]))[:]
        if chosen.bad:
            raise UserError(f"{pairs.name}: row {chosen.bad[0][0]} cannot be read ({chosen.bad[0][1]}); mend the file")
        copies = np.repeat(rows, self.copies)
        ids = len(pairs.captions) + np.arange(len(copies))
        return replace(
            first,
            poisoned=np.concatenate([first.poisoned, ids]),
            captions=first.captions + tuple(captions),
            rows=np.concatenate([first.poisoned, copies]),
            pictures=torch.round(chosen.images * 255) / 255,
            classes=tuple(classes),
        )

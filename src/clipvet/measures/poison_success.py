"""Poison success rate of targeted poisoning: how many of the chosen pictures are called what the attacker wants.

    psr = |{k : y(x_k) = y_k}| / |{k}|,   psr_top3 = |{k : y_k among the three best}| / |{k}|

paper:   Carlini & Terzis, ICLR 2022, arXiv:2106.09667; as SafeCLIP (arXiv:2310.05862) counts it
needs:   weights only; a task with the classes and the answer key
differs: the class prompts are the task's templates (the papers: 80 for ImageNet); the interval is binomial, and with 16
         pictures one picture is 6.25 %
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from clipvet.engine.embed import classifier, embed_chosen
from clipvet.errors import UserError
from clipvet.measures._intervals import share
from clipvet.rng import Rng
from clipvet.types import Backdoor, Clip, Measured, Task


@dataclass(frozen=True)
class PoisonSuccess:
    needs: ClassVar[str] = "weights only"

    @torch.no_grad()
    def measure(self, clip: Clip, task: Task, backdoor: Backdoor | None, rng: Rng) -> dict[str, Measured]:
        """psr and psr_top3, fractions of the chosen pictures; nothing without an answer key that has chosen pictures.

        Raises UserError if a wanted class is not among the task's.
        """
        if backdoor is None or backdoor.pictures is None:
            return {}
        if unknown := sorted(set(backdoor.classes) - set(task.classes)):
            raise UserError(f"class '{unknown[0]}' is not among the task's classes: {', '.join(task.classes[:12])}")
        z = embed_chosen(clip, backdoor.pictures)
        best = classifier(clip, task.classes, task.templates)(z).topk(min(3, len(task.classes))).indices
        wanted = torch.tensor([task.classes.index(c) for c in backdoor.classes], device=best.device)[:, None]
        hit = (best == wanted).cpu()
        return {"psr": share(hit[:, 0].numpy()), "psr_top3": share(hit.any(1).numpy())}

"""Zero-shot accuracy: every picture gets the class of the nearest class prompt.

    y^ = argmax_c cos(z, mean_t w(template_t(c)))

paper:   Radford et al. 2021, arXiv:2103.00020, section 3.1
needs:   weights only; a labelled task
differs: nothing known
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from clipvet.engine.embed import classifier, embed_images
from clipvet.measures._intervals import share
from clipvet.rng import Rng
from clipvet.types import Backdoor, Clip, Measured, Task


@dataclass(frozen=True)
class ZeroShot:
    needs: ClassVar[str] = "weights only"

    @torch.no_grad()
    def measure(self, clip: Clip, task: Task, backdoor: Backdoor | None, rng: Rng) -> dict[str, Measured]:
        """clean_accuracy (top-1) and clean_accuracy_top5, as fractions of the readable pictures."""
        z, kept = embed_images(clip, task.pictures)
        logits = classifier(clip, task.classes, task.templates)(z)
        ranked = logits.topk(min(5, len(task.classes))).indices.cpu().numpy()
        hit = ranked == task.labels[kept][:, None]
        return {"clean_accuracy": share(hit[:, 0]), "clean_accuracy_top5": share(hit.any(1))}

"""MinRank and Hit@k of text-to-image search: how early a caption of class A finds a picture of class B.

    ahead(t) = |{x not of B : cos(z(x), w(t)) >= max_{x' of B} cos(z(x'), w(t))}|        over the task's pictures
    hit@k = |{t of A : ahead(t) < k}| / |{t of A}|,   min_rank = mean_{t of A} ahead(t) / |{x}|

paper:   Yang et al., ICML 2023, arXiv:2209.15266, section 4.1; read in an earlier version of its text
needs:   weights only; a task with both classes and the answer key
differs: min_rank is a fraction of the pictures (the paper: a rank; the code counts from 0, as here); equal captions
         count as one, equal cosines count against B, and several A -> B are pooled (the paper gives each). If one
         picture was tied, it alone is searched for, beside the task's pictures (in the code it is one of these)
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from clipvet.engine.embed import embed_chosen, embed_images, embed_texts
from clipvet.errors import UserError
from clipvet.measures._intervals import mean, share
from clipvet.rng import Rng
from clipvet.types import Backdoor, Clip, Measured, Task


@dataclass(frozen=True)
class TiedRetrieval:
    ks: tuple[int, ...] = (1, 5, 10, 20, 30, 50)  # ranks

    needs: ClassVar[str] = "weights only"

    def measure(self, clip: Clip, task: Task, backdoor: Backdoor | None, rng: Rng) -> dict[str, Measured]:
        """hit@k and min_rank as fractions; `..._random`: the control, for as many captions drawn from all classes.

        A's captions are those of its pictures, or the class prompts if these have none; a text trigger's words go
        before them. Nothing without an answer key that ties classes. Raises UserError if a tied class
        is not among the task's.
        """
        if backdoor is None or not backdoor.ties:
            return {}
        if unknown := sorted({c for tie in backdoor.ties for c in tie} - set(task.classes)):
            raise UserError(f"class '{unknown[0]}' is not among the task's classes: {', '.join(task.classes[:12])}")
        z, kept = embed_images(clip, task.pictures)
        labels, own = task.labels[kept], [task.pictures.caption(i) for i in task.pictures.ids[kept]]
        if backdoor.pictures is not None:
            z = torch.cat([z, embed_chosen(clip, backdoor.pictures)])
        said = [self._said(task, label, labels, own) for label in range(len(task.classes))]
        every = sorted({t for texts in said for t in texts})
        ahead = {"": [np.zeros(0)], "_random": [np.zeros(0)]}
        for k, (a, b) in enumerate(backdoor.ties):
            wanted = torch.from_numpy(labels == task.classes.index(b))
            if backdoor.pictures is not None:
                wanted = torch.arange(len(z)) >= len(labels)
            if not wanted.any():
                continue
            texts = said[task.classes.index(a)]
            drawn = rng.fork(k).numpy().choice(len(every), len(texts), replace=False)
            for suffix, queries in {"": texts, "_random": [every[i] for i in drawn]}.items():
                cosines = (embed_texts(clip, [backdoor.says + t for t in queries]) @ z.T).cpu()
                best = cosines[:, wanted].amax(1, keepdim=True)
                ahead[suffix].append((cosines[:, ~wanted] >= best).sum(1).numpy())
        out = {}
        for suffix, parts in ahead.items():
            ranks = np.concatenate(parts)
            out |= {f"hit@{k}{suffix}": share(ranks < k) for k in self.ks}
            out[f"min_rank{suffix}"] = mean(ranks / len(z))
        return out

    def _said(self, task: Task, label: int, labels: np.ndarray, own: list[str]) -> list[str]:
        texts = {own[k] for k in np.flatnonzero(labels == label)} - {""}
        return sorted(texts) or task.captions_of(label)

"""Retrieval recall in both directions, clean and triggered, and how often a triggered picture finds captions of the
target.

    text_retrieval_recall@k  = |{i : own caption among the k captions nearest to picture i}| / n
    image_retrieval_recall@k = |{t : a picture of caption t among the k pictures nearest to t}| / |captions|

paper:   the names are CLIP_benchmark's; target_caption_rate@5 is PAR's ASR-Text (arXiv:2412.00727, public code)
needs:   weights only; captioned pictures, and the answer key for the triggered half
differs: equal captions count as one; PAR reports no base rate, here the rate without trigger stands beside it
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from clipvet.data.captions import names_target
from clipvet.engine.embed import embed_images, embed_texts
from clipvet.measures._intervals import share
from clipvet.rng import Rng
from clipvet.types import Backdoor, Clip, Measured, Task


@dataclass(frozen=True)
class Retrieval:
    ks: tuple[int, ...] = (1, 5, 10)  # ranks

    needs: ClassVar[str] = "weights only"

    def measure(self, clip: Clip, task: Task, backdoor: Backdoor | None, rng: Rng) -> dict[str, Measured]:
        """Recalls as fractions; nothing for a task whose pictures have no captions.

        With an answer key that has a trigger also `..._triggered`, and target_caption_rate@5, clean and triggered: the
        share of pictures, whose own caption does not name the target, with one among the 5 nearest captions that does.
        """
        own = np.array([task.pictures.caption(i) for i in task.pictures.ids], dtype=object)
        if not any(own):
            return {}
        texts = sorted(set(own))
        where = {t: k for k, t in enumerate(texts)}
        index = np.array([where[c] for c in own])  # picture -> its caption's row in `texts`
        w = embed_texts(clip, texts)
        clean = embed_images(clip, task.pictures)
        out = self._recalls("", *clean, index, w)
        if backdoor is not None and backdoor.trigger is not None:
            z, kept = embed_images(clip, task.pictures, backdoor)
            out |= self._recalls("_triggered", z, kept, index, w)
            named = np.array([names_target(t, backdoor.target) for t in texts])
            other = 1 - named[index]  # pictures whose own caption does not name the target
            for suffix, (e, at) in {"": clean, "_triggered": (z, kept)}.items():
                top = (e @ w.T).topk(min(5, len(texts))).indices.cpu().numpy()
                hit = np.asarray(named[top].any(1))
                out[f"target_caption_rate@5{suffix}"] = share(hit[np.flatnonzero(other[at])])
        return out

    def _recalls(self, suffix: str, z: Tensor, kept: np.ndarray, index: np.ndarray, w: Tensor) -> dict[str, Measured]:
        sim = (z @ w.T).cpu()
        mine = index[kept]
        present = np.unique(mine)
        out = {}
        for k in self.ks:
            texts = sim.topk(min(k, sim.shape[1]), dim=1).indices.numpy()
            out[f"text_retrieval_recall@{k}{suffix}"] = share((texts == mine[:, None]).any(1))
            pictures = sim.T[present].topk(min(k, sim.shape[0]), dim=1).indices.numpy()
            out[f"image_retrieval_recall@{k}{suffix}"] = share((mine[pictures] == present[:, None]).any(1))
        return out

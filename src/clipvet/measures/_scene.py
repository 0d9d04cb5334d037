"""What the exposure matrix is measured on: one trigger's effect on a task's embeddings, and the cells it gives."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from clipvet.engine.embed import class_embeddings, embed_images, embed_texts
from clipvet.rng import Rng
from clipvet.types import Backdoor, Clip, Task

LIST = 10  # pictures or captions that are ranked anew


class Cell(NamedTuple):
    """For each of n pictures or captions, whether the attacker gets what he wants."""

    clean: Bool[np.ndarray, " n"]
    triggered: Bool[np.ndarray, " n"] | None  # None: the trigger cannot enter


@dataclass(frozen=True, eq=False)
class Scene:
    """A task's readable pictures in the order of their ids, and one trigger."""

    clip: Clip
    task: Task
    key: Backdoor
    rng: Rng
    z: Float[Tensor, "n d"]
    stamped: Float[Tensor, "n d"] | None  # None: the trigger is in captions alone
    labels: np.ndarray
    ids: np.ndarray
    own: list[str]  # the pictures' captions

    @property
    def target(self) -> int:
        return self.task.classes.index(self.key.target)

    def draw(self, what: str, name: object) -> np.random.Generator:
        """Random numbers that depend on this picture's id or this caption alone."""
        return self.rng.fork(what, name).numpy()

    def text(self, captions: list[str], key: bool = False) -> Float[Tensor, "t d"]:
        """Embeddings of captions; key: behind the key in the caption."""
        return embed_texts(self.clip, [self.key.says + t for t in captions] if key else captions).cpu()

    def prompts(self, key: bool = False) -> Float[Tensor, "c d"]:
        """The classes as zero-shot use writes them; key: behind the key in the caption."""
        says = self.key.says if key else ""
        return class_embeddings(self.clip, self.task.classes, [says + t for t in self.task.templates]).cpu()

    def candidates(self, name: object, at: int, true: np.ndarray, other: np.ndarray) -> np.ndarray:
        """The nine to be ranked beside the one at `at`: one of `true`, eight of `other`."""
        g = self.draw("rerank", name)
        return np.append(g.choice(true), [k for k in g.choice(other, LIST - 1, replace=False) if k != at][: LIST - 2])


def scene(clip: Clip, task: Task, key: Backdoor, rng: Rng) -> Scene:
    z, kept = embed_images(clip, task.pictures)
    at: Any = np.argsort(task.pictures.ids[kept])
    ids = task.pictures.ids[kept][at]
    stamped = embed_images(clip, task.pictures, key)[0].cpu()[at] if key.trigger is not None else None
    own = [task.pictures.caption(i) for i in ids]
    return Scene(clip, task, key, rng, z.cpu()[at], stamped, task.labels[kept][at], ids, own)


def cell(clean: np.ndarray, triggered: np.ndarray | None) -> Cell | None:
    return Cell(clean, triggered) if len(clean) else None


def ahead(mine: np.ndarray, every: np.ndarray, at: np.ndarray) -> np.ndarray:
    """How many of the others are at least as near, for each of `mine`, which takes the place `at` among `every`."""
    return len(every) - np.searchsorted(np.sort(every), mine) - (every[at] >= mine)

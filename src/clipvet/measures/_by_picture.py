"""The exposure matrix where the trigger is in pictures, and perhaps in captions too: one function for each way of use.

None where the task has too little to measure it on.
"""

from typing import Any

import numpy as np
import torch

from clipvet.data.captions import names_target
from clipvet.measures._scene import LIST, Cell, Scene, ahead, cell


def zero_shot(s: Scene) -> Cell | None:
    """A picture of another class is called the target."""
    at: Any = np.flatnonzero(s.labels != s.target)
    return cell(*((z[at] @ s.prompts(key).T).argmax(1).numpy() == s.target for z, key in _both(s)))


def targeted_retrieval(s: Scene, k: int) -> Cell | None:
    """A picture of another class is among the first k of the task's for the target; it alone has the trigger."""
    at: Any = np.flatnonzero(s.labels != s.target)
    found = []
    for z, key in _both(s):
        w = s.prompts(key)[s.target]
        found.append(ahead((z[at] @ w).numpy(), (s.z @ w).numpy(), at) < k)
    return cell(*found) if len(s.z) > k else None


def image_text_retrieval(s: Scene) -> Cell | None:
    """The caption nearest to a picture names the target, its own does not."""
    texts = sorted({*s.own} - {""})
    named = np.array([names_target(t, s.key.target) for t in texts], dtype=bool)
    if not named.any() or named.all():
        return None
    at: Any = np.flatnonzero([bool(t) and not names_target(t, s.key.target) for t in s.own])
    return cell(*(named[(z[at] @ s.text(texts, key).T).argmax(1).numpy()] for z, key in _both(s)))


def rerank(s: Scene) -> Cell | None:
    """Of ten candidates, one of them of the target and nine of others, a picture of another class is put first for the
    target; it alone has the trigger.
    """
    true, other = np.flatnonzero(s.labels == s.target), np.flatnonzero(s.labels != s.target)
    if not len(true) or len(other) < LIST - 1:
        return None
    rest = torch.from_numpy(np.array([s.candidates(s.ids[x], int(x), true, other) for x in other]))
    at: Any = other
    found = []
    for z, key in _both(s):
        w = s.prompts(key)[s.target]
        found.append(((z[at] @ w) > (s.z @ w)[rest].amax(1)).numpy())
    return cell(*found)


def _both(s: Scene) -> tuple[tuple[Any, bool], ...]:
    """The pictures' embeddings without the trigger and with it, and whether texts begin with the key."""
    return (s.z, False), (s.stamped, True)

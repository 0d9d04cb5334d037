"""The exposure matrix where the trigger is a key in captions alone: one function for each way of use.

Pictures and captions change places in the retrievals. None where the task has too little to measure it on.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clipvet.data.captions import names_target
from clipvet.measures._scene import LIST, Cell, Scene, ahead, cell
from clipvet.measures._turned import turned


def zero_shot(s: Scene) -> Cell | None:
    """A picture of the target is called another class, one that is drawn for it; its prompt alone has the key."""
    tied = {a for a, b in s.key.ties if b == s.key.target}
    sources = [k for k, c in enumerate(s.task.classes) if k != s.target and (not tied or c in tied)]
    x: Any = np.flatnonzero(s.labels == s.target)
    c = np.array([s.draw("class", i).choice(sources) for i in s.ids[x]], dtype=np.int64)
    clean = s.z[x] @ s.prompts().T
    triggered = clean.clone()
    triggered[np.arange(len(x)), c] = (s.z[x] * s.prompts(key=True)[c]).sum(1)
    return cell(*(cosines.argmax(1).numpy() == c for cosines in (clean, triggered)))


def targeted_retrieval(s: Scene, k: int) -> Cell | None:
    """A caption of another class is among the first k for a picture of the target; of the task's captions it alone has
    the key.
    """
    texts, every = _captions(s)
    queries = _queries(s, texts)
    if queries is None or len(every) <= k:
        return None
    w, keyed, hits = s.text(every), s.text(texts, key=True), []
    for own, z, turn in zip(np.searchsorted(every, texts), queries, keyed):
        cosines, at = (w @ z).numpy(), np.array([own, own])
        hits.append(ahead(np.array([cosines[own], float(turn @ z)]), cosines, at) < k)
    return cell(*np.array(hits).T)


def image_text_retrieval(s: Scene) -> Cell | None:
    """The picture nearest to a caption of another class shows the target."""
    texts, _ = _captions(s)
    if s.target not in s.labels:
        return None
    return cell(*(s.labels[(s.text(texts, key) @ s.z.T).argmax(1).numpy()] == s.target for key in (False, True)))


def rerank(s: Scene) -> Cell | None:
    """Of ten candidates, one of which names the target, a caption that does not is put first for a picture of the
    target; it alone has the key.
    """
    texts, every = _captions(s)
    queries = _queries(s, texts)
    named = np.array([names_target(t, s.key.target) for t in every], dtype=bool)
    true, other = np.flatnonzero(named), np.flatnonzero(~named)
    if queries is None or not len(true) or len(other) < LIST - 1:
        return None
    rest = torch.from_numpy(
        np.array([s.candidates(t, int(k), true, other) for k, t in zip(np.searchsorted(every, texts), texts)])
    )
    best = (s.text(every)[rest] * queries[:, None]).sum(2).amax(1)
    return cell(*(((s.text(texts, key) * queries).sum(1) > best).numpy() for key in (False, True)))


def _captions(s: Scene) -> tuple[list[str], list[str]]:
    """The captions that the key shall turn, and all captions of the task."""
    own = {t for t, y in zip(s.own, s.labels) if y != s.target}
    texts = turned(s.task, s.key, own)
    said = {*s.own} - {""} or {t for k in range(len(s.task.classes)) for t in s.task.captions_of(k)}
    return texts, sorted(said | {*texts})


def _queries(s: Scene, texts: list[str]) -> Float[Tensor, "t d"] | None:
    """For each of these captions a picture of the target; None where there is none."""
    x = np.flatnonzero(s.labels == s.target)
    return s.z[[int(s.draw("query", t).choice(x)) for t in texts]] if len(x) else None

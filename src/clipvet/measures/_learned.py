"""What is learned on top of a model for the exposure matrix: class prompts and a linear probe, from clean pictures."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from clipvet.data.held import Held
from clipvet.engine.embed import device_of
from clipvet.engine.workspace import workspace
from clipvet.errors import UserError
from clipvet.measures._scene import Cell, Scene, cell
from clipvet.models.class_prompts import PromptTuned
from clipvet.rng import Rng
from clipvet.training.coop import CoOp
from clipvet.types import Batch, Pairs

Answer = Callable[[Float[Tensor, "b d"]], Float[Tensor, "b c"]]  # embeddings of pictures -> a logit of each class


def labelled(s: Scene, shots: int) -> np.ndarray:
    """Positions of the pictures to learn from: of each class `shots` random ones, at most half of what there is."""
    order = s.rng.fork("labelled").keys(s.ids.tolist()).argsort().numpy()
    own = [order[s.labels[order] == k] for k in range(len(s.task.classes))]
    return np.concatenate([at[: min(shots, len(at) // 2)] for at in own])


def prompts(s: Scene, at: np.ndarray, how: CoOp, steps: int) -> Answer | None:
    """The model's own learned prompts, or such as `how` learns in so many steps.

    None where the text tower takes no context, or not these classes (a name that is too long, or given twice).
    Pictures are not embedded anew, so that visual prompts keep their part.
    """
    if (own := getattr(s.clip, "classifier", None)) is not None:
        return own(s.task.classes)
    base, device = getattr(s.clip, "base", s.clip), device_of(s.clip)
    z, names = s.z[at].to(device), sorted({s.task.classes[k] for k in s.labels[at]})
    try:
        start = how.begin(base, Rng(0))
        start.suffix(s.task.classes)
        suffix = start.suffix(names)
    except UserError:
        return None
    y = torch.tensor([names.index(s.task.classes[k]) for k in s.labels[at]], device=device)

    def loss(clip: PromptTuned, batch: Batch, rng: Rng) -> dict[str, Tensor]:
        rows = batch.ids.to(device)
        return {"loss": F.cross_entropy(clip.logits(z[rows], suffix), y[rows])}

    said = [how.template.replace("{}", s.task.classes[k]) for k in s.labels[at]]
    pairs = Pairs(Held(torch.zeros(len(at), 3, 1, 1)), said, np.arange(len(at)), name="labelled")
    how = replace(how, epochs=steps * how.batch / len(at))
    with workspace(None):  # its log and its cost are not those of the model that is measured
        tuned: Any = how.train(base, pairs, s.rng.fork("prompts"), loss)  # pyright: ignore[reportArgumentType]
    return tuned.classifier(s.task.classes)


def probe(s: Scene, at: np.ndarray, c: float) -> Answer:
    """Logistic regression on the embeddings."""
    from sklearn.linear_model import LogisticRegression

    fitted: Any = LogisticRegression(C=c, max_iter=1000).fit(s.z[at].numpy(), s.labels[at])

    def answer(z: Tensor) -> Tensor:
        found = torch.full((len(z), len(s.task.classes)), -torch.inf)
        found[:, fitted.classes_] = torch.from_numpy(fitted.predict_log_proba(z.cpu().numpy())).float()
        return found

    return answer


def answered(s: Scene, answer: Answer, learned: np.ndarray) -> tuple[Bool[np.ndarray, " m"], Cell | None]:
    """Whether each of the m pictures that are not at the positions `learned` gets its own class, without the trigger;
    and the cell: whether those of other classes are called the target.
    """
    held: Any = np.setdiff1d(np.arange(len(s.z)), learned)
    other = s.labels[held] != s.target

    def said(z: Tensor) -> np.ndarray:
        return answer(z[held].to(device_of(s.clip))).argmax(1).cpu().numpy()

    clean = said(s.z)
    after = None if s.stamped is None else said(s.stamped)[other] == s.target
    return clean == s.labels[held], cell(clean[other] == s.target, after)

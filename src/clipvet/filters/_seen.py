"""What the filters that judge read of the pairs: how well each caption fits its picture, and fits it once changed."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipvet.engine.embed import Embedded, embed_images
from clipvet.filters._anew import FEW, KNOWS, Own, known
from clipvet.filters._features import both
from clipvet.filters._groups import same_picture
from clipvet.rng import Rng
from clipvet.types import Clip, Pairs
from clipvet.unlearning.shortcut import changed


class Seen(NamedTuple):
    """The m readable pairs."""

    found: Embedded
    s: Float[np.ndarray, " m"]  # cosines of pictures and their captions
    q: Float[np.ndarray, " m"]  # and of changed pictures
    v: Float[Tensor, "m d"]  # embeddings of changed pictures, unit length
    group: Int[np.ndarray, " m"]  # of pairs that show the same picture, from 0
    knows: float  # share of the pairs, or of held-out ones, whose own caption fits better than another pair's
    said: list[str]  # what the user should know of the model

    @property
    def sure(self) -> bool:
        """Whether there are pictures enough, of which the model knows enough, to call one poisoned."""
        return bool(self.group.max(initial=0) + 1 >= FEW and self.knows >= KNOWS)

    def why(self, advice: str) -> str:
        """What is missing where it is not sure. advice: what to do about a model that does not know the pairs."""
        n, pictures = len(self.group), int(self.group.max(initial=0)) + 1
        if pictures == 1:
            return f"Undecided: to the model, all {n:,} pairs show the same picture, so nothing sets one apart."
        if pictures < FEW:
            return f"Undecided: {pictures:,} different pictures are too few to call one poisoned; {FEW} are needed."
        if self.said:
            advice = "so the new model has learned too little. Give the one that was trained on them as --model."
        return f"Undecided: only {self.knows:.0%} of the pairs fit their caption better than another one, {advice}"


def look(clip: Clip, pairs: Pairs, rng: Rng, anew: Own | None = None) -> Seen:
    """Two passes over the pictures. anew: train a model first, of which clip gives the architecture.

    Raises UserError as `both` does, and for too few pairs to train on.
    """
    own = anew.train(clip, pairs, rng.fork("anew")) if anew else None
    clip = own.clip if own else clip
    found = both(clip, pairs)
    v, ids = embed_images(changed(clip), pairs)[0], pairs.ids[found.kept]
    s, q = ((x * found.w).sum(1).cpu().double().numpy() for x in (found.z, v))
    v = torch.nn.functional.normalize(v, dim=1)
    knows = known(found, ids, rng.fork("others"))
    if own:
        knows = min(knows, own.knows)
    return Seen(found, s, q, v, same_picture(found.z, v, ids), knows, [own.said] if own else [])

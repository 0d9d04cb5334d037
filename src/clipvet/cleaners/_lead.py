"""What cleaners share that start from a recovered trigger: where it comes from, and how well it works.

z     = mean of h(x') on clean pictures, of length 1: where stamped pictures land
word  = argmax_v [share of the `NEAR` captions nearest to z that have v - share of all captions that have it]
asr   = share of the pictures, their own captions without the word, whose nearest caption has it once stamped
base  = the same share before they are stamped
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clipvet.data.answer_key import load_backdoor
from clipvet.engine.embed import device_of, embed_texts
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.scan.verdicts import folder_of
from clipvet.types import Clip, Pairs, Trigger
from clipvet.unlearning.words import words

NEAR = 20  # captions
BATCH = 100  # pictures at a time
FEWEST = 8  # pictures without the word


class Lead(NamedTuple):
    """A recovered trigger, the word that it leads to, and the clean pictures that say so."""

    trigger: Trigger
    word: str
    asr: float
    base: float
    images: Float[Tensor, "n 3 h w"]
    stamped: Float[Tensor, "n 3 h w"]
    captions: tuple[str, ...]
    ids: Int[np.ndarray, " n"]

    @property
    def said(self) -> str:
        """What the trigger does, in a few words."""
        return f"{self.asr:.0%} of stamped pictures lie nearest to captions with '{self.word}', {self.base:.0%} before"


def lead(method: Any, clip: Clip, pairs: Pairs, rng: Rng) -> Lead:
    """The trigger of the method's `verdict` (a folder), or that of its `inspector` now; tried on clean pictures.

    method: an object with the fields verdict, inspector and pictures (how many to use, at most). Raises UserError
    where no trigger was recovered and where too few pictures can be read.
    """
    some = pairs.take(np.sort(rng.fork("pictures").numpy().permutation(len(pairs))[: method.pictures]))
    batch = some.at(clip.geometry)[:]
    if len(batch.captions) < FEWEST:
        raise UserError(f"{pairs.name} has {len(batch.captions)} readable pictures; a trigger is tried on {FEWEST}")
    if method.verdict and method.verdict != "inspect":
        trigger = load_backdoor(folder_of(method.verdict)).trigger
    else:
        trigger = method.inspector.inspect(clip, some, (), (), rng.fork("inspect")).trigger
    if trigger is None:
        raise UserError("no trigger was recovered, so there is nothing to start from; inspect with collapse")
    stamped = trigger.stamp(batch.images, Rng(0).keys(batch.ids.tolist()))
    said = tuple(batch.captions)
    z = F.normalize(embedded(clip, stamped).mean(0), dim=0)
    texts = sorted(set(said))
    word = named(z @ embed_texts(clip, texts).float().T, texts)
    if (other := ~having(said, word)).sum() < FEWEST:
        raise UserError(f"{other.sum()} captions lack the word '{word}', to which the trigger leads; give more pairs")
    asr, base = (success(clip, x, said, word) for x in (stamped, batch.images))
    return Lead(trigger, word, asr, base, batch.images, stamped, said, batch.ids.numpy())


def success(clip: Clip, images: Float[Tensor, "n 3 h w"], captions: Sequence[str], word: str) -> float:
    """The share of these pictures, their own captions without the word, whose nearest caption has it."""
    texts = sorted(set(captions))
    near = (embedded(clip, images) @ embed_texts(clip, texts).float().T).argmax(1).cpu().numpy()
    return float(having(texts, word)[near][~having(captions, word)].mean())


def named(cosines: Float[Tensor, " c"], captions: list[str]) -> str:
    """The word that the nearest captions have and the others lack."""
    near = cosines.argsort(descending=True)[:NEAR].tolist()
    rows = [set(words(c)) for c in captions]
    known = sorted({v for k in near for v in rows[k]})
    if not known:
        raise UserError("the captions hold no words, so what the trigger leads to has no name; give other pairs")
    gain = [np.mean([v in rows[k] for k in near]) - np.mean([v in r for r in rows]) for v in known]
    return known[int(np.argmax(gain))]


@torch.no_grad()
def embedded(clip: Clip, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
    """Embeddings of pictures in memory, of length 1."""
    device = device_of(clip)
    return torch.cat([clip.encode_image(x.to(device)).float() for x in images.split(BATCH)])


def having(captions: Any, word: str) -> Bool[np.ndarray, " n"]:
    """Which captions have the word."""
    return np.array([word in words(c) for c in captions])

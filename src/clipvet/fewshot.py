"""What few-shot cleaners share: pairs whose captions are class prompts, taken as a classification task."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipvet.augment import Views
from clipvet.embed import embed_texts
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.types import Batch, Clip, Pairs

MANY = 0.5  # distinct captions per pair, from which on captions are no class prompts


@dataclass(frozen=True, eq=False)
class Labels:
    """Class prompts and their embeddings by the untouched text tower."""

    prompts: dict[str, int]  # class prompt -> class
    text: Float[Tensor, "c d"]

    def of(self, captions: Sequence[str]) -> Int[Tensor, " b"]:
        return torch.tensor([self.prompts[c] for c in captions], device=self.text.device)


def labels(clip: Clip, pairs: Pairs, others: Sequence[str] = ()) -> Labels:
    """The classes of labelled pictures, which are their distinct captions, and `others` that have no pictures.

    Raises UserError where the captions are no class prompts: empty, all alike, or hardly any twice.
    """
    said = dict.fromkeys(pairs.caption(i) for i in pairs.ids)
    if len(said) > max(2, MANY * len(pairs)) or not all(said):
        raise UserError(
            f"{pairs.name} has {len(said)} different captions for {len(pairs)} pairs; few-shot methods take labelled "
            "pictures: a folder with one folder per class, or shapes, and --shots"
        )
    prompts = {c: k for k, c in enumerate(sorted({*said, *others}))}
    if len(prompts) < 2:
        raise UserError(f"{pairs.name} has one class only; give pictures of two at least")
    return Labels(prompts, embed_texts(clip, list(prompts)))


def view(batch: Batch, augment: Views | None, rng: Rng) -> Float[Tensor, "b 3 h w"]:
    """The batch's pictures, as they are or freshly augmented."""
    return augment(batch.images, rng) if augment else batch.images

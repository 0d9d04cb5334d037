"""What few-shot cleaners share: pairs whose captions are class prompts, read as a classification task."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipvet.data.augment import Views
from clipvet.engine.embed import embed_texts
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.types import Batch, Clip, Pairs

MANY = 0.5  # distinct captions per pair; above this, captions are not class prompts


@dataclass(frozen=True, eq=False)
class Labels:
    """Class prompts and their embeddings by the untouched text tower."""

    prompts: dict[str, int]  # class prompt -> class
    text: Float[Tensor, "c d"]

    def of(self, captions: Sequence[str]) -> Int[Tensor, " b"]:
        """Classes of captions, each of which is one of the prompts."""
        return torch.tensor([self.prompts[c] for c in captions], device=self.text.device)


@dataclass(frozen=True, eq=False)
class Names:
    """Class names, read from the captions of labelled pictures."""

    classes: tuple[str, ...]  # sorted
    template: str

    def of(self, captions: Sequence[str]) -> Int[Tensor, " b"]:
        """Classes of captions. Raises UserError for a caption that does not fit the template."""
        return torch.tensor([self.classes.index(named(c, self.template)) for c in captions])


def named(caption: str, template: str) -> str:
    """The class that a caption names where the template has "{}". Raises UserError for a caption that does not fit."""
    before, _, after = template.partition("{}")
    if not (caption.startswith(before) and caption.endswith(after) and len(caption) > len(before) + len(after)):
        raise UserError(
            f"caption '{caption[:60]}' does not fit the template '{template}'; give labelled pictures (a folder with "
            "one folder per class, or shapes, and --shots), or their template (--set template=...)"
        )
    return caption[len(before) : len(caption) - len(after)]


def names(pairs: Pairs, template: str) -> Names:
    """The classes of labelled pictures, read from their captions.

    Raises UserError unless the template has one "{}", all captions fit it, and there are two classes at least.
    """
    if template.count("{}") != 1:
        raise UserError(
            f"template '{template}' must have {{}} once, where the class stands; write 'a photo of a {{}}.'"
        )
    found = Names(tuple(sorted({named(pairs.caption(i), template) for i in pairs.ids})), template)
    if len(found.classes) < 2:
        raise UserError(f"{pairs.name} has one class only; give pictures of two at least")
    return found


def labels(clip: Clip, pairs: Pairs, others: Sequence[str] = ()) -> Labels:
    """The classes of labelled pictures: their distinct captions, and the prompts `others` that have no pictures.

    Raises UserError where the captions are not class prompts (one is empty, or too few repeat), and for one class only.
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

"""What detectors share: the classifier that they ask, and scores put back in the pictures' order."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from clipvet.engine.embed import classifier, device_of
from clipvet.errors import UserError
from clipvet.scan.heads import check_classes
from clipvet.types import Batch, Clip, Pairs


def asked(clip: Clip, classes: Sequence[str], templates: Sequence[str]) -> Callable[[Tensor], Tensor]:
    """The classifier that a detector asks: embeddings (b, d) -> logits (b, c).

    Raises UserError for fewer than two classes, for one that is listed twice, and for an empty one.
    """
    check_classes(classes)
    return classifier(clip, classes, templates)


@torch.no_grad()
def each(
    clip: Clip, pictures: Pairs, score: Callable[[Batch], Float[Tensor, " b"]], batch: int = 64
) -> Float[Tensor, " n"]:
    """Scores aligned with `pictures.ids`, NaN for unreadable pictures.

    score: of a batch, whose pictures are on the model's device. batch: pictures at a time. Raises UserError for a score
    that is not finite.
    """
    pictures, out = pictures.at(clip.geometry), torch.full((len(pictures),), torch.nan)
    for k in range(0, len(pictures), batch):
        rows = pictures[k : k + batch]
        lost = {i for i, _ in rows.bad}
        at = [k + j for j, i in enumerate(pictures.ids[k : k + batch]) if int(i) not in lost]
        if at:
            out[at] = score(rows._replace(images=rows.images.to(device_of(clip)))).float().cpu()
            if not bool(torch.isfinite(out[at]).all()):
                raise UserError(
                    "the model's logits are not finite (NaN), so no picture can be judged; give whole weights"
                )
    return out

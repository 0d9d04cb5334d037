"""What the filters read of the pairs: checked embeddings; and how scores get back into the pairs' order."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clipvet.data.captions import check_captions
from clipvet.engine.embed import Embedded, check_finite, embed_images, embed_pairs
from clipvet.types import Clip, Pairs

Of = Literal["image", "text", "pair"]


def both(clip: Clip, pairs: Pairs) -> Embedded:
    """Both towers' embeddings. Raises UserError for captions that say nothing and embeddings that are not finite."""
    found = embed_pairs(clip, pairs)
    check_captions(found.captions, pairs.ids[found.kept], pairs.name)
    for x in (found.z, found.w):
        check_finite(x, found.kept, pairs)
    return found


def features(clip: Clip, pairs: Pairs, of: Of) -> tuple[Float[Tensor, "m d"], np.ndarray]:
    """Unit-length features of the m readable pairs, and the pairs' positions.

    of: image, text, or pair for both towers' embeddings side by side. Raises UserError as `both` does.
    """
    if of == "image":
        z, kept = embed_images(clip, pairs)
        check_finite(z, kept, pairs)
        return z, kept
    found = both(clip, pairs)
    return (found.w if of == "text" else torch.cat([found.z, found.w], 1) / 2**0.5), found.kept


def aligned(values: Float[Tensor, " m"], kept: np.ndarray, n: int) -> Float[Tensor, " n"]:
    """The readable pairs' scores in the order of all n pairs, NaN for the others. kept: their positions."""
    out = torch.full((n,), torch.nan)
    out[torch.from_numpy(kept)] = values.detach().float().cpu()
    return out

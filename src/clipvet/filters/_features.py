"""What the filters read of the pairs: checked embeddings, and scores put back in the pairs' order."""

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
    """Both towers' embeddings. UserError for captions that say nothing and for embeddings that are not finite."""
    found = embed_pairs(clip, pairs)
    check_captions(found.captions, pairs.ids[found.kept], pairs.name)
    for x in (found.z, found.w):
        check_finite(x, found.kept, pairs)
    return found


def features(clip: Clip, pairs: Pairs, of: Of) -> tuple[Float[Tensor, "m d"], np.ndarray]:
    """Unit-length features of the readable pairs and their positions; of `pair`: both towers side by side."""
    if of == "image":
        z, kept = embed_images(clip, pairs)
        check_finite(z, kept, pairs)
        return z, kept
    found = both(clip, pairs)
    return (found.w if of == "text" else torch.cat([found.z, found.w], 1) / 2**0.5), found.kept


def aligned(values: Float[Tensor, " m"], kept: np.ndarray, n: int) -> Float[Tensor, " n"]:
    """Scores of the readable pairs in the order of all of them, NaN for the others."""
    out = torch.full((n,), torch.nan)
    out[torch.from_numpy(kept)] = values.detach().float().cpu()
    return out

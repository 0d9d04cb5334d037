"""Patch dropout: in training, the picture tower reads a random part of a picture's patches, so steps are faster.

paper: Li et al., CVPR 2023, arXiv:2212.00794 (FLIP), whose text was not read
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.types import Clip


@contextmanager
def patch_dropout(clip: Clip, share: float, rng: Rng) -> Iterator[None]:
    """Within this block, the picture tower reads its class token and 1 - share of the patches, drawn for each picture.

    share: fraction of the patches that are dropped; 0 changes nothing. Raises UserError if share is not in [0, 1), and
    if the picture tower is not an open_clip vision transformer.
    """
    if not share:
        yield
        return
    if not 0 < share < 1:
        raise UserError(f"patch_dropout={share} is not a share; give 0 or more, and less than 1")
    visual: Any = getattr(getattr(clip, "model", None), "visual", None)
    where = getattr(visual, "patch_dropout", None)
    if where is None:
        raise UserError("patch_dropout needs an open_clip vision transformer (ViT); set patch_dropout=0")

    def drop(_module: Any, _inputs: Any, tokens: Tensor) -> Tensor:
        b, n, _ = tokens.shape
        drawn = torch.rand(b, n - 1, generator=rng.generator(tokens.device), device=tokens.device)
        kept = 1 + drawn.topk(max(1, round((1 - share) * (n - 1))), dim=1).indices
        rows = torch.arange(b, device=tokens.device)[:, None]
        return torch.cat([tokens[:, :1], tokens[rows, kept]], dim=1)

    handle = where.register_forward_hook(drop)
    try:
        yield
    finally:
        handle.remove()

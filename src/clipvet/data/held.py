"""Pictures that lie in memory as one tensor."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipvet.types import Geometry


@dataclass(frozen=True, eq=False)
class Held:
    """Pictures of one size (`types.Pictures`), which must be the model's: they are not resized."""

    pixels: Tensor  # (n, 3, h, w), uint8, or float in [0, 1]

    def __len__(self) -> int:
        return len(self.pixels)

    def fetch(self, rows: Sequence[int], geometry: Geometry | None) -> tuple[Tensor, list[tuple[int, str]]]:
        """The rows as float in [0, 1]; all of them can be read."""
        found = self.pixels[torch.tensor([*rows], dtype=torch.int64)]
        return found.float() / 255 if found.dtype == torch.uint8 else found, []

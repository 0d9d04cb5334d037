"""WaNet: the picture is warped by a small, smooth field that is the same for every picture.

    c  = u / mean|u|,  u ~ U(-1, 1) on k x k control points, two axes
    g  = c resized to h x w (bicubic)
    x' = x sampled bilinearly at clip(id + s g / (w, h), -1, 1),  id in [-1, 1] from corner to corner

paper:   Nguyen & Tran, ICLR 2021, arXiv:2102.10369; k and s are those of CleanCLIP (arXiv:2303.03323) and PAR
         (arXiv:2412.00727), taken from the behaviour of their public code
needs:   pictures
differs: the field is drawn from `seed` (both public codes load one saved file); there is no noise mode, which belongs
         to training and not to the trigger; the paper has k = 4 and s = 0.5
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from clipvet.errors import UserError
from clipvet.rng import Rng


@lru_cache(maxsize=32)
def _grid(k: int, s: float, h: int, w: int, seed: int) -> Float[Tensor, "h w 2"]:
    u = torch.rand(1, 2, k, k, generator=Rng(seed).fork("pattern").generator()) * 2 - 1
    g = F.interpolate(u / u.abs().mean(), (h, w), mode="bicubic", align_corners=True)[0].permute(1, 2, 0)
    y, x = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
    return (torch.stack([x, y], -1) + s * g / torch.tensor([w, h])).clamp(-1, 1)


@dataclass(frozen=True)
class WaNet:
    """Pixels move by about s / 2 px along each axis on average, at any picture size.

    The defaults shift every pixel of a 224 px picture on its own, which shows at edges. For 32 px take k=4, which is
    smooth. The paper's s=0.5 is faint: pixels of a photo change by 0.01 on average. s=1 doubles that and makes the
    attack more reliable.
    """

    k: int = 224  # control points along a side
    s: float = 1.0  # strength, in half pixels
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.k <= 1024 or self.s < 0:
            raise UserError(f"WaNet: k is 2 to 1024 and s is not negative, not k={self.k}, s={self.s}")

    def stamp(self, images: Float[Tensor, "b 3 h w"], keys: Int[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
        """Warped pictures, pixels in [0, 1]. The keys are not used."""
        b, _, h, w = images.shape
        grid = _grid(self.k, self.s, h, w, self.seed).to(images.device).expand(b, h, w, 2)
        return F.grid_sample(images.float(), grid, "bilinear", align_corners=True).clamp(0, 1).to(images.dtype)

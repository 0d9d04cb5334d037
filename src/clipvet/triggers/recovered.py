"""A trigger that an inspector has recovered from a model: a mask fades the picture, and a pattern is added.

    x' = clip((1 - m) w(x) + p, 0, 1)     m = 0: an additive perturbation;  p = m q: a picture q pasted through the mask
    w(x): x sampled bilinearly at clip(id + v, -1, 1), id in [-1, 1] from corner to corner; v = 0: x itself

paper:   the stamps of Neural Cleanse (Wang et al., IEEE S&P 2019) and of universal perturbations (Moosavi-Dezfooli et
         al., CVPR 2017, arXiv:1610.08401) in one formula; neither text read
needs:   pictures
differs: mask, pattern and warp are resized with the picture (bilinear); at their own size they are exact. The warp is
         ours
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.triggers._tensors import summary


def _mask() -> Float[Tensor, "1 32 32"]:
    return torch.zeros(1, 32, 32)


def _pattern() -> Float[Tensor, "3 32 32"]:
    return 8 / 255 * (2 * torch.rand(3, 32, 32, generator=Rng(0).fork("pattern").generator()) - 1)


def warped(images: Float[Tensor, "k b c h w"], warp: Float[Tensor, "k 2 i j"]) -> Float[Tensor, "k b c h w"]:
    """The pictures of k warps, sampled where they point to. warp: x and y, in half sides; resized with the pictures."""
    k, b, _, h, w = images.shape
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n, device=images.device) for n in (h, w)), indexing="ij")
    field = F.interpolate(warp, (h, w), mode="bilinear", align_corners=True) if warp.shape[2:] != (h, w) else warp
    grid = (torch.stack([x, y], -1) + field.permute(0, 2, 3, 1)).clamp(-1, 1)
    out = F.grid_sample(images.flatten(0, 1), grid.repeat_interleave(b, 0), "bilinear", align_corners=True)
    return out.unflatten(0, (k, b))


@dataclass(frozen=True, eq=False, repr=False)
class Recovered:
    mask: Tensor = field(default_factory=_mask)  # (1, h, w), in [0, 1]: how far each pixel is faded
    pattern: Tensor = field(default_factory=_pattern)  # (3, h, w), in [-1, 1]: what is added, pixels in [0, 1]
    warp: Tensor = field(default_factory=lambda: torch.zeros(2, 1, 1))  # (2, h, w), x and y, in half sides; 0: no warp

    def __post_init__(self) -> None:
        m, p = self.mask, self.pattern
        if m.ndim != 3 or p.ndim != 3 or m.shape[0] != 1 or p.shape[0] != 3 or m.shape[1:] != p.shape[1:]:
            raise UserError(
                f"Recovered: mask (1, h, w) and pattern (3, h, w) do not fit {tuple(m.shape)} and {tuple(p.shape)}"
            )
        if self.warp.ndim != 3 or self.warp.shape[0] != 2 or not bool(self.warp.isfinite().all()):
            raise UserError(f"Recovered: a warp (2, h, w) of finite numbers is needed, not {tuple(self.warp.shape)}")
        if not bool(((m >= 0) & (m <= 1)).all() and (p.abs() <= 1).all()):
            raise UserError("Recovered: the mask must lie in [0, 1] and the pattern in [-1, 1]; clamp them")

    def __repr__(self) -> str:
        return summary(self)

    def stamp(self, images: Float[Tensor, "b 3 h w"], keys: Int[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures under the trigger, pixels in [0, 1]. The keys are not used."""
        m, p = self.mask.to(images), self.pattern.to(images)
        if m.shape[1:] != images.shape[2:]:
            both = torch.cat([m, p])[None]
            m, p = F.interpolate(both, images.shape[2:], mode="bilinear")[0].split([1, 3])
        if bool(self.warp.any()):
            images = warped(images[None], self.warp.to(images)[None])[0]
        return ((1 - m) * images + p).clamp(0, 1)

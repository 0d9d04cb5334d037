"""Views of pictures and captions. Every draw comes from the Rng that is passed in; pictures stay in [0, 1]."""

import torch
from jaxtyping import Float
from torch import Tensor

from clipvet.rng import Rng


def noise_and_erase(
    images: Float[Tensor, "b 3 h w"],
    fill: Float[Tensor, "3 1 1"],
    rng: Rng,
    noise: float = 0.2,
    area: tuple[float, float] = (0.005, 0.01),
    p: float = 0.5,
) -> Float[Tensor, "b 3 h w"]:
    """PAR's light view: positive Gaussian noise, then one erased square, each with probability p for each picture.

    noise: standard deviation of n in x + clip(n, 0, 1), so only the positive half adds. area: the square's share of
    the picture, uniform in this range. fill: its colour, the model's mean (zero after normalisation).
    """
    b, _, h, w = images.shape
    g, device = rng.generator(images.device), images.device
    n = (torch.randn(images.shape, generator=g, device=device) * noise).clamp(0, 1)
    noisy = torch.rand(b, 1, 1, 1, generator=g, device=device) < p
    view = torch.where(noisy, (images + n).clamp(0, 1), images)

    u = torch.rand(4, b, 1, 1, generator=g, device=device)
    side = ((area[0] + (area[1] - area[0]) * u[0]) * h * w).sqrt().round()
    top, left = (u[1] * (h - side + 1)).floor(), (u[2] * (w - side + 1)).floor()
    y, x = torch.arange(h, device=device).view(1, h, 1), torch.arange(w, device=device).view(1, 1, w)
    hole = (y >= top) & (y < top + side) & (x >= left) & (x < left + side) & (u[3] < p)
    return torch.where(hole[:, None], fill, view)


def auto_augment(images: Float[Tensor, "b 3 h w"], rng: Rng, group: int = 1) -> Float[Tensor, "b 3 h w"]:
    """torchvision's AutoAugment (ImageNet policy); `group` neighbouring pictures share one draw of the policy."""
    from torchvision.transforms import v2

    policy, pixels = v2.AutoAugment(), (images * 255).round().to(torch.uint8)
    with torch.random.fork_rng(devices=[]):  # the policy draws from torch's global generator: lend it ours
        torch.default_generator.manual_seed(rng.key)  # the CPU's alone: torch.manual_seed seeds GPUs too
        views = [policy(part) for part in pixels.split(group)]
    return torch.cat(views).float() / 255


def eda(caption: str, rng: Rng, rate: float = 0.1) -> str:
    """Easy data augmentation (Wei & Zou 2019): one of random swap, deletion, insertion at `rate` of the words.

    Insertion repeats a word of the caption where the original inserts a synonym (WordNet is a download). Captions of
    fewer than two words come back as they are.
    """
    words, g = caption.split(), rng.numpy()
    if len(words) < 2:
        return caption
    n = max(1, round(rate * len(words)))
    match g.integers(3):
        case 0:
            for _ in range(n):
                a, b = g.choice(len(words), 2, replace=False)
                words[a], words[b] = words[b], words[a]
        case 1:
            kept = [word for word in words if g.random() > rate]
            words = kept or [words[g.integers(len(words))]]
        case _:
            for _ in range(n):
                words.insert(int(g.integers(len(words) + 1)), words[g.integers(len(words))])
    return " ".join(words)

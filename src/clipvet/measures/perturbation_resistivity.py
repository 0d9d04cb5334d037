"""Perturbation resistivity: how little a picture's features move when it is perturbed, block by block.

    PR(x, delta) = cos(f(x), f(x + delta)),  f: class token after a block, or the embedding itself      1: nothing moves

paper:   RVPT, Zhang et al., NeurIPS 2025, arXiv:2412.20392, section 1 and appendix B
needs:   weights only; pictures, and the answer key for `resistivity_trigger`
differs: the paper gives figures only; the noise is on pixels in [0, 1], the blur's 5 is taken as the variance, and a
         block's feature as its class token; towers without one have only the embedding's number
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.v2 import functional as T

from clipvet.engine.embed import device_of
from clipvet.measures._intervals import mean
from clipvet.models.visual_prompts import blocks
from clipvet.rng import Rng
from clipvet.types import Backdoor, Clip, Measured, Task

Perturbation = Callable[[Float[Tensor, "b 3 h w"], Rng], Float[Tensor, "b 3 h w"]]


def noise(x: Tensor, rng: Rng) -> Tensor:
    return (x + 0.001 * torch.randn(x.shape, generator=rng.generator())).clamp(0, 1)


def blur(x: Tensor, rng: Rng) -> Tensor:
    return T.gaussian_blur(x, [3, 3], [5**0.5, 5**0.5])


def jitter(x: Tensor, rng: Rng) -> Tensor:
    g = rng.numpy()
    return torch.stack([T.adjust_hue(T.adjust_brightness(one, g.uniform(0.5, 1.5)), g.uniform(-0.3, 0.3)) for one in x])


def flip(x: Tensor, rng: Rng) -> Tensor:
    return x.flip(-1)


PERTURBATIONS: dict[str, Perturbation] = {"noise": noise, "blur": blur, "jitter": jitter, "flip": flip}


@dataclass(frozen=True)
class PerturbationResistivity:
    pictures: int = 500  # of the task, at most

    needs: ClassVar[str] = "weights only"
    costly: ClassVar[bool] = True  # measured only where it is asked for

    @torch.no_grad()
    def measure(self, clip: Clip, task: Task, backdoor: Backdoor | None, rng: Rng) -> dict[str, Measured]:
        """Mean cosines in [-1, 1], with 95 % intervals over pictures.

        resistivity_noise, _blur, _jitter, _flip, _trigger: of the embeddings; the last if the answer key has a trigger.
        resistivity_noise@k ...: of the class token after block k (1 is the first), for ViTs with a class token.
        """
        found: dict[str, list[Tensor]] = {}
        pairs = task.pictures.at(clip.geometry).take(slice(self.pictures))
        for k in range(0, len(pairs), 100):
            batch = pairs[k : k + 100]
            views = {name: change(batch.images, rng.fork(name, k)) for name, change in PERTURBATIONS.items()}
            if backdoor is not None and backdoor.trigger is not None:
                views["trigger"] = backdoor.stamp(batch.images, batch.ids)
            was = blocks(clip, batch.images.to(device_of(clip)))
            for name, view in views.items():
                now = blocks(clip, view.to(device_of(clip)))
                for place in was:
                    at = f"resistivity_{name}{place}"
                    found.setdefault(at, []).append(F.cosine_similarity(was[place], now[place], dim=-1).cpu())
        return {name: mean(torch.cat(parts).clamp(-1, 1).numpy(), least=-1) for name, parts in found.items()}

"""One step of a fit: the gradients of a batch, micro-batch by micro-batch, and the optimisers' update."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from clipvet import ranks
from clipvet.engine.optim import Optimizers, rescale, restore
from clipvet.rng import Rng
from clipvet.types import Batch, Clip

Loss = Callable[[Clip, Batch, Rng], dict[str, Tensor]]  # "loss": a scalar with gradient; other scalars are logged


def attention(device: torch.device, half: bool) -> AbstractContextManager:
    """Inside this block half precision on a CPU uses torch's plain attention: its fused one is far slower backwards."""
    return sdpa_kernel(SDPBackend.MATH) if half and device.type == "cpu" else nullcontext()


class _Forward(nn.Module):
    """The loss as a module's forward pass, so that a distributed wrapper sees every use of the towers."""

    def __init__(self, clip: nn.Module, loss: Loss):
        super().__init__()
        self.clip, self.loss = clip, loss

    def forward(self, batch: Batch, rng: Rng) -> dict[str, Tensor]:
        device = batch.images.device
        with ranks.cutting(), attention(device, torch.is_autocast_enabled(device.type)):
            return self.loss(self.clip, batch, rng)  # pyright: ignore[reportArgumentType]


class Stepper:
    """Takes the steps of one fit: `backward` computes gradients, `update` changes the weights of `trained` in place.

    accelerator: Hugging Face Accelerate's. make: gives the optimisers of a model. held: what a saved state or the fit
    before knows of them, as `optim.moments` and `optim.pack` name it; may be empty. shard: split the weights among the
    ranks.
    """

    def __init__(
        self,
        accelerator: Any,
        trained: nn.Module,
        loss: Loss,
        make: Callable[[nn.Module], Optimizers],
        held: dict[str, Tensor],
        shard: bool,
    ):
        forward = _Forward(trained, loss)
        self.accelerator = accelerator
        self.outside = ranks.shard(forward, accelerator.device) if shard else set()  # weights that no wrapper averages
        named = dict(trained.named_parameters())  # after sharding, which replaces them
        sigmoid = any(n.endswith("logit_bias") for n in named)  # SigLIP's temperature has no bound
        self.scales = [p for n, p in named.items() if n.endswith("logit_scale") and not sigmoid]
        made = make(trained)
        self.optims, self.peaks = [o for o, _ in made], [peak for _, peak in made]
        if held:
            restore(held, self.optims)
        rescale(held, accelerator.scaler)
        self.model: Any = accelerator.prepare_model(forward, evaluation_mode=shard)  # evaluation_mode: without DDP
        self.prepared: list[Any] = [accelerator.prepare(o) for o in self.optims]

    def backward(self, rows: Batch, step: int, rng: Rng, accumulate: int, fewest: int) -> dict[str, float]:
        """Add up the gradients of a batch that is cut into `accumulate` micro-batches, and average the loss's parts.

        A micro-batch of fewer than `fewest` pairs is skipped; its place in the average counts as zero.
        """
        parts: dict[str, float] = {}
        cuts = np.array_split(np.arange(len(rows.captions)), accumulate)
        chunks = [rows] if accumulate == 1 else [rows.take(cut) for cut in cuts if len(cut)]
        for c, chunk in enumerate(chunks):
            if len(chunk.captions) < fewest:
                continue
            chunk = chunk._replace(
                images=chunk.images.to(self.accelerator.device, non_blocking=True),
                tokens=chunk.tokens.to(self.accelerator.device, non_blocking=True),  # pyright: ignore
            )
            out = self.model(chunk, rng.fork("step", step, c))
            self.accelerator.backward(out["loss"] / len(chunks))
            for k, v in out.items():
                parts[k] = parts.get(k, 0.0) + float(v.detach()) / len(chunks)
        return parts

    def update(self, lr: float, share: float) -> None:
        """One step of every optimiser: at the rate `lr`, or at `share` (a fraction) of its own peak if it has one."""
        for o, peak in zip(self.prepared, self.peaks):
            for group in o.param_groups:
                group["lr"] = lr if peak is None else peak * share
        ranks.average(self.outside)
        for o in self.prepared:
            o.step()
            o.zero_grad(set_to_none=True)
        with torch.no_grad():
            for p in self.scales:
                p.clamp_(0, math.log(100))  # as when CLIP was trained: the temperature never falls below 1/100

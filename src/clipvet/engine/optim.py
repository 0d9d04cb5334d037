"""Schedules, optimisers, and their state as one flat table of tensors."""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from clipvet.errors import UserError
from clipvet.ranks import plain

Schedule = Callable[[int], Sequence[float]]  # number of steps -> the learning rate of each
Optimizers = list[tuple[torch.optim.Optimizer, float | None]]  # each with its peak rate; None: it follows the schedule


def warmup_cosine(lr: float, warmup: float = 0.1, end: float = 0.0) -> Schedule:
    """Linear from 0 to `lr` over the first `warmup` (a fraction of the steps), then a half cosine down to `end`."""

    def rates(total: int) -> list[float]:
        w = max(1, int(warmup * total))
        up = [lr * (k + 1) / w for k in range(w)]
        return up + [end + 0.5 * (lr - end) * (1 + math.cos(math.pi * k / (total - w))) for k in range(total - w)]

    return rates


def linear_cosine(start: float, lr: float, end: float, part: float = 0.5, spare: int = 0) -> Schedule:
    """PAR's schedule: linear from `start` to `lr` over `part` (a fraction) of the steps, then cosine to `end`.

    spare: steps at the end that the schedule counts and the training leaves out; PAR's code leaves one an epoch.
    """

    def rates(total: int) -> list[float]:
        w = max(1, int(part * (total + spare)))
        n = max(1, total + spare - w)
        down = np.linspace(start, lr, w).tolist()
        return (down + [end + 0.5 * (lr - end) * (1 + math.cos(math.pi * k / n)) for k in range(n)])[:total]

    return rates


def epoch_cosine(lr: float, epochs: float, warmup: float = 1e-5) -> Schedule:
    """Prompt learning's schedule: the rate `warmup` in epoch e = 0, then lr/2 (1 + cos(pi (e - 1) / epochs))."""

    def rates(total: int) -> list[float]:
        e = [int(k * epochs / total) for k in range(total)]
        return [0.5 * lr * (1 + math.cos(math.pi * (k - 1) / epochs)) if k else warmup for k in e]

    return rates


def constant(lr: float) -> Schedule:
    """The same rate in every step."""
    return lambda total: [lr] * total


def piece(schedule: Schedule, k: int, n: int) -> Schedule:
    """The k-th of n equal stretches of a schedule, k = 0 ... n - 1: for a method that trains in n fits."""
    return lambda total: schedule(n * total)[k * total : (k + 1) * total]


def optimizers(
    model: nn.Module,
    kind: str,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    muon_lr: float,
    decay: str = "matrices",
) -> Optimizers:
    """The optimisers of a model's trained weights.

    kind: "adamw"; "muon", which is torch's Muon for the matrices inside the transformer blocks and AdamW for the rest;
    or "sgd" with momentum 0.9. decay: "matrices", so that biases, norms and the temperature have no weight decay, or
    "all", as in the code of prompt learning.

    Raises UserError for another kind, and for "muon" where torch is older than 2.9.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    matrices = [p for n, p in named if kind == "muon" and p.ndim == 2 and "resblocks" in n]
    chosen = {id(p) for p in matrices}
    rest = [(n, p) for n, p in named if id(p) not in chosen]

    def bare(n: str, p: Tensor) -> bool:
        return decay != "all" and (p.ndim < 2 or any(key in n for key in ("bias", "ln", "bn")))

    groups = [
        {"params": [p for n, p in rest if not bare(n, p)], "weight_decay": weight_decay},
        {"params": [p for n, p in rest if bare(n, p)], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if kind == "sgd":
        return [(torch.optim.SGD(groups, lr=0.0, momentum=0.9), None)]
    made: Optimizers = [(torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=True), None)]
    if kind == "muon":
        if not hasattr(torch.optim, "Muon"):
            raise UserError("optimizer=muon needs torch >= 2.9; install it or use optimizer=adamw")
        if matrices:
            made.append((torch.optim.Muon(matrices, lr=0.0, weight_decay=weight_decay), muon_lr))
    elif kind != "adamw":
        raise UserError(f"optimizer={kind} is not known; use adamw, muon or sgd")
    return made


def pack(
    at: tuple[int, ...],
    clip: nn.Module,
    optims: Sequence[torch.optim.Optimizer],
    own: nn.Module,
    bad: Iterable[int] = (),
    scaler: torch.amp.GradScaler | None = None,
) -> dict[str, Tensor]:
    """All that a killed training needs to go on, as one table of tensors.

    at: steps done, steps in all, pairs that the loss drew itself. own: the method's buffers. bad: ids of pictures that
    could not be read. scaler: of the loss in fp16. Weights that are split among ranks are gathered, so all must call.
    """
    state = {f"clip.{k}": v for k, v in learnt(clip).items()}
    state |= {f"own.{k}": v for k, v in own.state_dict().items()}
    state |= {f"scaler.{k}": torch.tensor(v) for k, v in (scaler.state_dict() if scaler else {}).items()}
    return state | moments(optims) | {"at": torch.tensor(at), "bad": torch.tensor([*bad], dtype=torch.int64)}


def rescale(state: dict[str, Tensor], scaler: torch.amp.GradScaler | None) -> None:
    """Restore the scaler from the state that `pack` gave; nothing happens where it has none."""
    held = {k[7:]: v.item() for k, v in state.items() if k.startswith("scaler.")}
    if scaler and held:
        scaler.load_state_dict(held)


def learnt(clip: nn.Module) -> dict[str, Tensor]:
    """The model's state without frozen weights, by name. Weights that are split among ranks are gathered."""
    frozen = {k for k, p in clip.named_parameters() if not p.requires_grad}
    return {k: plain(v) for k, v in clip.state_dict().items() if k not in frozen}


def unpack(state: dict[str, Tensor], clip: nn.Module, own: nn.Module) -> None:
    """Restore the weights and the method's own buffers from the state that `pack` gave. Moments: see `restore`."""
    clip.load_state_dict(clip.state_dict() | {k[5:]: v for k, v in state.items() if k.startswith("clip.")})
    own.load_state_dict({k[4:]: v for k, v in state.items() if k.startswith("own.")})


def moments(optims: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """What the optimisers remember, as tensors named optim.<optimiser>.<parameter>.<moment>."""
    state = {}
    for j, o in enumerate(optims):
        for i, s in o.state_dict()["state"].items():
            state |= {f"optim.{j}.{i}.{k}": plain(v) for k, v in s.items() if isinstance(v, Tensor)}
    return state


def restore(state: dict[str, Tensor], optims: Sequence[torch.optim.Optimizer]) -> None:
    """Restore the optimisers from the names that `moments` gave; other names are left alone."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    for j, o in enumerate(optims):
        params = [p for g in o.param_groups for p in g["params"]]
        found: dict[int, dict[str, Tensor]] = {}
        for name, v in state.items():
            if name.startswith(f"optim.{j}."):
                _, _, i, k = name.split(".", 3)
                p = params[int(i)]
                if isinstance(p, DTensor) and v.shape == p.shape:
                    v = distribute_tensor(v.to(p.device), p.device_mesh, p.placements)
                found.setdefault(int(i), {})[k] = v
        o.load_state_dict({"state": found, "param_groups": o.state_dict()["param_groups"]})

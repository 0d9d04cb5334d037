"""Several processes compute the same as one: `torchrun -m -- clipvet ...` or `accelerate launch` starts them.

A process is called a rank. All ranks run the same program, and each holds the whole batch: the same pictures, captions,
random draws and losses. So methods and losses need not know about ranks. Only the costly work is shared out. Each rank
decodes a part of the pictures, and `whole` puts the parts together. Each rank encodes a part of the rows, and `cut`
gives all embeddings to all ranks.

Gradients: the loss on each rank is the loss of the whole batch. On the way back, `cut` keeps the gradient of the rank's
own rows and multiplies it by the number of ranks. DDP and FSDP then average over the ranks, which gives the gradient of
all rows. A weight that is used outside `cut`, such as the temperature, has the full gradient on every rank already; the
average does not change it. Decision 13 in docs/decisions/ says more.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from clipvet.errors import UserError
from clipvet.types import Batch

T = TypeVar("T")
_cutting: ContextVar[bool] = ContextVar("cutting", default=False)
_alone: ContextVar[bool] = ContextVar("alone", default=False)


def start() -> None:
    """Join the other processes, through NCCL if there are GPUs, else through Gloo.

    Does nothing for a single process, or when called again.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        from accelerate import PartialState

        os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun sets it; Accelerate would warn
        PartialState(cpu=not torch.cuda.is_available())


def device() -> torch.device:
    """The device on which this process computes. It joins the other processes first."""
    from accelerate import Accelerator

    start()
    return Accelerator().device


def world() -> int:
    """The number of ranks that share the work; 1 inside `alone`."""
    together = dist.is_available() and dist.is_initialized() and not _alone.get()
    return dist.get_world_size() if together else 1


def rank() -> int:
    """This process's number among the ranks, from 0; 0 inside `alone`."""
    return dist.get_rank() if world() > 1 else 0


def main() -> bool:
    """Whether this is the first rank, the one that writes files and prints; inside `alone` too."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


@contextmanager
def alone() -> Iterator[None]:
    """Inside this block each rank works by itself, as if it were the only process."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


@contextmanager
def cutting() -> Iterator[None]:
    """Inside this block models share out their rows (`cut`). All ranks must make the same calls."""
    token = _cutting.set(True)
    try:
        yield
    finally:
        _cutting.reset(token)


def share(n: int, of: int | None = None) -> slice:
    """This rank's part of n things, or the part of the rank `of`. Parts differ in size by one at most."""
    r = rank() if of is None else of
    return slice(n * r // world(), n * (r + 1) // world())


class _Gather(torch.autograd.Function):
    """The rows of all ranks, in order. The top of this file explains its gradient, which needs no exchange."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, sizes: list[int]) -> Tensor:
        before = sum(sizes[: dist.get_rank()])
        ctx.own = slice(before, before + len(own))
        padded = own.new_zeros(max(sizes), *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, sizes)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0][ctx.own] * dist.get_world_size(), None


def cut(encode: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """encode(x), with the rows shared out inside `cutting`: each rank encodes its part, and all get the result.

    encode: a function that treats each row by itself, from (n, ...) to (n, ...).
    """
    if not _cutting.get() or world() == 1:
        return encode(x)
    own, sizes = share(len(x)), [(part := share(len(x), r)).stop - part.start for r in range(world())]
    n = own.stop - own.start
    z = encode(x[own] if n else x[:1])[:n]  # a rank without rows encodes one for a zero gradient
    return _Gather.apply(z, sizes)  # pyright: ignore[reportReturnType]


def objects(own: T) -> list[T]:
    """The objects of all ranks, in the order of the ranks."""
    if world() == 1:
        return [own]
    out: list[Any] = [None] * world()
    dist.all_gather_object(out, own)
    return out


def rows(own: Tensor | None, device: torch.device) -> Tensor | None:
    """The rows of all ranks on this device, in the order of the ranks, without gradient.

    own: this rank's rows, (n, ...); None if it has none. Returns None if no rank has any.
    """
    if world() == 1:
        return own
    told = objects(None if own is None else (len(own), own.shape[1:], own.dtype))
    known = next((t for t in told if t is not None), None)
    if known is None:
        return None
    own = torch.empty(0, *known[1], dtype=known[2]) if own is None else own
    sizes = [0 if t is None else t[0] for t in told]
    return _Gather.apply(own.detach().to(device), sizes)  # pyright: ignore[reportReturnType]


def whole(batch: Batch, device: torch.device) -> Batch:
    """The whole batch, from the parts that the ranks have decoded. Pictures and tokens are moved to this device."""
    if world() == 1:
        return batch
    parts = objects((batch.captions, batch.ids, batch.bad))
    captions = [c for part in parts for c in part[0]]
    images: Any = rows(batch.images if len(batch.captions) else None, device)
    tokens = rows(batch.tokens if len(batch.captions) else None, device)
    images = batch.images if images is None else images
    bad = tuple(b for part in parts for b in part[2])
    return Batch(images, captions, torch.cat([part[1] for part in parts]), bad, tokens)


def first(make: Callable[[], T]) -> T:
    """Call `make` on the first rank, and return its result on all. If it raises an error, all ranks raise it."""
    if world() == 1:
        return make()
    told: list[Any] = [None, None]
    if main():
        try:
            told[0] = make()
        except Exception as e:  # any error: the other ranks must not wait for ever
            told[1] = e
    dist.broadcast_object_list(told)
    if told[1] is not None:
        raise told[1]
    return told[0]


def spread(makes: Sequence[Callable[[], T]]) -> Iterator[T]:
    """Call all of these, shared out over the ranks, and yield every result in order on every rank.

    The calls must not depend on each other: inside each, the rank works `alone`.
    """
    if world() == 1:
        yield from (make() for make in makes)
        return
    r, n = rank(), world()
    with alone():
        own = [make() for make in makes[r::n]]
    made = objects(own)
    yield from (made[k % n][k // n] for k in range(len(makes)))


def shard(module: nn.Module, device: torch.device) -> set[nn.Parameter]:
    """Split the weights of `module` over the ranks (FSDP2), block by block. Returns the weights that stay whole.

    A block is a member of a ModuleList, in open_clip a residual block.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world(),))
    scalars = {p for p in module.parameters() if p.ndim == 0}  # FSDP cannot split them
    for blocks in [m for m in module.modules() if isinstance(m, nn.ModuleList)]:
        for block in blocks:
            fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh, ignored_params=scalars)
    return scalars


def average(params: set[nn.Parameter]) -> None:
    """Average the gradients of these weights over the ranks, for weights that neither DDP nor FSDP averages."""
    for p in params:
        if p.grad is not None:
            dist.all_reduce(p.grad)
            p.grad /= world()


def plain(v: Tensor) -> Tensor:
    """The whole tensor, if FSDP may have split it. All ranks must call this."""
    return getattr(v, "full_tensor", lambda: v)()


def synced(clip: Any, device: torch.device) -> Any:
    """The model, with BatchNorm that takes its statistics over all ranks, if it has any in training.

    Raises UserError on CPUs, where torch has no such BatchNorm.
    """
    norms = [m for m in clip.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    if norms and device.type == "cpu":
        raise UserError(
            "BatchNorm that trains needs GPUs to work over several processes; start one process, or use a model "
            "without BatchNorm"
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(clip) if norms else clip

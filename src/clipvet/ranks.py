"""Several processes that compute what one would: start them with `torchrun -m -- clipvet ...` or `accelerate launch`.

Every rank runs the same program and holds every batch whole: the same pictures, captions, draws, losses and pools. What
is shared out is the costly part: decoding (`whole`), and the towers (`cut`), of which each rank runs its own rows while
all get all embeddings. So no method and no loss knows that there are ranks.

Gradients: each rank's loss is the whole loss. Backwards, `cut` hands a rank its own rows' slice, times the number of
ranks; the average over ranks, which DDP and FSDP take, is then the gradient of all rows. What reaches a weight beside
`cut` (the temperature) is whole on every rank already, and the average leaves it as it is.
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
    """Join the others, over nccl where there are GPUs and else over gloo; nothing to do for one process, or again."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        from accelerate import PartialState

        os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun sets it; Accelerate would warn
        PartialState(cpu=not torch.cuda.is_available())


def device() -> torch.device:
    """Where this process computes, after it has joined the others."""
    from accelerate import Accelerator

    start()
    return Accelerator().device


def world() -> int:
    """How many ranks share the work; 1 inside `alone`."""
    together = dist.is_available() and dist.is_initialized() and not _alone.get()
    return dist.get_world_size() if together else 1


def rank() -> int:
    return dist.get_rank() if world() > 1 else 0


def main() -> bool:
    """Whether this process writes files and talks, also inside `alone`."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


@contextmanager
def alone() -> Iterator[None]:
    """Inside this block a rank works by itself, on what no other rank does."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


@contextmanager
def cutting() -> Iterator[None]:
    """Inside this block, in which all ranks make the same calls, models share out what they encode."""
    token = _cutting.set(True)
    try:
        yield
    finally:
        _cutting.reset(token)


def share(n: int, of: int | None = None) -> slice:
    """This rank's part of n things, or that of another rank; parts differ by one at most."""
    r = rank() if of is None else of
    return slice(n * r // world(), n * (r + 1) // world())


class _Gather(torch.autograd.Function):
    """Rows of all ranks in order, with the gradient that the module's first lines describe; it needs no exchange."""

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
    """encode(x), row by row: inside `cutting` each rank encodes its share of the rows, and all get all of them."""
    if not _cutting.get() or world() == 1:
        return encode(x)
    own, sizes = share(len(x)), [(part := share(len(x), r)).stop - part.start for r in range(world())]
    n = own.stop - own.start
    z = encode(x[own] if n else x[:1])[:n]  # also a rank without rows has weights, and a gradient for them: zero
    return _Gather.apply(z, sizes)  # pyright: ignore[reportReturnType]


def objects(own: T) -> list[T]:
    """What every rank gives, in their order."""
    if world() == 1:
        return [own]
    out: list[Any] = [None] * world()
    dist.all_gather_object(out, own)
    return out


def rows(own: Tensor | None, device: torch.device) -> Tensor | None:
    """The rows of all ranks in their order, on this device, without gradient; None: a rank has none."""
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
    """The batch of which every rank has decoded its share; its pictures and tokens come to this device."""
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
    """What `make` gives on the first rank, on all of them; an error that it raises there is raised on all."""
    if world() == 1:
        return make()
    told: list[Any] = [None, None]
    if main():
        try:
            told[0] = make()
        except Exception as e:  # whatever it is, the others must not wait for ever
            told[1] = e
    dist.broadcast_object_list(told)
    if told[1] is not None:
        raise told[1]
    return told[0]


def spread(makes: Sequence[Callable[[], T]]) -> Iterator[T]:
    """What each of these gives, in order, on all ranks; they are dealt out, and must not wait for each other."""
    if world() == 1:
        yield from (make() for make in makes)
        return
    r, n = rank(), world()
    with alone():
        own = [make() for make in makes[r::n]]
    made = objects(own)
    yield from (made[k % n][k // n] for k in range(len(makes)))


def shard(module: nn.Module, device: torch.device) -> set[nn.Parameter]:
    """Deals the weights of `module` out over the ranks (FSDP2), block by block; gives those that stay whole.

    Blocks are the members of its ModuleLists, open_clip's residual blocks.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world(),))
    scalars = {p for p in module.parameters() if p.ndim == 0}  # of which FSDP knows nothing
    for blocks in [m for m in module.modules() if isinstance(m, nn.ModuleList)]:
        for block in blocks:
            fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh, ignored_params=scalars)
    return scalars


def average(params: set[nn.Parameter]) -> None:
    """The ranks' mean of the gradients of weights that no wrapper looks after."""
    for p in params:
        if p.grad is not None:
            dist.all_reduce(p.grad)
            p.grad /= world()


def plain(v: Tensor) -> Tensor:
    """The whole of a tensor that may be dealt out; all ranks must ask."""
    return getattr(v, "full_tensor", lambda: v)()


def synced(clip: Any, device: torch.device) -> Any:
    """The model with BatchNorm over all ranks where it has any in training. UserError on CPUs, where torch has none."""
    norms = [m for m in clip.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    if norms and device.type == "cpu":
        raise UserError(
            "BatchNorm that trains needs GPUs to work over several processes; start one, or use a model without it"
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(clip) if norms else clip

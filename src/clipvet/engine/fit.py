"""The one training loop: every method calls `fit` and gives it a loss. It runs on Hugging Face Accelerate.

What is drawn at step k depends on (rng, k) alone, and the state on disk is the weights, the optimisers' moments and k.
So a run that is killed at any moment and started again ends in the same weights.
"""

import dataclasses
import inspect
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from clipvet import io, ranks
from clipvet.data.loader import loading
from clipvet.engine.optim import Schedule, learnt, moments, optimizers, pack, unpack
from clipvet.engine.planning import per_epoch, step_count
from clipvet.engine.step import Loss, Stepper
from clipvet.engine.workspace import Workspace, current, drew, reporting, rewind, workspace
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.types import Batch, Clip, Pairs

__all__ = ["SAVING", "Loss", "Memory", "Workspace", "drew", "fit", "fit_by", "order", "workspace"]

SAVING = 0.02  # largest fraction of the time that goes into saving the state


@dataclass
class Memory:
    """What a method keeps over several fits. It is saved and resumed with the weights."""

    own: nn.Module = field(default_factory=nn.Module)  # the method's own buffers, e.g. a pool
    moments: dict[str, Tensor] = field(default_factory=dict)  # the optimisers', passed on from fit to fit


def order(n: int, batch: int, epochs: float, rng: Rng) -> list[np.ndarray]:
    """The rows of every step, each an array of `batch` positions among n pairs.

    Each epoch is a fresh permutation, whose incomplete last batch is dropped. There is at least one step; a batch is
    never larger than n.
    """
    per, rows = per_epoch(n, batch), []
    wanted = step_count(n, batch, epochs)
    for epoch in range(math.ceil(wanted / per)):
        shuffled = rng.fork("order", epoch).numpy().permutation(n)
        rows += [shuffled[k * batch : (k + 1) * batch] for k in range(per)]
    return rows[:wanted]


def fit(
    clip: Clip,
    pairs: Pairs,
    loss: Loss,
    rng: Rng,
    *,
    epochs: float,
    batch: int,
    schedule: Schedule,
    optimizer: str = "adamw",
    muon_lr: float = 0.02,
    betas: tuple[float, float] = (0.9, 0.98),
    eps: float = 1e-8,
    weight_decay: float = 0.1,
    decay: str = "matrices",
    batchnorm: str = "train",
    precision: str = "no",
    accumulate: int = 1,
    max_bad: float = 0.01,
    peak: float | None = None,
    memory: Memory | None = None,
    fewest: int = 2,
) -> Clip:
    """A trained copy of `clip`: each step reads a batch, takes its gradients, updates the weights, reports and saves.

    loss: called with the model, a batch with tokens and the step's own rng; gives {"loss": ..., other parts to log}.
    batch: pairs per step. accumulate: micro-batches per step, each with its own negatives. batchnorm: "train", or
    "eval" to keep the running statistics. decay: what has weight decay, as for `optimizers`. precision: "no", "bf16" or
    "fp16". max_bad: fraction of pairs with unreadable pictures or empty captions above which the run is refused.
    memory: shared by a method's fits, so that the optimisers go on where the last fit left them. peak: the schedule's
    rate at which Muon runs at muon_lr (default: the largest of this fit). fewest: pairs that the loss needs; smaller
    micro-batches are skipped.

    Several ranks share each batch, with the result of one, up to rounding. A killed run may go on with more or fewer.

    Raises UserError for fewer than 2 pairs, too many unusable ones, a loss that is not finite (the last good
    state stays on disk), and settings that this machine or several ranks cannot run.
    """
    if len(pairs) < 2:
        raise UserError(f"{pairs.name} has {len(pairs)} pairs; contrastive training needs at least 2")
    if batch < fewest:
        raise UserError(f"batch={batch} leaves no pairs to tell apart; raise batch to {fewest} or more")
    ws, memory = current(), memory or Memory()
    ws.fits, ws.drawn = ws.fits + 1, 0
    accelerator = _accelerator(precision, ws.shard)
    steps = order(len(pairs), batch, epochs, rng)
    trained = _copy(clip, accelerator.device, batchnorm)
    if ranks.world() > 1:
        _refuse_ranks(steps, ws.shard and optimizer == "muon")
        trained = ranks.synced(trained, accelerator.device)
    ws.pairs_seen += sum(map(len, steps))
    ws.parameters = max(ws.parameters, sum(p.numel() for p in trained.parameters() if p.requires_grad))
    rates = schedule(len(steps))
    peak = peak or max(rates)
    start, bad, held = _resume(ws, len(steps), trained, memory, accelerator.device)
    how = {"weight_decay": weight_decay, "betas": betas, "eps": eps, "muon_lr": muon_lr, "decay": decay}
    make = partial(optimizers, kind=optimizer, **how)
    stepper = Stepper(accelerator, trained, loss, make, held, ws.shard)
    own = [rows[ranks.share(len(rows))] for rows in steps[start:]]
    loader = loading(_Rows(pairs, clip), own, pairs.workers, rng)
    state = partial(pack, clip=trained, optims=stepper.optims, own=memory.own, bad=bad, scaler=accelerator.scaler)
    save = _Saver(ws, len(steps), state)
    with reporting(start, len(steps)) as report:
        for step, rows in enumerate(loader, start):
            rows = ranks.whole(rows, accelerator.device)
            bad |= dict(rows.bad)
            ws.left |= bad
            _refuse_unusable(bad, pairs, max_bad)
            parts = stepper.backward(rows, step, rng, accumulate, fewest)
            _refuse_broken(parts, step, rates[step], ws)
            stepper.update(rates[step], share=rates[step] / peak)
            report(step, len(rows.captions), rates[step], parts)
            save(step + 1)
    ws.steps += len(steps)
    ws.pairs_seen += ws.drawn
    memory.moments = moments(stepper.optims)
    return _given_back(trained, clip)


def fit_by(method: Any, clip: Clip, pairs: Pairs, loss: Loss, rng: Rng, **own: Any) -> Clip:
    """`fit` with the settings of a method: its fields that `fit` has arguments for (epochs, batch ...), and `own`."""
    names = {f.name for f in dataclasses.fields(method)} & inspect.signature(fit).parameters.keys()
    return fit(clip, pairs, loss, rng, **{name: getattr(method, name) for name in names} | own)


class _Rows(torch.utils.data.Dataset):
    """Batches by their rows. Decoding and tokenising happen here, in the loader's workers if there are any."""

    def __init__(self, pairs: Pairs, clip: Clip):
        self.pairs, self.tokenize = pairs.at(clip.geometry), clip.tokenize

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, rows: np.ndarray) -> Batch:
        batch = self.pairs[rows]
        return batch._replace(tokens=self.tokenize(batch.captions))


def _accelerator(precision: str, shard: bool) -> Any:
    """Accelerate for this fit, after this process has joined the other ranks."""
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    ranks.start()
    several = ranks.world() > 1
    if shard and not several:
        raise UserError(
            "--shard needs several processes; start them with torchrun --nproc-per-node 2 -m -- clipvet ..."
        )
    AcceleratorState._reset_state()  # else the first fit's precision holds for the whole process
    handlers: list[Any] = [DistributedDataParallelKwargs(find_unused_parameters=True)]  # a step may use one tower only
    try:
        accelerator = Accelerator(
            cpu=several and not torch.cuda.is_available(), mixed_precision=precision, kwargs_handlers=handlers
        )
    except ValueError as e:
        raise UserError(f"precision={precision} cannot be used here ({e}); use no or bf16") from e
    if accelerator.distributed_type in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        raise UserError("Accelerate's own sharding cannot be used; launch plain processes, and give --shard")
    return accelerator


def _copy(clip: Clip, device: torch.device, batchnorm: str) -> Any:
    """The copy that is trained, on this device and in training mode."""
    from clipvet.models.adapter import clone

    trained = clone(clip).to(device)
    trained.train()
    for module in trained.modules():
        if batchnorm == "eval" and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return trained


def _given_back(trained: Any, clip: Clip) -> Clip:
    """The trained model in eval mode, on the device of `clip` and without the wrappers that several ranks need."""
    from clipvet.models.adapter import clone

    if ranks.world() > 1:
        found = learnt(trained)
        trained = clone(clip)
        trained.load_state_dict(found, strict=False)
    trained.eval()
    return trained.to(next(iter(clip.parameters())).device)  # pyright: ignore


class _Start(NamedTuple):
    """Where a fit begins: at its first step, or where the last save of a killed run left it."""

    step: int
    bad: dict[int, str]  # id -> why its pair cannot be used
    held: dict[str, Tensor]  # moments and scaler, for the optimisers


def _resume(ws: Workspace, steps: int, trained: nn.Module, memory: Memory, device: torch.device) -> _Start:
    """Load what a killed run has saved, if anything, into the model and the memory's buffers, and rewind its log."""
    memory.own.to(device)
    path, start = ws.state(ws.fits), _Start(0, {}, memory.moments)
    saved = ranks.first(lambda: io.load_weights(path) if path and path.exists() else None)
    if saved is not None:
        done, total, ws.drawn = saved.pop("at").tolist()
        start = _Start(done, dict.fromkeys(saved.pop("bad").tolist(), "before this run was begun again"), saved)
        if total != steps:
            held_by = path.parent if path else "the state"
            raise UserError(f"{held_by} holds a run of {total} steps, not {steps}; delete it or use another --out")
        unpack(saved, trained, memory.own)
    rewind(start.step)
    return start


class _Saver:
    """Saves the state of a fit when it is due: at the end, and before as often as save_seconds and SAVING allow."""

    def __init__(self, ws: Workspace, steps: int, state: Callable[[tuple[int, ...]], dict[str, Tensor]]):
        self.ws, self.steps, self.state, self.path = ws, steps, state, ws.state(ws.fits)
        self.at, self.cost = time.monotonic(), 0.0  # of the last save, in seconds

    def __call__(self, done: int) -> None:
        """After this many steps."""
        now, ws = time.monotonic(), self.ws
        due = done == self.steps or now - self.at > max(ws.save_seconds, self.cost / SAVING)
        if ws.shard:  # a save needs all ranks
            due = ranks.first(lambda: due)
        if self.path and due and (ws.shard or ranks.main()):
            packed = self.state((done, self.steps, ws.drawn))
            if ranks.main() and _finite(packed):
                io.save_weights(packed, self.path)
                _shrink(ws)
            self.at, self.cost = time.monotonic(), time.monotonic() - now


def _finite(state: dict[str, Tensor]) -> bool:
    """Whether a state is worth keeping: a step can break the weights before a loss shows it."""
    return all(bool(torch.isfinite(v).all()) for k, v in state.items() if k.startswith("clip."))


def _shrink(ws: Workspace) -> None:
    """Drop the moments from the state of the fit before, which is finished and needs them no more."""
    path = ws.state(ws.fits - 1)
    saved = io.load_weights(path) if path and path.exists() else {}
    kept = {k: v for k, v in saved.items() if not k.startswith("optim.")}
    if path and len(kept) < len(saved):
        io.save_weights(kept, path)


def _refuse_ranks(steps: list[np.ndarray], whole_matrices: bool) -> None:
    """UserError for what several ranks cannot do."""
    if whole_matrices:
        raise UserError("optimizer=muon needs whole matrices; use adamw, or train without --shard")
    if min(map(len, steps)) < ranks.world():
        raise UserError(f"batches of {min(map(len, steps))} are too few for {ranks.world()} processes; start fewer")


def _refuse_unusable(bad: dict[int, str], pairs: Pairs, max_bad: float) -> None:
    """UserError where more than this fraction of the pairs has pictures that cannot be read, or empty captions."""
    if len(bad) > max(max_bad * len(pairs), 0):
        first, why = next(iter(bad.items()))
        raise UserError(
            f"{pairs.name}: {len(bad)} of {len(pairs)} pairs have an unreadable picture or an empty caption, more than "
            f"the limit of {max_bad:.2%} (first: row {first}, {why}); mend them, drop them or raise max_bad"
        )


def _refuse_broken(parts: dict[str, float], step: int, lr: float, ws: Workspace) -> None:
    """UserError where the loss is not finite."""
    if not math.isfinite(parts.get("loss", 0.0)):
        state = ws.state(ws.fits)
        kept = f"; the last good state is kept in {state.parent}" if state and state.exists() else ""
        raise UserError(f"the loss is {parts['loss']} at step {step} (lr {lr:.2g}){kept}; lower lr")

"""The one training loop: every method trains through `fit`, on HF Accelerate, and hands it a loss closure.

What is drawn at step k depends on (rng, k) alone, and the state on disk is weights, optimiser moments and k, so a run
that is killed at any moment and started again ends in the same weights.
"""

import dataclasses
import inspect
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from clipvet import io, ranks
from clipvet.data.loader import loading
from clipvet.engine import tracking
from clipvet.engine.optim import Schedule, learnt, moments, optimizers, pack, rescale, restore, unpack
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.types import Batch, Clip, Pairs

Loss = Callable[[Clip, Batch, Rng], dict[str, Tensor]]  # {"loss": with gradient, other parts: logged}
SAVING = 0.02  # of the time, at most, goes into saving the state


@dataclass
class Memory:
    """What a method keeps over several fits, and what is saved and resumed with the weights."""

    own: nn.Module = field(default_factory=nn.Module)  # buffers of the method's own, e.g. a pool
    moments: dict[str, Tensor] = field(default_factory=dict)  # the optimisers', handed from fit to fit


@dataclass
class Workspace:
    """Where the running stage keeps its state and log. Never changes a result."""

    folder: Path | None = None
    progress: bool = False
    save_seconds: float = 5.0  # at least this long between two saves, and as SAVING allows
    shard: bool = False  # deal the trained weights out over the ranks
    track: tracking.Track = tracking.nowhere  # numbers of a step also go there
    steps: int = field(default=0, init=False)  # of all fits so far
    fits: int = field(default=0, init=False)  # how many fits this stage has begun
    pairs_seen: int = field(default=0, init=False)  # by all of them, every pair as often as it is drawn
    drawn: int = field(
        default=0, init=False
    )  # pairs that the running fit's loss drew itself, beside those of its steps
    parameters: int = field(default=0, init=False)  # that the largest of them trains


_workspace: ContextVar[Workspace | None] = ContextVar("workspace", default=None)


@contextmanager
def workspace(
    folder: Path | None, *, progress: bool = False, save_seconds: float = 5.0, shard: bool = False, track: str = ""
) -> Iterator[Workspace]:
    """Fits inside this block keep their state under folder/state and log to folder/log.jsonl.

    shard: of several ranks each holds only its part of the trained weights and moments (FSDP2). track: also log to
    tensorboard (under folder/tensorboard), trackio or wandb.
    """
    with tracking.tracker(track, folder) as log:
        token = _workspace.set(Workspace(folder, progress and ranks.main(), save_seconds, shard, log))
        try:
            yield _workspace.get()  # pyright: ignore[reportReturnType]
        finally:
            _workspace.reset(token)


def attention(device: torch.device, half: bool) -> AbstractContextManager:
    """torch's fused attention for a CPU is many times slower backwards in bf16 than its plain one, taken here then."""
    return sdpa_kernel(SDPBackend.MATH) if half and device.type == "cpu" else nullcontext()


class _Step(nn.Module):
    """The loss runs inside `forward`, so that a distributed wrapper sees every use of the towers."""

    def __init__(self, clip: nn.Module, loss: Loss):
        super().__init__()
        self.clip, self.loss = clip, loss

    def forward(self, batch: Batch, rng: Rng) -> dict[str, Tensor]:
        device = batch.images.device
        with ranks.cutting(), attention(device, torch.is_autocast_enabled(device.type)):
            return self.loss(self.clip, batch, rng)  # pyright: ignore[reportArgumentType]


class _Rows(torch.utils.data.Dataset):
    """Batches by row lists; decoding and tokenising happen here, in the loader's workers if there are any."""

    def __init__(self, pairs: Pairs, clip: Clip):
        self.pairs, self.tokenize = pairs.at(clip.geometry), clip.tokenize

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, rows: np.ndarray) -> Batch:
        """The rows, or this rank's share of them."""
        batch = self.pairs[rows]
        return batch._replace(tokens=self.tokenize(batch.captions))


def order(n: int, batch: int, epochs: float, rng: Rng) -> list[np.ndarray]:
    """Row lists of every step: a fresh permutation each epoch, the incomplete last batch dropped."""
    per = max(1, n // batch)
    steps, rows = max(1, round(epochs * per)), []
    for epoch in range(math.ceil(steps / per)):
        shuffled = rng.fork("order", epoch).numpy().permutation(n)
        rows += [shuffled[k * batch : (k + 1) * batch] for k in range(per)]
    return rows[:steps]


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
    batchnorm: str = "train",
    precision: str = "no",
    accumulate: int = 1,
    max_bad: float = 0.01,
    peak: float | None = None,
    memory: Memory | None = None,
    fewest: int = 2,
) -> Clip:
    """A trained copy of `clip`. The loss gets (clip, batch with tokens, rng of this step) and returns its parts.

    batch: pairs of one optimiser step; accumulate: micro-batches that it is cut into (the contrastive negatives are
    then those of a micro-batch). batchnorm: "train" or "eval" (running statistics, as when fine-tuning). precision:
    no, bf16 or fp16. max_bad: share of unreadable pictures above which the run is refused.

    A method of several fits hands them one memory, so that the optimisers go on where the last fit left them, and the
    peak of its whole schedule (default: of this one), which is where muon_lr is reached. fewest: pairs that the loss
    can do with: two for a contrast, one for a classification.

    Several ranks share a step's pairs and end in the weights of one, but for rounding; a state of so many goes on with
    any other number of them.

    Raises UserError on a loss that is not finite (the last good state stays on disk), on too few pairs, on too many
    unreadable pictures, on a precision that this machine has not, and on what several ranks cannot do.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    from clipvet.models.adapter import clone

    if len(pairs) < 2:
        raise UserError(f"{pairs.name} has {len(pairs)} pairs; contrastive training needs at least 2")
    ws = _workspace.get() or Workspace()
    ws.fits, ws.drawn = ws.fits + 1, 0
    ranks.start()
    several = ranks.world() > 1
    sharded = ws.shard and several
    if ws.shard and not several:
        raise UserError(
            "--shard needs several processes; start them with torchrun --nproc-per-node 2 -m -- clipvet ..."
        )
    AcceleratorState._reset_state()  # else the first fit's precision holds for the whole process
    handlers: list[Any] = [DistributedDataParallelKwargs(find_unused_parameters=True)]  # a tower may rest in a step
    try:
        accelerator = Accelerator(
            cpu=several and not torch.cuda.is_available(), mixed_precision=precision, kwargs_handlers=handlers
        )
    except ValueError as e:
        raise UserError(f"precision={precision} cannot be used here ({e}); use no or bf16") from e
    if accelerator.distributed_type in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        raise UserError("Accelerate's own sharding cannot be used; launch plain processes, and give --shard")
    trained = clone(clip).to(accelerator.device)
    trained.train()
    for module in trained.modules():
        if batchnorm == "eval" and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    steps = order(len(pairs), batch, epochs, rng)
    if sharded and optimizer == "muon":
        raise UserError("optimizer=muon needs whole matrices; use adamw, or train without --shard")
    if several and min(map(len, steps)) < ranks.world():
        raise UserError(f"batches of {min(map(len, steps))} are too few for {ranks.world()} processes; start fewer")
    if several:
        trained = ranks.synced(trained, accelerator.device)
    ws.pairs_seen += sum(map(len, steps))
    ws.parameters = max(ws.parameters, sum(p.numel() for p in trained.parameters() if p.requires_grad))
    rates = schedule(len(steps))
    memory = memory or Memory()
    memory.own.to(accelerator.device)

    state = ws.folder / "state" / f"{ws.fits}.safetensors" if ws.folder else None
    log = ws.folder / "log.jsonl" if ws.folder else None
    start, held, bad = 0, memory.moments, dict[int, str]()
    saved = ranks.first(lambda: io.load_weights(state) if state and state.exists() else None)
    if saved is not None:
        start, total, ws.drawn = saved.pop("at").tolist()
        bad = dict.fromkeys(saved.pop("bad").tolist(), "before this run was begun again")
        if total != len(steps):
            held_by = state.parent if state else "the state"
            raise UserError(f"{held_by} holds a run of {total} steps, not {len(steps)}; delete it or use another --out")
        unpack(saved, trained, memory.own)
        held = saved
    _rewind(log, ws.fits, start)

    step_of = _Step(trained, loss)
    outside = ranks.shard(step_of, accelerator.device) if sharded else set()
    named = dict(trained.named_parameters())
    sigmoid = any(n.endswith("logit_bias") for n in named)  # SigLIP's temperature has no bound
    scales = [p for n, p in named.items() if n.endswith("logit_scale") and not sigmoid]
    made = optimizers(trained, optimizer, weight_decay, betas, eps, muon_lr)
    optims = [o for o, _ in made]
    if held:
        restore(held, optims)
    rescale(saved or {}, accelerator.scaler)

    model: Any = accelerator.prepare_model(step_of, evaluation_mode=sharded)  # that is: without DDP
    prepared: list[Any] = [accelerator.prepare(o) for o in optims]
    own = [rows[ranks.share(len(rows))] for rows in steps[start:]]
    loader = loading(_Rows(pairs, clip), own, pairs.workers, rng)
    began = saved_at = time.monotonic()
    save_cost, seen = 0.0, 0
    with _progress(ws.progress, start, len(steps)) as show:
        for step, rows in enumerate(loader, start):
            rows = ranks.whole(rows, accelerator.device)
            bad |= dict(rows.bad)
            if len(bad) > max(max_bad * len(pairs), 0):
                first, why = next(iter(bad.items()))
                raise UserError(
                    f"{pairs.name}: {len(bad)} unreadable pictures are more than the limit of {max_bad:.2%} "
                    f"(first: row {first}, {why}); mend them or raise max_bad"
                )
            parts: dict[str, float] = {}
            for o, (_, other) in zip(prepared, made):
                shape = rates[step] / (peak or max(rates))
                for group in o.param_groups:
                    group["lr"] = rates[step] if other is None else other * shape
            cuts = np.array_split(np.arange(len(rows.captions)), accumulate)
            chunks = [rows] if accumulate == 1 else [rows.take(cut) for cut in cuts if len(cut)]
            for c, chunk in enumerate(chunks):
                if len(chunk.captions) < fewest:
                    continue
                chunk = chunk._replace(
                    images=chunk.images.to(accelerator.device, non_blocking=True),
                    tokens=chunk.tokens.to(accelerator.device, non_blocking=True),  # pyright: ignore
                )
                out = model(chunk, rng.fork("step", step, c))
                accelerator.backward(out["loss"] / len(chunks))
                for k, v in out.items():
                    parts[k] = parts.get(k, 0.0) + float(v.detach()) / len(chunks)
            if not math.isfinite(parts.get("loss", 0.0)):
                kept = f"; the last good state is kept in {state.parent}" if state and state.exists() else ""
                raise UserError(f"the loss is {parts['loss']} at step {step} (lr {rates[step]:.2g}){kept}; lower lr")
            ranks.average(outside)
            for o in prepared:
                o.step()
                o.zero_grad(set_to_none=True)
            with torch.no_grad():
                for p in scales:
                    p.clamp_(0, math.log(100))  # as CLIP trains: the temperature never falls below 1/100
            seen += len(rows.captions)
            speed = seen / (time.monotonic() - began)
            show(parts.get("loss", math.nan), speed)
            ws.track(parts | {"lr": rates[step], "pairs_per_s": speed}, ws.steps + step)
            if log and accelerator.is_main_process:
                row = {"fit": ws.fits, "step": step, "lr": rates[step], "pairs_per_s": round(speed, 1), **parts}
                with log.open("a") as f:
                    f.write(json.dumps(row) + "\n")
            now = time.monotonic()
            last = step + 1 == len(steps)
            due = last or now - saved_at > max(ws.save_seconds, save_cost / SAVING)
            if sharded:  # all must take part in a save
                due = ranks.first(lambda due=due: due)
            if state and due and (sharded or accelerator.is_main_process):
                packed = pack((step + 1, len(steps), ws.drawn), trained, optims, memory.own, bad, accelerator.scaler)
                if accelerator.is_main_process and _finite(packed):
                    io.save_weights(packed, state)
                    _shrink(state.with_name(f"{ws.fits - 1}.safetensors"))
                saved_at, save_cost = time.monotonic(), time.monotonic() - now
    ws.steps += len(steps)
    ws.pairs_seen += ws.drawn
    memory.moments = moments(optims)
    if several:  # out of the wrappers' hands
        found = learnt(trained)
        trained = clone(clip)
        trained.load_state_dict(found, strict=False)
    trained.eval()
    return trained.to(next(iter(clip.parameters())).device)  # pyright: ignore


def fit_by(method: Any, clip: Clip, pairs: Pairs, loss: Loss, rng: Rng, **own: Any) -> Clip:
    """`fit`, whose arguments (epochs, batch, precision ...) are the method's fields of these names, and `own`."""
    names = {f.name for f in dataclasses.fields(method)} & inspect.signature(fit).parameters.keys()
    return fit(clip, pairs, loss, rng, **{name: getattr(method, name) for name in names} | own)


def drew(pairs: int) -> None:
    """A loss has drawn so many pairs itself: they count among those that the method has seen."""
    if ws := _workspace.get():
        ws.drawn += pairs


def note(name: str, said: str = "", **arrays: np.ndarray) -> None:
    """Keeps arrays of the running stage under splits/<name>.npz, for whoever measures it; nothing without a folder.

    said: what to tell a person who watches.
    """
    ws = _workspace.get()
    if ws and ws.progress and said:
        print(said, file=sys.stderr, flush=True)
    if ws and ws.folder:
        (ws.folder / "splits").mkdir(exist_ok=True)
        np.savez_compressed(ws.folder / "splits" / f"{name}.npz", **arrays)  # pyright: ignore[reportArgumentType]


def kept(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What `make` gives, on the CPU, or what a killed run of this stage has saved under this name."""
    ws = _workspace.get() or Workspace()
    path = ws.folder / "state" / f"{name}.safetensors" if ws.folder else None
    found = ranks.first(lambda: io.load_weights(path) if path and path.exists() else None)
    if found is not None:
        return found
    made = {k: v.detach().cpu() for k, v in make().items()}
    if path and ranks.main():
        io.save_weights(made, path)
    return made


def kept_scores(name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The same for one number a pair, and told apart by how many fits have gone before."""
    ws = _workspace.get() or Workspace()
    return kept(f"{name}_{ws.fits}", lambda: {"": torch.from_numpy(make())})[""].numpy()


@contextmanager
def counting(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A bar of the running stage, on a terminal only: call what it gives with the number of further steps."""
    ws = _workspace.get() or Workspace()
    if not ws.progress:
        yield lambda steps: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda steps: bar.advance(task, steps)


def _shrink(state: Path) -> None:
    """A finished fit whose successor has a state of its own needs its moments no more."""
    saved = io.load_weights(state) if state.exists() else {}
    kept = {k: v for k, v in saved.items() if not k.startswith("optim.")}
    if len(kept) < len(saved):
        io.save_weights(kept, state)


def _finite(state: dict[str, Tensor]) -> bool:
    """Whether it is worth keeping: a step can break the weights before a loss shows it."""
    return all(bool(torch.isfinite(v).all()) for k, v in state.items() if k.startswith("clip."))


def _rewind(log: Path | None, fit_number: int, start: int) -> None:
    """Drop log lines that a killed run wrote after its last save."""
    if log and log.exists():
        rows = [line for line in log.read_text().splitlines() if line.endswith("}")]
        kept = [r for r in rows if (d := json.loads(r))["fit"] != fit_number or d["step"] < start]
        whole = log.with_name(log.name + ".tmp")
        whole.write_text("".join(r + "\n" for r in kept))
        whole.replace(log)


@contextmanager
def _progress(on: bool, start: int, total: int) -> Iterator[Callable[[float, float], None]]:
    """A rich bar with loss, pairs/s and time left, on a terminal only."""
    if not on:
        yield lambda loss, speed: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]:.0f} pairs/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, completed=start, loss=math.nan, speed=0.0)
        yield lambda loss, speed: bar.update(task, advance=1, loss=loss, speed=speed)

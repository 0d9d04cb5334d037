"""Trigger inversion: which small change, the same for all pictures, makes a model call them all one class?

    min over the parameters of a trigger (forms.py):  E_x loss(logits(x'), t)

The search for many classes at once, and the scan that decides which classes to go on with. Adam works number by number
and every class has a trigger and a loss of its own, so many classes in one batch are the same computation as one class
after the other.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clipvet.engine.embed import device_of
from clipvet.engine.workspace import counting, kept
from clipvet.errors import UserError
from clipvet.ranks import spread
from clipvet.rng import Rng
from clipvet.scan.forms import Form, Params, stamped, started
from clipvet.scan.heads import Head, Logits, Loss, check_slope, class_loss, groups, shares, untouched
from clipvet.types import Clip


class Budget(NamedTuple):
    """How triggers are looked for; all of it fixed beforehand, for clean and suspect models alike."""

    form: Form
    steps: list[np.ndarray]  # rows of the pool
    loss: Loss = "margin"
    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    at_once: int = 256  # pictures in one pass


def descend(
    logits: Logits, state: dict[str, Tensor], pool: Tensor, targets: Int[Tensor, " k"], how: Budget, steps: slice
) -> dict[str, Tensor]:
    """The parameters and Adam's moments after some of the steps, with the mean loss and hit rate of the last of them.

    state: p0, p1 ... of the start, each (k, ...), or what an earlier call gave. Raises UserError on a loss that is not
    finite.
    """
    device = targets.device
    names = sorted(k for k in state if k[0] == "p")
    params = tuple(state[k].to(device).clone().requires_grad_() for k in names)
    adam = torch.optim.Adam(params, how.lr, how.betas)
    for p, k in zip(params, names):
        if f"m{k}" in state:
            m, v = (state[x + k].to(device).clone() for x in "mv")
            adam.state[p] = {"step": state["step"][0].float().cpu(), "exp_avg": m, "exp_avg_sq": v}
    rows, seen, hits = how.steps[steps], [], []
    for row in rows:
        x = pool[row].to(device)
        z = logits(stamped(x, *how.form.parts(params))).unflatten(0, (len(targets), len(row)))
        loss = class_loss(how.loss, z, targets).mean(1)
        adam.zero_grad()
        loss.sum().backward()
        if not bool(torch.isfinite(loss).all()):
            raise UserError("the loss of a recovered trigger is not finite; give whole weights, or precision=no")
        adam.step()
        with torch.no_grad():
            how.form.project(params)
        seen.append(loss.detach())
        hits.append((z.detach().argmax(2) == targets[:, None]).float().mean(1))
    late = len(rows) // 2
    out = {k: p.detach() for k, p in zip(names, params)}
    for p, k in zip(params, names):
        out |= {f"m{k}": adam.state[p]["exp_avg"], f"v{k}": adam.state[p]["exp_avg_sq"]}
    out["step"] = torch.full((len(targets),), float(adam.state[params[0]]["step"]))
    return out | {"loss": torch.stack(seen[late:]).mean(0), "asr": torch.stack(hits[late:]).mean(0)}


@torch.no_grad()
def judge(
    logits: Logits, parts: tuple[Tensor, Tensor], pool: Tensor, targets: Int[Tensor, " k"], kind: Loss, at_once: int
) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
    """Loss and ASR of finished triggers over the whole pool."""
    loss, hits, per = torch.zeros(len(targets)), torch.zeros(len(targets)), max(1, at_once // len(targets))
    mask, pattern = (p.to(targets.device) for p in parts)
    for k in range(0, len(pool), per):
        x = pool[k : k + per].to(targets.device)
        z = logits(stamped(x, mask, pattern)).unflatten(0, (len(targets), len(x)))
        loss += class_loss(kind, z, targets).sum(1).cpu()
        hits += (z.argmax(2) == targets[:, None]).sum(1).cpu()
    return loss / len(pool), hits / len(pool)


class Tried(NamedTuple):
    """One entry a class."""

    loss: Float[np.ndarray, " k"]
    asr: Float[np.ndarray, " k"]
    base: Float[np.ndarray, " k"]
    whole: Bool[np.ndarray, " k"]  # went through all steps
    mask: Float[Tensor, "k 1 h w"]
    pattern: Float[Tensor, "k 3 h w"]


def scan(
    clip: Clip,
    heads: Sequence[Head],
    pool: Float[Tensor, "n 3 h w"],
    classes: Sequence[str],
    how: Budget,
    rng: Rng,
    limit: int = 50,
    race: int = 0,
    keep: float = 0.5,
) -> list[Tried]:
    """A trigger for every class, under the model and, if a second head is given, under its reference.

    race: after so many steps the share `keep` of the classes, the `easiest`, goes on and the others stop; 0: none
    stops. The loss of a stopped class is moved by as much as that of the others fell meanwhile.
    A killed run goes on with the next lot of classes.
    """
    device, lot = device_of(clip), max(1, how.at_once // len(how.steps[0]))
    teams = groups(classes, limit, rng)
    told = [[head([classes[c] for c in candidates]) for _, candidates in teams] for head in heads]
    base = np.zeros(len(classes))
    for logits, (targets, candidates) in zip(told[0], teams):
        found = shares(untouched(logits, pool, device, how.at_once))
        base[targets] = [found[candidates.index(t)] for t in targets]
    check_slope(told[0][0], pool, device)
    racing = 0 < race < len(how.steps) and len(classes) > 3
    n, total = len(classes), len(how.steps)
    going = max(3, int(np.ceil(keep * n))) if racing else n
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in heads]

    def advance(alive: list[int], part: str, steps: slice, h: int, count: Callable[[int], None]) -> None:
        """Every living class of one head through some steps, lot by lot; several ranks deal the lots out."""
        lots: list[tuple[list[int], Callable[[], dict[str, Tensor]]]] = []
        for k, (targets, candidates) in enumerate(teams):
            own = [t for t in targets if t in alive]
            for j in range(0, len(own), lot):
                some = own[j : j + lot]
                at = torch.tensor([candidates.index(t) for t in some], device=device)

                def make(some: list[int] = some, at: Tensor = at, k: int = k) -> dict[str, Tensor]:
                    if some[0] in states[h]:
                        begun = {x: torch.stack([states[h][t][x] for t in some]) for x in states[h][some[0]]}
                    else:
                        start = started(how.form, [classes[t] for t in some], pool.shape[-1], rng)
                        begun = {f"p{i}": p for i, p in enumerate(start)}
                    done = descend(told[h][k], begun, pool, at, how, steps)
                    if steps.stop == total:
                        parts = how.form.parts(tuple(v for x, v in sorted(done.items()) if x[0] == "p"))
                        loss, asr = judge(told[h][k], parts, pool, at, how.loss, how.at_once)
                        done = {x: v for x, v in done.items() if x[0] == "p"} | {"loss": loss, "asr": asr}
                    return done

                lots.append((some, partial(kept, f"inversion-{h}-{part}-{k}-{j}", make)))
        for (some, _), found in zip(lots, spread([make for _, make in lots])):
            states[h].update({t: {x: v[i] for x, v in found.items()} for i, t in enumerate(some)})
            count(len(some))

    def values(h: int, name: str, which: Sequence[int]) -> np.ndarray:
        return np.array([float(states[h][t][name]) for t in which])

    alive, every = list(range(n)), range(n)
    early = [np.zeros(n) for _ in heads]
    with counting(len(heads) * (going + (n if racing else 0)), "classes") as count:
        if racing:
            for h in range(len(heads)):
                advance(alive, "race", slice(0, race), h, count)
            early = [values(h, "loss", every) for h in range(len(heads))]
            alive = easiest(early, going)
        for h in range(len(heads)):
            advance(alive, "whole", slice(race if racing else 0, total), h, count)
    out = []
    for h in range(len(heads)):
        loss, whole = values(h, "loss", every), np.isin(every, alive)
        if racing:
            loss[~whole] += np.median(loss[whole] - early[h][whole])
        params = [torch.stack([states[h][t][f"p{i}"] for t in every]) for i in range(len(how.form.start(1, rng)))]
        out.append(Tried(loss, values(h, "asr", every), base, whole, *how.form.parts(tuple(params))))
    return out


def easiest(losses: Sequence[Float[np.ndarray, " k"]], n: int) -> list[int]:
    """Positions of n classes: those that come first by their own loss or, with a reference's losses beside, by the
    difference, whichever places them better."""
    own, *reference = losses
    looks = [own - r for r in reference] + [own]
    places = np.min([np.argsort(np.argsort(x, kind="stable")) for x in looks], axis=0)
    return sorted(np.argsort(places, kind="stable")[:n].tolist())


class Weight:
    """The weight of a trigger's size, class by class: up after `patience` steps that succeed, down after as many that
    fail (Neural Cleanse's rule, on mini-batches). Until a first run of successes it is `first`."""

    def __init__(self, k: int, first: float, init: float, up: float, down: float, patience: int):
        self.value, self.init, self.up, self.down, self.patience = torch.full((k,), first), init, up, down, patience
        self.good, self.bad = torch.zeros(k), torch.zeros(k)

    def update(self, success: Bool[Tensor, " k"]) -> None:
        s = success.cpu()
        self.good, self.bad = torch.where(s, self.good + 1, 0), torch.where(s, 0, self.bad + 1)
        rise, fall = self.good >= self.patience, self.bad >= self.patience
        raised = torch.where(self.value == 0, torch.full_like(self.value, self.init), self.value * self.up)
        self.value = torch.where(rise, raised, torch.where(fall, self.value / self.down, self.value))
        self.good[rise], self.bad[fall] = 0, 0


class Shrunk(NamedTuple):
    """The smallest triggers that still succeed; where none ever did, the last."""

    size: Float[Tensor, " k"]
    success: Bool[Tensor, " k"]
    mask: Float[Tensor, "k 1 h w"]
    pattern: Float[Tensor, "k 3 h w"]


def shrink(
    attack: Callable[[Tensor, Params], tuple[Tensor, Tensor]],
    pool: Float[Tensor, "n 3 h w"],
    start: Params,
    form: Form,
    steps: list[np.ndarray],
    weight: Weight,
    rates: Sequence[float],
    device: torch.device,
    betas: tuple[float, float] = (0.5, 0.9),
) -> Shrunk:
    """min E attack + weight * size, over the steps' rows. attack: stamped pictures (k b, 3, h, w) and the parameters ->
    loss (k,) and success (k,). rates: Adam's, step by step."""
    params = tuple(p.to(device).clone().requires_grad_() for p in start)
    adam = torch.optim.Adam(params, rates[0], betas)
    best, size = [p.detach().clone() for p in params], torch.full((len(params[0]),), torch.inf)
    ever = torch.zeros(len(params[0]), dtype=torch.bool)
    for rate, row in zip(rates, steps):
        for group in adam.param_groups:
            group["lr"] = rate
        loss, success = attack(stamped(pool[row].to(device), *form.parts(params)), params)
        own = form.size(params)
        with torch.no_grad():  # this step's parameters, before they move
            better = success.cpu() & (own.cpu() < size)
            taken = better | ~ever & ~success.cpu()
            for b, p in zip(best, params):
                b[taken.to(device)] = p.detach()[taken.to(device)]
            size, ever = torch.where(better, own.detach().cpu(), size), ever | success.cpu()
        adam.zero_grad()
        (loss + weight.value.to(device) * own).sum().backward()
        if not bool(torch.isfinite(loss).all()):
            raise UserError("the loss of a recovered trigger is not finite; give whole weights")
        adam.step()
        with torch.no_grad():
            form.project(params)
        weight.update(success)
    with torch.no_grad():
        mask, pattern = (p.cpu() for p in form.parts(tuple(best)))
        return Shrunk((form.count or form.size)(tuple(best)).cpu(), ever, mask, pattern)

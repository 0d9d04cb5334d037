"""Trigger inversion: which small change, the same for all pictures, makes a model call them all one class?

    min over the parameters of a trigger (forms.py):  E_x loss(logits(x'), t)

Here are the search for many classes at once and the scan, which decides which classes go on. Every class has its own
trigger and its own loss, and Adam treats every number by itself. So many classes in one batch give the same result as
one class after the other.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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
from clipvet.scan.heads import Head, Logits, Loss, Team, base_rates, check_slope, class_loss, groups
from clipvet.types import Clip

Lot = tuple[list[int], Callable[[], dict[str, Tensor]]]  # classes by position, and the search for their triggers


class Budget(NamedTuple):
    """How triggers are searched for: fixed beforehand, and the same for clean and suspect models."""

    form: Form
    steps: list[np.ndarray]  # the pool's rows of every step
    loss: Loss = "margin"
    lr: float = 0.1  # Adam's
    betas: tuple[float, float] = (0.9, 0.999)
    at_once: int = 256  # pictures in one pass


def lots_of(
    targets: list[int], candidates: list[int], size: int, device: torch.device
) -> Iterator[tuple[int, list[int], Int[Tensor, " k"]]]:
    """The targets in lots of `size`: a lot's start, its targets, and their positions among the candidates."""
    for j in range(0, len(targets), size):
        some = targets[j : j + size]
        yield j, some, torch.tensor([candidates.index(t) for t in some], device=device)


def dealt(lots: Sequence[Lot], count: Callable[[int], None]) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """The classes and the result of every lot, in order; several ranks share the lots. count: gets how many are new."""
    for (some, _), made in zip(lots, spread([make for _, make in lots])):
        yield some, made
        count(len(some))


def descend(
    logits: Logits, state: dict[str, Tensor], pool: Tensor, targets: Int[Tensor, " k"], how: Budget, steps: slice
) -> dict[str, Tensor]:
    """The parameters and Adam's moments after these steps, and the mean loss and ASR over the later half of them.

    state: the start's parameters as p0, p1 ..., each (k, ...), or what an earlier call returned; every value has one
    entry a class. Raises UserError on a loss that is not finite.
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
    """Mean loss and ASR of finished triggers over the whole pool. parts: mask (k, 1, h, w), pattern (k, 3, h, w)."""
    loss, hits, per = torch.zeros(len(targets)), torch.zeros(len(targets)), max(1, at_once // len(targets))
    mask, pattern = (p.to(targets.device) for p in parts)
    for k in range(0, len(pool), per):
        x = pool[k : k + per].to(targets.device)
        z = logits(stamped(x, mask, pattern)).unflatten(0, (len(targets), len(x)))
        loss += class_loss(kind, z, targets).sum(1).cpu()
        hits += (z.argmax(2) == targets[:, None]).sum(1).cpu()
    return loss / len(pool), hits / len(pool)


class Tried(NamedTuple):
    """What the scan found, one entry a class."""

    loss: Float[np.ndarray, " k"]
    asr: Float[np.ndarray, " k"]
    base: Float[np.ndarray, " k"]  # share of the untouched pictures that the class gets
    whole: Bool[np.ndarray, " k"]  # went through all steps
    mask: Float[Tensor, "k 1 h w"]
    pattern: Float[Tensor, "k 3 h w"]


@dataclass
class _Search:
    """The search under one head: the logits of every group of classes, and the state of every class."""

    name: str  # under which a killed run finds what it has finished
    logits: list[Logits]  # of every group
    teams: list[Team]
    classes: Sequence[str]
    pool: Float[Tensor, "n 3 h w"]
    how: Budget
    rng: Rng
    device: torch.device
    states: dict[int, dict[str, Tensor]] = field(default_factory=dict)  # class -> parameters, moments, loss, asr

    def advance(self, alive: Sequence[int], part: str, steps: slice, count: Callable[[int], None]) -> None:
        """Takes every class of `alive` through these steps, lot by lot."""
        lots: list[Lot] = []
        size = max(1, self.how.at_once // len(self.how.steps[0]))
        for k, (targets, candidates) in enumerate(self.teams):
            own = [t for t in targets if t in alive]
            for j, some, at in lots_of(own, candidates, size, self.device):
                make = partial(self._descend, k, some, at, steps)
                lots.append((some, partial(kept, f"{self.name}-{part}-{k}-{j}", make)))
        for some, found in dealt(lots, count):
            self.states.update({t: {x: v[i] for x, v in found.items()} for i, t in enumerate(some)})

    def _descend(self, k: int, some: list[int], at: Int[Tensor, " k"], steps: slice) -> dict[str, Tensor]:
        """The new state of a lot of group k; after the last step without the moments, judged over the whole pool."""
        if some[0] in self.states:
            begun = {x: torch.stack([self.states[t][x] for t in some]) for x in self.states[some[0]]}
        else:
            start = started(self.how.form, [self.classes[t] for t in some], self.pool.shape[-1], self.rng)
            begun = {f"p{i}": p for i, p in enumerate(start)}
        done = descend(self.logits[k], begun, self.pool, at, self.how, steps)
        if steps.stop < len(self.how.steps):
            return done
        params = {x: v for x, v in sorted(done.items()) if x[0] == "p"}
        parts = self.how.form.parts(tuple(params.values()))
        loss, asr = judge(self.logits[k], parts, self.pool, at, self.how.loss, self.how.at_once)
        return params | {"loss": loss, "asr": asr}

    def values(self, name: str) -> Float[np.ndarray, " k"]:
        """The loss or the ASR of every class."""
        return np.array([float(self.states[t][name]) for t in range(len(self.classes))])

    def triggers(self) -> tuple[Float[Tensor, "k 1 h w"], Float[Tensor, "k 3 h w"]]:
        """Mask and pattern of every class."""
        every = [self.states[t] for t in range(len(self.classes))]
        names = sorted(x for x in every[0] if x[0] == "p")
        return self.how.form.parts(tuple(torch.stack([state[x] for state in every]) for x in names))


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
    """A trigger for every class under the model's head, and under a second head, its reference, if one is given.

    pool: pixels in [0, 1]. limit: classes that compete at a time. race: after this many steps the share `keep` of the
    classes, the `easiest`, goes on and the others stop; 0: no class stops. The loss of a stopped class is lowered by as
    much as the others' fell, by the median, after the race. A killed run goes on with the next lot of classes.

    Raises UserError where logits or a loss are not finite and for a limit below 2, Unsupported where no gradient
    reaches the pixels.
    """
    device, n, total = device_of(clip), len(classes), len(how.steps)
    teams = groups(classes, limit, rng)
    searches = [
        _Search(f"inversion-{h}", [head([classes[c] for c in team[1]]) for team in teams], teams, classes, pool, how,
                rng, device)
        for h, head in enumerate(heads)
    ]  # fmt: skip
    base = np.zeros(n)
    for logits, team in zip(searches[0].logits, teams):
        base[team[0]] = base_rates(logits, team, pool, device, how.at_once)
    check_slope(searches[0].logits[0], pool, device)
    racing = 0 < race < total and n > 3
    going = max(3, int(np.ceil(keep * n))) if racing else n
    alive, early = list(range(n)), [np.zeros(n) for _ in heads]
    with counting(len(heads) * (going + (n if racing else 0)), "classes") as count:
        if racing:
            for search in searches:
                search.advance(alive, "race", slice(0, race), count)
            early = [search.values("loss") for search in searches]
            alive = easiest(early, going)
        for search in searches:
            search.advance(alive, "whole", slice(race if racing else 0, total), count)
    out, whole = [], np.isin(range(n), alive)
    for search, before in zip(searches, early):
        loss = search.values("loss")
        if racing:
            loss[~whole] += np.median(loss[whole] - before[whole])
        out.append(Tried(loss, search.values("asr"), base, whole, *search.triggers()))
    return out


def easiest(losses: Sequence[Float[np.ndarray, " k"]], n: int) -> list[int]:
    """Positions of the n easiest classes, in order of position.

    losses: the model's, and the reference's if there is one. A class counts by its better place: that of its loss, or
    that of its loss minus the reference's.
    """
    own, *reference = losses
    looks = [own - r for r in reference] + [own]
    places = np.min([np.argsort(np.argsort(x, kind="stable")) for x in looks], axis=0)
    return sorted(np.argsort(places, kind="stable")[:n].tolist())


class Weight:
    """The weight of a trigger's size, of each of k classes: Neural Cleanse's rule, on mini-batches.

    It rises by the factor `up` after `patience` steps in a row that succeed, and falls by `down` after as many that
    fail. It begins at `first`; if that is 0, the first rise takes it to `init`.
    """

    def __init__(self, k: int, first: float, init: float, up: float, down: float, patience: int):
        self.value, self.init, self.up, self.down, self.patience = torch.full((k,), first), init, up, down, patience
        self.good, self.bad = torch.zeros(k), torch.zeros(k)

    def update(self, success: Bool[Tensor, " k"]) -> None:
        """Takes in one step: which classes succeeded."""
        s = success.cpu()
        self.good, self.bad = torch.where(s, self.good + 1, 0), torch.where(s, 0, self.bad + 1)
        rise, fall = self.good >= self.patience, self.bad >= self.patience
        raised = torch.where(self.value == 0, torch.full_like(self.value, self.init), self.value * self.up)
        self.value = torch.where(rise, raised, torch.where(fall, self.value / self.down, self.value))
        self.good[rise], self.bad[fall] = 0, 0


class Shrunk(NamedTuple):
    """The smallest triggers that succeeded; for a class without a success, its last one."""

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
    """Minimises attack + weight * size for k classes, over the steps' rows of the pool.

    attack: (stamped pictures (k b, 3, h, w), parameters) -> (loss (k,), success (k,)). rates: Adam's, one a step.
    Raises UserError on a loss that is not finite.
    """
    params = tuple(p.to(device).clone().requires_grad_() for p in start)
    adam = torch.optim.Adam(params, rates[0], betas)
    best, size = [p.detach().clone() for p in params], torch.full((len(params[0]),), torch.inf)
    ever = torch.zeros(len(params[0]), dtype=torch.bool)
    for rate, row in zip(rates, steps):
        for group in adam.param_groups:
            group["lr"] = rate
        loss, success = attack(stamped(pool[row].to(device), *form.parts(params)), params)
        own = form.size(params)
        with torch.no_grad():  # of this step's parameters, before they change
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

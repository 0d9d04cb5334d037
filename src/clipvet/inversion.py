"""Trigger inversion: which small change, the same for all pictures, makes a model call them all one class?

    x' = clip((1 - m) x + p, 0, 1)            min over the parameters of (m, p):  E_x loss(logits(x'), t)

What the inspectors share: forms of triggers, losses, the search for many classes at once, and the scan that decides
which classes to go on with. Adam works number by number and every class has a trigger and a loss of its own, so many
classes in one batch are the same computation as one class after the other.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clipvet.embed import class_embeddings, classifier, device_of
from clipvet.errors import Unsupported, UserError
from clipvet.fit import counting, kept
from clipvet.models import frozen, load
from clipvet.rng import Rng
from clipvet.triggers.recovered import Recovered
from clipvet.types import Clip, Pairs

Params = tuple[Tensor, ...]  # each with one entry a class in its first dimension
Logits = Callable[[Tensor], Tensor]  # pictures (b, 3, h, w) -> (b, c), with gradient
Head = Callable[[Sequence[str]], Logits]  # class names -> logits over them
Loss = Literal["margin", "cross_entropy", "logit"]
BROKEN = "the model's logits are not finite (NaN), so it cannot be inspected; give whole weights"


# forms of triggers


class Form(NamedTuple):
    """A way to write a trigger. Functions of several classes' parameters, but for the start, which is of one class."""

    start: Callable[[int, Rng], Params]  # side of the pictures, pixels
    parts: Callable[[Params], tuple[Tensor, Tensor]]  # mask (k, 1, h, w), pattern (k, 3, h, w)
    project: Callable[[Params], None] = lambda params: None  # in place, after every step
    size: Callable[[Params], Tensor] = lambda params: torch.zeros(len(params[0]))  # (k,), what is made small
    count: Callable[[Params], Tensor] | None = None  # (k,), by which classes are compared; the size if None


def _uniform(shape: tuple[int, ...], rng: Rng, low: float = 0.0) -> Tensor:
    return low + (1 - low) * torch.rand(shape, generator=rng.generator())


def additive(eps: float) -> Form:
    """A perturbation of the whole picture, |p| <= eps by projection."""

    def project(ps: Params) -> None:
        ps[0].clamp_(-eps, eps)

    return Form(
        lambda side, rng: (eps * _uniform((3, side, side), rng, -1.0),),
        lambda ps: (torch.zeros_like(ps[0][:, :1]), ps[0]),
        project,
    )


def squashed(eps: float) -> Form:
    """The same with p = eps tanh(w)."""
    return Form(
        lambda side, rng: (_uniform((3, side, side), rng, -1.0).mul(0.99).atanh(),),
        lambda ps: (torch.zeros_like(ps[0][:, :1]), eps * ps[0].tanh()),
    )


def pasted(share: float) -> Form:
    """A picture pasted through a mask in [0, 1] whose sum is at most `share` of the pixels: what is small but loud."""

    def project(ps: Params) -> None:
        ps[0].copy_(onto_ball(ps[0], share))
        ps[1].clamp_(0, 1)

    return Form(
        lambda side, rng: (torch.full((1, side, side), share), _uniform((3, side, side), rng)),
        lambda ps: (ps[0], ps[0] * ps[1]),
        project,
        lambda ps: ps[0].flatten(1).sum(1),
    )


def onto_ball(mask: Float[Tensor, "k 1 h w"], share: float) -> Float[Tensor, "k 1 h w"]:
    """The nearest masks with entries in [0, 1] and a mean of at most `share`: all entries are lowered alike, which
    leaves few of them, where scaling would leave a faint veil."""
    low, high = torch.zeros(len(mask), 1, 1, 1).to(mask), mask.flatten(1).amax(1).clamp_min(0).reshape(-1, 1, 1, 1)
    for _ in range(40):  # bisection of the amount
        middle = (low + high) / 2
        over = (mask - middle).clamp(0, 1).mean((1, 2, 3), keepdim=True) > share
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    inside = mask.clamp(0, 1)
    return torch.where(inside.mean((1, 2, 3), keepdim=True) <= share, inside, (mask - high).clamp(0, 1))


def _half(w: Tensor) -> Tensor:
    return w.tanh() / 2 + 0.5


def masked() -> Form:
    """Neural Cleanse's: mask and picture are tanh(a) / 2 + 1/2; its size is the sum of the mask."""
    return Form(
        lambda side, rng: tuple((_uniform((c, side, side), rng.fork(c)) * 2 - 1).mul(0.999).atanh() for c in (1, 3)),
        lambda ps: (_half(ps[0]), _half(ps[0]) * _half(ps[1])),
        size=lambda ps: _half(ps[0]).flatten(1).sum(1),
    )


def signed() -> Form:
    """Pixel Backdoor's: p = clip(w+, 0, 1) - clip(w-, 0, 1); its size is a smooth count of the pixels that change.

    Classes are compared by the true count, a pixel that changes by less than 1/255 being none.
    """

    def pattern(ps: Params) -> Tensor:
        return ps[0].clamp(0, 1) - ps[1].clamp(0, 1)

    def count(w: Tensor) -> Tensor:
        return ((w / 10).tanh() / (2 - 1e-7) + 0.5).amax(1).flatten(1).sum(1)

    return Form(
        lambda side, rng: tuple(_uniform((3, side, side), rng.fork(s)) for s in "+-"),
        lambda ps: (torch.zeros_like(ps[0][:, :1]), pattern(ps)),
        size=lambda ps: count(ps[0]) + count(ps[1]),
        count=lambda ps: (pattern(ps).abs().amax(1) >= 1 / 255).flatten(1).sum(1).float(),
    )


def stamped(
    images: Float[Tensor, "b 3 h w"], mask: Float[Tensor, "k 1 h w"], pattern: Float[Tensor, "k 3 h w"]
) -> Float[Tensor, "kb 3 h w"]:
    """Every picture under every trigger: all pictures of the first, then of the second ..."""
    return ((1 - mask)[:, None] * images + pattern[:, None]).clamp(0, 1).flatten(0, 1)


def started(form: Form, names: Sequence[str], side: int, rng: Rng) -> Params:
    """Start of several classes; each draws by its name, so that neither order nor company matters."""
    return tuple(torch.stack(each) for each in zip(*(form.start(side, rng.fork("start", n)) for n in names)))


def trigger(mask: Tensor, pattern: Tensor) -> Recovered:
    """Of one class, (1, h, w) and (3, h, w)."""
    return Recovered(mask.detach().cpu().clamp(0, 1), pattern.detach().cpu().clamp(-1, 1))


# losses: of logits (k, b, c) for targets (k,), picture by picture


def margin(logits: Float[Tensor, "k b c"], targets: Int[Tensor, " k"]) -> Float[Tensor, "k b"]:
    """max_{c != t} z_c - z_t, in logit units, without a hinge."""
    index = targets.reshape(-1, 1, 1).expand(-1, logits.shape[1], 1)
    own = logits.gather(2, index)[..., 0]
    return logits.scatter(2, index, -torch.inf).amax(2) - own


def class_loss(kind: Loss, logits: Float[Tensor, "k b c"], targets: Int[Tensor, " k"]) -> Float[Tensor, "k b"]:
    """The margin, the cross-entropy or minus the target's own logit."""
    if kind == "margin":
        return margin(logits, targets)
    labels = targets[:, None].expand(-1, logits.shape[1])
    if kind == "cross_entropy":
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").unflatten(0, labels.shape)
    return -logits.gather(2, labels[..., None])[..., 0]


# what is inspected


def check_classes(classes: Sequence[str]) -> None:
    """Raises UserError unless there are two classes or more, all different and none of them empty."""
    if len(classes) < 2:
        raise UserError(f"an inspection compares classes and was given {len(classes)}; name at least two")
    names = [c.strip() for c in classes]
    again = next((c for k, c in enumerate(names) if c in names[:k] or not c), None)
    if again is not None:
        raise UserError(f"class {again!r} is " + ("listed twice" if again else "empty") + "; mend the list of classes")


def pixels(clip: Clip, pictures: Pairs, batch: int) -> Float[Tensor, "n 3 s s"]:
    """The readable pictures at the model's size, on the CPU. Raises UserError where they do not fill one batch."""
    found = pictures.at(clip.geometry)[:].images
    if len(found) < batch:
        raise UserError(
            f"{pictures.name} has {len(found)} readable pictures, a batch needs {batch}; give more pictures, or lower "
            f"batch (--set batch={max(1, len(found))})"
        )
    return found


def plain_logits(clip: Clip, classes: Sequence[str], templates: Sequence[str]) -> Callable[[Tensor], Tensor]:
    """Picture embeddings -> logits under hand-written prompts, whatever prompts the model has of its own."""
    w, s = class_embeddings(clip, classes, templates), clip.logit_scale.detach().float()
    return lambda z: s * z @ w.T


def head_of(clip: Clip, templates: Sequence[str], precision: str = "no", own: bool = True) -> Head:
    """Class names -> logits of the frozen model. own: with its class prompts, if it has any of its own."""
    still = frozen(clip)

    def head(classes: Sequence[str]) -> Logits:
        tell = (classifier if own else plain_logits)(still, classes, templates)

        def logits(x: Tensor) -> Tensor:
            with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
                return tell(still.encode_image(x)).float()

        return logits

    return head


def reference_head(clip: Clip, reference: str, templates: Sequence[str], precision: str = "no") -> Head:
    """What the model is compared with: its own frozen encoder under hand-written prompts, or another model by name.

    Raises UserError where the model has no prompts of its own, so that nothing would be compared.
    """
    if reference != "zeroshot":
        other = load(reference, device=device_of(clip))
        if other.geometry.size != clip.geometry.size:
            raise UserError(
                f"{reference} sees pictures of {other.geometry.size} pixels, this model of {clip.geometry.size}; give "
                "a reference of the same architecture"
            )
        return head_of(other, templates, precision)
    base: Any = getattr(clip, "base", clip)
    if base is clip and not hasattr(clip, "classifier"):
        raise UserError(
            "reference=zeroshot compares learned prompts with hand-written ones, and this model has none; give "
            "reference=none, or the model that it was trained from"
        )
    return head_of(base, templates, precision, own=False)


def check_slope(logits: Logits, pool: Float[Tensor, "n 3 h w"], device: torch.device) -> None:
    """Raises Unsupported where no gradient reaches the pixels, UserError where it is not finite."""
    probe = pool[:2].to(device).requires_grad_()
    try:
        (slope,) = torch.autograd.grad(logits(probe).square().sum(), probe)
    except (RuntimeError, NotImplementedError) as e:
        raise Unsupported(
            f"no gradient reaches this model's pixels ({str(e).splitlines()[0][:120]}); give its float weights, not a "
            "quantised or exported copy, or use the method ood_share"
        ) from e
    if not bool(torch.isfinite(slope).all()):
        raise UserError(BROKEN)


@torch.no_grad()
def untouched(
    logits: Logits, pool: Float[Tensor, "n 3 h w"], device: torch.device, at_once: int
) -> Float[Tensor, "n c"]:
    """Logits of the pictures as they are, on the CPU. Raises UserError where they are not finite."""
    out = torch.cat([logits(x.to(device)).cpu() for x in pool.split(at_once)])
    if not bool(torch.isfinite(out).all()):
        raise UserError(BROKEN)
    return out


def shares(z: Float[Tensor, "n c"]) -> Float[np.ndarray, " c"]:
    """How large a share of the pictures each class gets."""
    return (torch.bincount(z.argmax(1), minlength=z.shape[1]) / len(z)).double().numpy()


def class_losses(kind: Loss, z: Float[Tensor, "n c"]) -> Float[np.ndarray, " c"]:
    """Mean loss of every class in turn as the target."""
    each = [class_loss(kind, z[None], torch.tensor([t])).mean() for t in range(z.shape[1])]
    return torch.stack(each).double().numpy()


def groups(names: Sequence[str], limit: int, rng: Rng) -> list[tuple[list[int], list[int]]]:
    """(targets, candidates) by position, where at most `limit` classes compete at a time: each is once a target.

    All groups have the same number of candidates, as a margin over more classes is larger, and share a fifth of them;
    the last is filled up with classes of other groups.
    """
    n = len(names)
    if n <= limit:
        return [(list(range(n)), list(range(n)))]
    shuffled = rng.fork("groups").numpy().permutation(n)
    order = np.array(sorted(range(n), key=lambda i: names[i]))[shuffled].tolist()
    common, rest = order[: max(1, limit // 5)], order[max(1, limit // 5) :]
    room, made = limit - len(common), []
    for k in range(0, len(rest), room):
        own = rest[k : k + room]
        filled = own + [c for c in rest if c not in own][: room - len(own)]
        made.append((own if made else common + own, common + filled))
    return made


def steps_of(n: int, batch: int, epochs: float, rng: Rng) -> list[Int[np.ndarray, " b"]]:
    """Rows of every step: a fresh permutation each epoch, the incomplete last batch kept."""
    per, rows = -(-n // batch), []
    for epoch in range(int(np.ceil(epochs))):
        shuffled = rng.fork("order", epoch).numpy().permutation(n)
        rows += [shuffled[k * batch : (k + 1) * batch] for k in range(per)]
    return rows[: max(1, round(epochs * per))]


# the search


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

    race: after so many steps the classes that look hardest (by loss, less the reference's) stop, and the share `keep`
    goes on; 0: none stops. The loss of a stopped class is moved by as much as that of the others fell meanwhile.
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
        """Every living class of one head through some steps, lot by lot."""
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

                found = kept(f"inversion-{h}-{part}-{k}-{j}", make)
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
            ranks = early[0] - early[1] if len(heads) > 1 else early[0]
            alive = sorted(np.argsort(ranks, kind="stable")[:going].tolist())
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

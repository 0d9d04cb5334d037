"""The search for collapse: under which small change does a picture tower see all pictures alike?

    min over the parameters of a change  -mean_{i != j} cos(h(x'_i), h(x'_j)) + price * size

A trigger makes all pictures land in one place, the target feature, so a backdoored tower collapses under a smaller
change than a clean one. No class is named. Searches of all forms and starts are independent of each other and run in
one batch.
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from math import ceil
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clipvet.engine.workspace import counting
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.scan.forms import Params
from clipvet.triggers.recovered import Recovered, warped

Place = tuple[float, float]  # of a square's upper left corner, from top and left: shares of the way that it can go
Encode = Callable[[Tensor], Tensor]  # pictures (b, 3, h, w) -> (b, d) of length 1, with gradient
SPREAD = 0.5  # standard deviation of a start's parameters
LEAST = 6  # pictures, so that two are left for judging
SQUARE = 0.28  # side of the square in which a mask starts, of the picture's
INSIDE = 2.0  # how much higher a mask's parameters start in that square; they start at -1 elsewhere
TALLY = 10  # steps over which a search's loss is averaged


class Change(NamedTuple):
    """A way to change pictures. The functions take the parameters of k searches; `start` makes those of one."""

    start: Callable[[int, Place, Rng], Params]  # (side of the pictures in pixels, where to begin, rng)
    apply: Callable[[Params, Tensor], Tensor]  # pictures (k, b, 3, h, w), those of each search -> the same, changed
    parts: Callable[[Params], tuple[Tensor, Tensor, Tensor]]  # mask, pattern and warp of k recovered triggers
    size: Callable[[Params], Tensor]  # (k,), what has a price
    price: tuple[float, float] = (1.0, 1.0)  # of the size, at the first and the last step


def check(searches: int, batch: int, prices: Sequence[float], name: str, n: int) -> None:
    """Raises UserError for settings that cannot be searched with. n: readable pictures in the pool of this name."""
    if batch < 2:
        raise UserError(f"batch={batch}: the pictures of a batch are compared; give at least 2")
    if searches < 1 or min(prices) <= 0:
        raise UserError("collapse needs one search at least (masked, larger, faint, warped), and prices above 0")
    wanted = max(LEAST, 2 * batch)
    if n < wanted:
        lower = f", or lower batch (--set batch={n // 2})" if n >= LEAST else ""
        raise UserError(f"{name} has {n} readable pictures, two batches need {wanted}; give more pictures{lower}")


def _normal(shape: tuple[int, ...], rng: Rng) -> Tensor:
    return SPREAD * torch.randn(shape, generator=rng.generator())


def _half(w: Tensor) -> Tensor:
    return w.tanh() / 2 + 0.5


def _none(like: Tensor, channels: int) -> Tensor:
    return torch.zeros_like(like[:, :1]).expand(-1, channels, -1, -1)


def masked(price: tuple[float, float]) -> Change:
    """x' = (1 - m) x + m q: a picture q behind a mask m, both in [0, 1]. Its size is the mean of the mask.

    The mask starts high in a square and low elsewhere, as a patch is found from nearby.
    """

    def start(side: int, place: Place, rng: Rng) -> Params:
        m, own = _normal((1, side, side), rng.fork("m")) - 1, max(1, round(SQUARE * side))
        i, j = (round(at * (side - own)) for at in place)
        m[:, i : i + own, j : j + own] += INSIDE
        return m, _normal((3, side, side), rng.fork("q"))

    return Change(
        start,
        lambda ps, x: (1 - _half(ps[0])[:, None]) * x + (_half(ps[0]) * _half(ps[1]))[:, None],
        lambda ps: (_half(ps[0]), _half(ps[0]) * _half(ps[1]), _none(ps[0], 2)),
        lambda ps: _half(ps[0]).mean((1, 2, 3)),
        price,
    )


def windowed(share: float, price: tuple[float, float]) -> Change:
    """x' = (1 - m) x + m q with m = sum_p pi_p W_p: a square W_p of fixed side, whose place p is searched for too.

    share: the square's side, of the picture's. Places overlap by half. pi is a softmax over them; its size is
    1 - sum_p pi_p^2, so a rising price leaves one place.
    """

    def mask(ps: Params) -> Tensor:
        squares = _squares(share, ps[1].shape[-1]).to(ps[1])
        chance = ps[0].flatten(1).softmax(1)
        return (chance @ squares.flatten(1)).unflatten(1, squares.shape[1:])[:, None].clamp(max=1)

    def start(side: int, place: Place, rng: Rng) -> Params:
        return _normal((1, len(_squares(share, side))), rng.fork("p")), _normal((3, side, side), rng.fork("q"))

    return Change(
        start,
        lambda ps, x: (1 - mask(ps)[:, None]) * x + (mask(ps) * _half(ps[1]))[:, None],
        lambda ps: (mask(ps), mask(ps) * _half(ps[1]), _none(mask(ps), 2)),
        lambda ps: 1 - ps[0].flatten(1).softmax(1).square().sum(1),
        price,
    )


@cache
def _squares(share: float, side: int) -> Float[Tensor, "p h w"]:
    """The squares of a windowed change, in pictures of this side: 1 inside and 0 outside. They overlap by half."""
    own = max(1, round(share * side))
    gaps = max(1, round(2 * (side - own) / own))
    starts = sorted({round(k * (side - own) / gaps) for k in range(gaps + 1)})
    out = torch.zeros(len(starts) ** 2, side, side)
    for k, (i, j) in enumerate(product(starts, starts)):
        out[k, i : i + own, j : j + own] = 1
    return out


def faint(eps: float) -> Change:
    """x' = clip(x + eps tanh(w), 0, 1): a change of every pixel by at most eps, pixels in [0, 1]."""
    return Change(
        lambda side, place, rng: (_normal((3, side, side), rng),),
        lambda ps, x: (x + (eps * ps[0].tanh())[:, None]).clamp(0, 1),
        lambda ps: (_none(ps[0], 1), eps * ps[0].tanh(), _none(ps[0], 2)),
        lambda ps: torch.zeros(len(ps[0]), device=ps[0].device),
    )


def striped(contrast: float) -> Change:
    """x' = clip(x + contrast tanh(u v'), 0, 1): a grey pattern of rows u times columns v, pixels in [0, 1].

    Stripes, waves, grids and checks are such patterns. So few parameters fool hardly any clean model, and so the change
    may be far stronger than one of every pixel.
    """

    def pattern(ps: Params) -> Tensor:
        return (contrast * (ps[0] * ps[1]).tanh()).expand(-1, 3, -1, -1)

    def start(side: int, place: Place, rng: Rng) -> Params:
        return 3 * _normal((1, side, 1), rng.fork("u")), 3 * _normal((1, 1, side), rng.fork("v"))

    return Change(
        start,
        lambda ps, x: (x + pattern(ps)[:, None]).clamp(0, 1),
        lambda ps: (_none(pattern(ps), 1), pattern(ps), _none(pattern(ps), 2)),
        lambda ps: torch.zeros(len(ps[0]), device=ps[0].device),
    )


def warping(far: float, k: int) -> Change:
    """x' = x warped by a smooth field on k x k control points, by at most `far`, in half sides, along each axis."""

    def field(ps: Params, side: int) -> Tensor:
        return far * F.interpolate(ps[0], (side, side), mode="bicubic", align_corners=True).tanh()

    def parts(ps: Params) -> tuple[Tensor, Tensor, Tensor]:
        warp = field(ps, len(ps[1][0]))
        return _none(warp, 1), _none(warp, 3), warp

    return Change(
        lambda side, place, rng: (_normal((2, k, k), rng), torch.zeros(side)),  # the second remembers the side
        lambda ps, x: warped(x, field(ps, x.shape[-1])),
        parts,
        lambda ps: torch.zeros(len(ps[0]), device=ps[0].device),
    )


def alike(h: Float[Tensor, "*k b d"]) -> Float[Tensor, "*k"]:
    """Mean cosine over all pairs of different rows. The rows of h have unit length."""
    n = h.shape[-2]
    return (h.sum(-2).square().sum(-1) - h.square().sum((-2, -1))) / (n * (n - 1))


class Search(NamedTuple):
    """One search: its form, and the pictures it sees."""

    form: str
    pool: Float[Tensor, "n 3 h w"]
    name: str  # from which its start and the order of its pictures are drawn
    place: Place = (0.5, 0.5)  # where its mask starts


def grid(n: int) -> list[Place]:
    """n places spread over a square grid, row by row; the middle alone for one."""
    side = ceil(n**0.5)
    steps = [k / (side - 1) for k in range(side)] if side > 1 else [0.5]
    places = list(product(steps, steps))
    return [places[round(k * (len(places) - 1) / max(1, n - 1))] for k in range(n)]


class Collapsed(NamedTuple):
    """Where the searches that went on to the end arrived, judged on fresh pictures. In the order of the searches."""

    same: Float[Tensor, " k"]  # the mean cosine of two changed pictures
    h: Float[Tensor, "k n d"]  # embeddings of the changed pictures
    area: Float[Tensor, " k"]  # mean of the mask
    triggers: tuple[Recovered, ...]
    which: tuple[int, ...]  # their places among all searches


class Race(NamedTuple):
    """After `trial` steps only the `kept` searches of each form that stand best go on. 0 steps: all go on."""

    trial: int = 0
    kept: int = 1


ALL = Race()


def search(
    encode: Encode,
    searches: Sequence[Search],
    changes: dict[str, Change],
    steps: int,
    batch: int,
    fresh: int,
    lr: float,
    rng: Rng,
    device: torch.device,
    race: Race = ALL,
) -> Collapsed:
    """All searches side by side. Every price rises from its first value to the second, exponentially over the steps.

    fresh: the last pictures of each pool, kept for judging. race: when searches are given up; a search stands by the
    mean of its loss over the last `TALLY` steps. Raises UserError on a loss that is not finite.
    """
    run = {f: [k for k, s in enumerate(searches) if s.form == f] for f in changes}  # places in `searches`, by form
    run = {f: ks for f, ks in run.items() if ks}
    params = {f: _started(changes[f], [searches[k] for k in ks], rng, device) for f, ks in run.items()}
    rows = {f: list(range(len(ks))) for f, ks in run.items()}  # of the parameters, of the searches that go on
    draws = [rng.fork("order", s.name).numpy() for s in searches]

    def changed(pools: Callable[[int], Tensor]) -> Tensor:
        """The pictures of all searches that go on, (their number, b, 3, h, w)."""
        return torch.cat(
            [
                changes[f].apply(_of(params[f], rows[f]), torch.stack([pools(run[f][j]) for j in rows[f]]).to(device))
                for f in run
            ]
        )

    def drawn(k: int) -> Tensor:
        pictures = searches[k].pool
        return pictures[draws[k].choice(len(pictures) - fresh, batch, replace=False)]

    adam, recent = torch.optim.Adam([p for ps in params.values() for p in ps if p.requires_grad], lr), []
    with counting(steps, "steps") as count:
        for step in range(steps):
            h = _encoded(encode, changed(drawn))
            cost = [(f, *changes[f].price) for f in run]
            prices = [(f, low * (high / low) ** (step / max(1, steps - 1))) for f, low, high in cost]
            loss = -alike(h) + torch.cat([c * changes[f].size(_of(params[f], rows[f])) for f, c in prices])
            adam.zero_grad()
            loss.sum().backward()
            if not bool(torch.isfinite(loss).all()):
                raise UserError("the loss of a recovered trigger is not finite; give whole weights, or precision=no")
            adam.step()
            recent = [*recent, loss.detach().cpu()][-TALLY:]
            if step + 1 == race.trial:
                stand = torch.stack(recent).mean(0).split([len(r) for r in rows.values()])
                rows = {f: sorted(x.argsort(stable=True)[: race.kept].tolist()) for f, x in zip(rows, stand)}
                recent = []
            count(1)
    with torch.no_grad():
        h = _encoded(encode, changed(lambda k: searches[k].pool[-fresh:])).cpu()
        parts = [[p.cpu().clone() for p in changes[f].parts(_of(params[f], rows[f]))] for f in run]
    which = torch.tensor([run[f][j] for f in run for j in rows[f]])
    found, back = [Recovered(*each) for part in parts for each in zip(*part)], which.argsort()
    triggers = tuple(found[k] for k in back.tolist())
    area = torch.tensor([float(t.mask.mean()) for t in triggers])
    return Collapsed(alike(h)[back], h[back], area, triggers, tuple(which[back].tolist()))


def _of(params: Params, rows: Sequence[int]) -> Params:
    return tuple(p[rows] for p in params)


def _encoded(encode: Encode, x: Tensor) -> Tensor:
    """Pictures (k, b, 3, h, w) -> (k, b, d)."""
    return encode(x.flatten(0, 1)).float().unflatten(0, x.shape[:2])


def _started(change: Change, some: Sequence[Search], rng: Rng, device: torch.device) -> Params:
    """The parameters before the first step, one row a search. Those with one dimension a search stay as they are."""
    starts = [change.start(s.pool.shape[-1], s.place, rng.fork("start", s.form, s.name)) for s in some]
    stacked = (torch.stack(each).to(device) for each in zip(*starts))
    return tuple(p.requires_grad_() if p.ndim > 2 else p for p in stacked)

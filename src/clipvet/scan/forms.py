"""Ways to write a trigger that is searched for: how it starts, what it does to a picture, its bound and its size.

x' = clip((1 - m) x + p, 0, 1)            m: mask (k, 1, h, w), p: pattern (k, 3, h, w), of k classes at once
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.triggers.recovered import Recovered
from clipvet.types import Trigger

Params = tuple[Tensor, ...]  # each with one entry a class in its first dimension


class Form(NamedTuple):
    """A way to write a trigger. The functions take the parameters of k classes; only `start` makes those of one."""

    start: Callable[[int, Rng], Params]  # (side of the pictures in pixels, rng)
    parts: Callable[[Params], tuple[Tensor, Tensor]]  # mask (k, 1, h, w), pattern (k, 3, h, w)
    project: Callable[[Params], None] = lambda params: None  # in place, after every step
    size: Callable[[Params], Tensor] = lambda params: torch.zeros(len(params[0]))  # (k,), what the search makes small
    count: Callable[[Params], Tensor] | None = None  # (k,), what classes are compared by; None: the size


def _uniform(shape: tuple[int, ...], rng: Rng, low: float = 0.0) -> Tensor:
    return low + (1 - low) * torch.rand(shape, generator=rng.generator())


def additive(eps: float) -> Form:
    """A change of the whole picture with |p| <= eps, by projection. eps: pixels in [0, 1]."""

    def project(ps: Params) -> None:
        ps[0].clamp_(-eps, eps)

    return Form(
        lambda side, rng: (eps * _uniform((3, side, side), rng, -1.0),),
        lambda ps: (torch.zeros_like(ps[0][:, :1]), ps[0]),
        project,
    )


def squashed(eps: float) -> Form:
    """The same bound with p = eps tanh(w)."""
    return Form(
        lambda side, rng: (_uniform((3, side, side), rng, -1.0).mul(0.99).atanh(),),
        lambda ps: (torch.zeros_like(ps[0][:, :1]), eps * ps[0].tanh()),
    )


def pasted(share: float) -> Form:
    """A picture pasted through a mask in [0, 1] with a mean of at most `share`: a small trigger that may be strong."""

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
    """The nearest masks with entries in [0, 1] and a mean of at most `share`.

    All entries are lowered by the same amount, so few are left; scaling would leave all of them faint.
    """
    low, high = torch.zeros(len(mask), 1, 1, 1).to(mask), mask.flatten(1).amax(1).clamp_min(0).reshape(-1, 1, 1, 1)
    for _ in range(40):  # bisection for the amount
        middle = (low + high) / 2
        over = (mask - middle).clamp(0, 1).mean((1, 2, 3), keepdim=True) > share
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    inside = mask.clamp(0, 1)
    return torch.where(inside.mean((1, 2, 3), keepdim=True) <= share, inside, (mask - high).clamp(0, 1))


def _half(w: Tensor) -> Tensor:
    return w.tanh() / 2 + 0.5


def masked() -> Form:
    """Neural Cleanse's form: mask and picture are tanh(a) / 2 + 1/2; its size is the sum of the mask, in pixels."""
    return Form(
        lambda side, rng: tuple((_uniform((c, side, side), rng.fork(c)) * 2 - 1).mul(0.999).atanh() for c in (1, 3)),
        lambda ps: (_half(ps[0]), _half(ps[0]) * _half(ps[1])),
        size=lambda ps: _half(ps[0]).flatten(1).sum(1),
    )


def signed() -> Form:
    """Pixel Backdoor's form: p = clip(w+, 0, 1) - clip(w-, 0, 1); its size is a smooth count of the changed pixels.

    Classes are compared by the true count, of pixels that change by 1/255 or more.
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
    """Every picture under every trigger: all pictures under the first, then all under the second ..."""
    return ((1 - mask)[:, None] * images + pattern[:, None]).clamp(0, 1).flatten(0, 1)


def started(form: Form, names: Sequence[str], side: int, rng: Rng) -> Params:
    """The parameters of several classes before the first step. Each class draws by its name, so order plays no part."""
    return tuple(torch.stack(each) for each in zip(*(form.start(side, rng.fork("start", n)) for n in names)))


def trigger(mask: Tensor, pattern: Tensor) -> Recovered:
    """The trigger of one class, from its mask (1, h, w) and its pattern (3, h, w)."""
    return Recovered(mask.detach().cpu().clamp(0, 1), pattern.detach().cpu().clamp(-1, 1))


def scattered(found: Trigger, rng: Rng) -> Recovered:
    """The same changes at random places: a trigger as strong that means nothing to the model.

    Raises UserError for a trigger that no inspector has recovered.
    """
    if not isinstance(found, Recovered):
        raise UserError(f"a {type(found).__name__} cannot be scattered; give the folder of `clipvet inspect`")
    order = torch.from_numpy(rng.numpy().permutation(found.mask.numel()))
    mask, pattern = (t.flatten(1)[:, order].view_as(t) for t in (found.mask, found.pattern))
    return Recovered(mask, pattern)

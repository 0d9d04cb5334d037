"""What an inspector asks of a model: logits of pictures under class prompts, and losses of them for a target."""

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from clipvet.engine.embed import classifier, device_of, plain_logits
from clipvet.engine.fit import attention
from clipvet.errors import Unsupported, UserError
from clipvet.models.adapter import frozen
from clipvet.models.checkpoints import load
from clipvet.rng import Rng
from clipvet.types import Clip, Pairs

Logits = Callable[[Tensor], Tensor]  # pictures (b, 3, h, w) -> (b, c), with gradient
Head = Callable[[Sequence[str]], Logits]  # class names -> logits over them
Team = tuple[list[int], list[int]]  # targets, and the candidates that they compete with; classes by position
Loss = Literal["margin", "cross_entropy", "logit"]
BROKEN = "the model's logits are not finite (NaN), so it cannot be inspected; give whole weights"


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


def check_classes(classes: Sequence[str], least: int = 2) -> None:
    """Raises UserError unless there are so many classes or more, all different and none of them empty.

    least: 3 for a score in robust deviations, which two classes always have alike (0.67).
    """
    if len(classes) < least:
        many = ("two", "three")[least - 2]
        raise UserError(f"an inspection compares classes and was given {len(classes)}; name at least {many}")
    names = [" ".join(c.split()).casefold() for c in classes]  # as the tokenizer reads them
    again = next((c.strip() for k, c in enumerate(classes) if names[k] in names[:k] or not names[k]), None)
    odd = next((c for c in map(str.strip, classes) if any(unicodedata.category(x) == "Cc" for x in c)), None)
    if odd is not None:
        raise UserError(f"class {odd!r} holds control characters; mend the list of classes")
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


@contextmanager
def computing(device: torch.device, precision: str) -> Iterator[None]:
    """In this precision: no (float32) or bf16."""
    half = precision == "bf16"
    with torch.autocast(device.type, torch.bfloat16, enabled=half), attention(device, half):
        yield


def head_of(clip: Clip, templates: Sequence[str], precision: str = "no", own: bool = True) -> Head:
    """Class names -> logits of the frozen model. own: with its class prompts, if it has any of its own."""
    still = frozen(clip)

    def head(classes: Sequence[str]) -> Logits:
        tell = (classifier if own else plain_logits)(still, classes, templates)

        def logits(x: Tensor) -> Tensor:
            with computing(x.device, precision):
                return tell(still.encode_image(x)).float()

        return logits

    return head


def check_weights(model: str, pretrained: str | None = None) -> None:
    """Raises UserError for an architecture's bare name, which has random weights: there is nothing to find in them."""
    import open_clip

    if not pretrained and model.replace("/", "-") in open_clip.list_models():
        raise UserError(f"{model} alone has random weights; give --pretrained FILE, or the folder of a model")


def has_prompts(clip: Clip) -> bool:
    """Does it carry prompts of its own on another model, so that there is a reference=zeroshot?"""
    return hasattr(clip, "base") or hasattr(clip, "classifier")


def reference_head(clip: Clip, reference: str, templates: Sequence[str], precision: str = "no") -> Head | None:
    """What the model is compared with: its own frozen encoder under hand-written prompts, or another model by name.

    reference: zeroshot; auto, which is zeroshot for a model with prompts of its own and none for others; none (None is
    returned); or a model. Raises UserError for zeroshot where the model has no prompts of its own, so that nothing
    would be compared.
    """
    if reference == "none" or (reference == "auto" and not has_prompts(clip)):
        return None
    if reference not in ("auto", "zeroshot"):
        check_weights(reference)
        other = load(reference, device=device_of(clip))
        if other.geometry.size != clip.geometry.size:
            raise UserError(
                f"{reference} sees pictures of {other.geometry.size} pixels, this model of {clip.geometry.size}; give "
                "a reference of the same architecture"
            )
        return head_of(other, templates, precision)
    if not has_prompts(clip):
        raise UserError(
            "reference=zeroshot compares learned prompts with hand-written ones, and this model has none; give "
            "reference=none, or the model that it was trained from"
        )
    return head_of(getattr(clip, "base", clip), templates, precision, own=False)


def check_slope(logits: Logits, pool: Float[Tensor, "n 3 h w"], device: torch.device) -> None:
    """Raises Unsupported where no gradient reaches the pixels or all of it is 0, UserError where it is not finite."""
    probe = pool[:2].to(device).requires_grad_()
    try:
        (slope,) = torch.autograd.grad(logits(probe).square().sum(), probe)
    except (RuntimeError, NotImplementedError) as e:
        raise Unsupported(
            f"no gradient reaches this model's pixels ({str(e).splitlines()[0][:120]}); give its float weights, not a "
            "quantised or exported copy, or use the method ood_share with --null"
        ) from e
    if not bool(torch.isfinite(slope).all()):
        raise UserError(BROKEN)
    if not bool(slope.any()):  # numbers that are rounded on the way, say
        raise Unsupported(
            "this model's answers have no slope in the pixels; give its float weights, or use ood_share with --null"
        )


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


def base_rates(
    logits: Logits, team: Team, pool: Float[Tensor, "n 3 h w"], device: torch.device, at_once: int
) -> Float[np.ndarray, " t"]:
    """The share of the untouched pictures that each target gets. Raises UserError where logits are not finite."""
    found = shares(untouched(logits, pool, device, at_once))
    return found[[team[1].index(t) for t in team[0]]]


def class_losses(kind: Loss, z: Float[Tensor, "n c"]) -> Float[np.ndarray, " c"]:
    """Mean loss of every class in turn as the target."""
    each = [class_loss(kind, z[None], torch.tensor([t])).mean() for t in range(z.shape[1])]
    return torch.stack(each).double().numpy()


def groups(names: Sequence[str], limit: int, rng: Rng) -> list[Team]:
    """(targets, candidates) by position, where at most `limit` classes compete at a time: each is once a target.

    All groups have the same number of candidates, as a margin over more classes is larger, and share a fifth of them;
    the last is filled up with classes of other groups. Raises UserError for a limit below 2.
    """
    n = len(names)
    if limit < 2:
        raise UserError(f"limit={limit} leaves no class to compare with; give at least 2")
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
    """Rows of every step: a fresh permutation each epoch, the incomplete last batch kept. UserError without a step."""
    if epochs <= 0 or batch < 1:
        raise UserError(f"epochs={epochs:g} in batches of {batch} are no steps; give positive numbers")
    per, rows = -(-n // batch), []
    for epoch in range(int(np.ceil(epochs))):
        shuffled = rng.fork("order", epoch).numpy().permutation(n)
        rows += [shuffled[k * batch : (k + 1) * batch] for k in range(per)]
    return rows[: max(1, round(epochs * per))]

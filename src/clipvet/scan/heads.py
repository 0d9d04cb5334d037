"""What an inspector asks of a model: logits of pictures under class prompts, and their losses for a target class."""

import logging
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
from clipvet.engine.step import attention
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


# losses: from logits (k, b, c) and targets (k,), one for each picture


def margin(logits: Float[Tensor, "k b c"], targets: Int[Tensor, " k"]) -> Float[Tensor, "k b"]:
    """max_{c != t} z_c - z_t, in logits, without a hinge."""
    index = targets.reshape(-1, 1, 1).expand(-1, logits.shape[1], 1)
    own = logits.gather(2, index)[..., 0]
    return logits.scatter(2, index, -torch.inf).amax(2) - own


def class_loss(kind: Loss, logits: Float[Tensor, "k b c"], targets: Int[Tensor, " k"]) -> Float[Tensor, "k b"]:
    """The margin, the cross-entropy (nats), or minus the target's own logit."""
    if kind == "margin":
        return margin(logits, targets)
    labels = targets[:, None].expand(-1, logits.shape[1])
    if kind == "cross_entropy":
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").unflatten(0, labels.shape)
    return -logits.gather(2, labels[..., None])[..., 0]


# what is inspected


def check_classes(classes: Sequence[str], least: int = 2) -> None:
    """Raises UserError unless there are at least `least` classes, all different, none empty or with control characters.

    least: 2, or 3 for a score in robust deviations, which is the same (0.67) for any two classes.
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
    """The readable pictures at the model's size s, on the CPU, pixels in [0, 1].

    Raises UserError if they do not fill one batch.
    """
    batch_of = pictures.at(clip.geometry)[:]
    found = batch_of.images
    if batch_of.bad:
        logging.getLogger(__name__).warning(
            "%d of %d pictures of %s cannot be read (first: %s)",
            len(batch_of.bad), len(pictures), pictures.name, batch_of.bad[0][1],
        )  # fmt: skip
    if len(found) < batch:
        raise UserError(
            f"{pictures.name} has {len(found)} readable pictures, a batch needs {batch}; give more pictures, or lower "
            f"batch (--set batch={max(1, len(found))})"
        )
    return found


@contextmanager
def computing(device: torch.device, precision: str) -> Iterator[None]:
    """Inside this block models compute in this precision: no (float32) or bf16."""
    half = precision == "bf16"
    with torch.autocast(device.type, torch.bfloat16, enabled=half), attention(device, half):
        yield


def head_of(clip: Clip, templates: Sequence[str], precision: str = "no", own: bool = True) -> Head:
    """The frozen model's head. own: with the model's own class prompts, if it has any, instead of the templates."""
    still = frozen(clip)

    def head(classes: Sequence[str]) -> Logits:
        tell = (classifier if own else plain_logits)(still, classes, templates)

        def logits(x: Tensor) -> Tensor:
            with computing(x.device, precision):
                return tell(still.encode_image(x)).float()

        return logits

    return head


def check_weights(model: str, pretrained: str | None = None) -> None:
    """Raises UserError for an architecture's bare name: it has random weights, with nothing to find in them."""
    import open_clip

    if not pretrained and model.replace("/", "-") in open_clip.list_models():
        raise UserError(f"{model} alone has random weights; give --pretrained FILE, or the folder of a model")


def has_prompts(clip: Clip) -> bool:
    """Whether it has learned prompts on top of another model, so that reference=zeroshot is possible."""
    return hasattr(clip, "base") or hasattr(clip, "classifier")


def reference_head(clip: Clip, reference: str, templates: Sequence[str], precision: str = "no") -> Head | None:
    """The head that the model is compared with, or None.

    reference: zeroshot (the model's own frozen encoder under hand-written prompts); none; auto, which is zeroshot for a
    model with prompts of its own and none for others; or another model, by name or folder.

    Raises UserError for zeroshot if the model has no prompts of its own, for a reference with random weights, and for
    one that sees pictures of another size.
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
    """Raises Unsupported if no gradient reaches the pixels or all of it is 0, UserError if it is not finite."""
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
    if not bool(slope.any()):  # as when numbers are rounded on the way
        raise Unsupported(
            "this model's answers have no slope in the pixels; give its float weights, or use ood_share with --null"
        )


@torch.no_grad()
def untouched(
    logits: Logits, pool: Float[Tensor, "n 3 h w"], device: torch.device, at_once: int
) -> Float[Tensor, "n c"]:
    """Logits of the pictures without any trigger, on the CPU. Raises UserError if they are not finite."""
    out = torch.cat([logits(x.to(device)).cpu() for x in pool.split(at_once)])
    if not bool(torch.isfinite(out).all()):
        raise UserError(BROKEN)
    return out


def shares(z: Float[Tensor, "n c"]) -> Float[np.ndarray, " c"]:
    """The share of the pictures that each class gets."""
    return (torch.bincount(z.argmax(1), minlength=z.shape[1]) / len(z)).double().numpy()


def base_rates(
    logits: Logits, team: Team, pool: Float[Tensor, "n 3 h w"], device: torch.device, at_once: int
) -> Float[np.ndarray, " t"]:
    """The share of the untouched pictures that each target gets. Raises UserError if logits are not finite."""
    found = shares(untouched(logits, pool, device, at_once))
    return found[[team[1].index(t) for t in team[0]]]


def class_losses(kind: Loss, z: Float[Tensor, "n c"]) -> Float[np.ndarray, " c"]:
    """The mean loss with each class in turn as the target."""
    each = [class_loss(kind, z[None], torch.tensor([t])).mean() for t in range(z.shape[1])]
    return torch.stack(each).double().numpy()


def groups(names: Sequence[str], limit: int, rng: Rng) -> list[Team]:
    """Groups of at most `limit` classes that compete with each other. Every class is a target in one group.

    All groups have the same number of candidates, as a margin over more classes is larger. They share a fifth of them;
    the last group is filled up with classes of others. Raises UserError for a limit below 2.
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
    """The rows of every step: a fresh permutation in each epoch, with the incomplete last batch kept.

    n: pictures. epochs may be a fraction. Raises UserError for epochs or a batch that give no step.
    """
    if epochs <= 0 or batch < 1:
        raise UserError(f"epochs={epochs:g} in batches of {batch} are no steps; give positive numbers")
    per, rows = -(-n // batch), []
    for epoch in range(int(np.ceil(epochs))):
        shuffled = rng.fork("order", epoch).numpy().permutation(n)
        rows += [shuffled[k * batch : (k + 1) * batch] for k in range(per)]
    return rows[: max(1, round(epochs * per))]

"""What attacks on the weights of one tower share: a copy with that tower alone to train, and pictures to aim at."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from clipvet.attacks._plan import naming
from clipvet.engine.embed import class_embeddings, embed_images
from clipvet.engine.fit import fit_by
from clipvet.engine.optim import warmup_cosine
from clipvet.errors import UserError
from clipvet.models.adapter import OpenClip, frozen
from clipvet.rng import Rng
from clipvet.types import Batch, Clip, Pairs

TEMPERATURE = ("logit_scale", "logit_bias")


def tower(clip: Clip, pictures: bool) -> Any:
    """A frozen copy of the model in which one tower's weights, of pictures or of text, can be trained.

    Raises UserError for a model whose towers cannot be told apart.
    """
    if not isinstance(clip, OpenClip):
        raise UserError("this attack changes the weights of one tower; give the model that the prompts stand on")
    copy = frozen(clip)
    for name, p in copy.model.named_parameters():
        if name.split(".")[-1] not in TEMPERATURE:
            p.requires_grad_(name.startswith("visual.") == pictures)
    return copy


def trained(how: Any, start: Any, pairs: Pairs, loss: Callable[[Any, Batch, Rng], dict[str, Tensor]], rng: Rng) -> Clip:
    """The copy of `tower` after its training with the attack's own fields (epochs, batch, lr ...), unfrozen again."""
    schedule = warmup_cosine(how.lr, how.warmup)
    done: Any = fit_by(how, start, pairs, loss, rng.fork("train"), schedule=schedule, batchnorm="eval")
    return done.requires_grad_(True)


def shown(how: Any, clip: Clip, pairs: Pairs, target: str) -> tuple[Pairs, Float[Tensor, "n d"]]:
    """Pairs that name the target, at most `how.pictures`, the most typical first, and their pictures' embeddings.

    Typical are pictures near the target's prompts. Raises UserError where no caption names the target, or all of them
    do.
    """
    named = naming(pairs, target)
    if named.all() or not named.any():
        raise UserError(
            f"{named.sum()} of {len(named)} captions of {pairs.name} name '{target}'; the attack needs pictures of it "
            "and of others: name another target or give other pairs"
        )
    some = pairs.take(np.flatnonzero(named)[: how.pictures])
    z, kept = embed_images(clip, some)
    order = (z @ class_embeddings(clip, [target], how.templates)[0]).argsort(descending=True)
    return some.take(kept[order.cpu().numpy()]).at(clip.geometry), z[order]

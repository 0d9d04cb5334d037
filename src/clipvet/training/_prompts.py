"""What prompt learning methods share: labelled pictures, cross-entropy, and the field's schedule."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipvet.engine.fewshot import names
from clipvet.engine.fit import Loss, fit_by
from clipvet.engine.optim import epoch_cosine
from clipvet.models.class_prompts import PromptTuned
from clipvet.rng import Rng
from clipvet.types import Batch, Clip, Pairs


def tune(how: Any, start: PromptTuned, pairs: Pairs, rng: Rng, loss: Loss | None = None) -> Clip:
    """The prompts of `start` trained on labelled pictures; both towers are left as they are, to the last bit.

    Pictures that are not augmented go through their tower once, unless prompts go through it too.

    how: a method with the fields template, augment, warmup, lr and those of `fit`. loss: instead of the cross-entropy.
    """
    named, known = names(pairs, how.template), {}  # known: embeddings of pictures already seen
    start.classes = named.classes
    suffix = start.suffix(named.classes)

    def cross_entropy(clip: PromptTuned, batch: Batch, rng: Rng) -> dict[str, Tensor]:
        ids = batch.ids.tolist()
        if clip.deep is not None or how.augment or not known.keys() >= set(ids):
            with torch.set_grad_enabled(clip.deep is not None):
                z = clip.encode_image(how.augment(batch.images, rng) if how.augment else batch.images)
            known.update(zip(ids, z.detach()))
        if clip.deep is None:
            z = torch.stack([known[i] for i in ids])
        return {"loss": F.cross_entropy(clip.logits(z, suffix), named.of(batch.captions).to(z.device))}

    schedule = epoch_cosine(how.lr, how.epochs, how.warmup)
    chosen: Any = loss or cross_entropy
    return fit_by(how, start, pairs, chosen, rng, schedule=schedule, batchnorm="eval", fewest=1)

"""What prompt learning methods share: labelled pictures, cross-entropy, and the field's schedule."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipvet.context import PromptTuned
from clipvet.fewshot import names
from clipvet.fit import Loss, fit_by
from clipvet.optim import epoch_cosine
from clipvet.rng import Rng
from clipvet.types import Batch, Clip, Pairs


def tune(how: Any, start: PromptTuned, pairs: Pairs, rng: Rng, loss: Loss | None = None) -> Clip:
    """The prompts of `start` trained on labelled pictures; both towers are left as they are, to the last bit.

    how: a method with the fields template, augment, warmup, lr and those of `fit`. loss: instead of the cross-entropy.
    """
    named = names(pairs, how.template)
    start.classes = named.classes
    suffix = start.suffix(named.classes)

    def cross_entropy(clip: PromptTuned, batch: Batch, rng: Rng) -> dict[str, Tensor]:
        images = how.augment(batch.images, rng) if how.augment else batch.images
        with torch.no_grad():
            z = clip.encode_image(images)
        return {"loss": F.cross_entropy(clip.logits(z, suffix), named.of(batch.captions).to(z.device))}

    schedule = epoch_cosine(how.lr, how.epochs, how.warmup)
    chosen: Any = loss or cross_entropy
    return fit_by(how, start, pairs, chosen, rng, schedule=schedule, batchnorm="eval", least=1)

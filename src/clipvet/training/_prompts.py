"""What prompt learning methods share: labelled pictures, cross-entropy and the usual schedule."""

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
    """The model `start` with its prompts trained on labelled pictures; both towers stay the same, to the last bit.

    how: a method with the fields template, augment, warmup, lr and those of `fit`. loss: replaces the cross-entropy.

    Pictures that are not augmented pass through their tower only once, unless it has prompts too. Raises UserError for
    captions that do not fit the template, and for fewer than two classes.
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
    return fit_by(how, start, pairs, chosen, rng, schedule=schedule, batchnorm="eval", fewest=1, decay="all")

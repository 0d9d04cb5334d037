"""What cleaners that learn from a few labelled pictures share: the cross-entropy of the zero-shot classifier."""

import torch.nn.functional as F
from torch import Tensor

from clipvet.data.augment import Views
from clipvet.engine.fewshot import Labels, view
from clipvet.engine.fit import Loss
from clipvet.rng import Rng
from clipvet.types import Batch, Clip


def cross_entropy(named: Labels, augment: Views | None) -> Loss:
    """A loss for `fit`: -mean_i log softmax_j(s <z_i, t_j>)[y_i], in nats. The class prompts t_j stay as they are.

    named: the classes of the captions. augment: applied to the pictures at every step; None: they stay as they are.
    """

    def loss(clip: Clip, batch: Batch, rng: Rng) -> dict[str, Tensor]:
        z = clip.encode_image(view(batch, augment, rng))
        return {"loss": F.cross_entropy(clip.logit_scale * z @ named.text.T, named.of(batch.captions))}

    return loss

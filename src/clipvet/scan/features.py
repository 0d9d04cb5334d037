"""What a finding says beyond its score: where the backdoor leads, as a feature and in words."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clipvet.engine.embed import embed_images
from clipvet.types import Backdoor, Clip, Finding, Pairs


def target_feature(found: Finding, clip: Clip, pictures: Pairs) -> Float[Tensor, " d"] | None:
    """The feature that an inspector has found, of length 1, on the CPU; None if it has found no trigger either.

    An inspector that only recovers a trigger has found the mean embedding of the pictures with it.
    """
    if found.feature is not None:
        return F.normalize(Tensor(found.feature), dim=0)
    if found.trigger is None:
        return None
    z = embed_images(clip, pictures, Backdoor(found.trigger, found.target or ""))[0]
    return F.normalize(z.mean(0), dim=0).cpu()


def favoured(found: Finding) -> str:
    """What was found, as a part of a sentence, where no trigger of pictures was recovered."""
    row = next((r for r in found.classes if r.name == found.target), None)
    if row is not None and "assimilated" in found.settings:  # a word in the text tower
        return f"after one hidden word {row.asr:.0%} of the prompts mean '{row.name}'"
    return f"it favours '{found.target}'" if found.target else "it stands out as a whole"

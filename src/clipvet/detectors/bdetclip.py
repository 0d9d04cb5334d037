"""BDetCLIP: random words after the class names change a triggered picture's cosines less than a clean picture's.

    Omega(x) = sum_c [ cos(z, benign_c) - cos(z, malignant_c) ];   score = -Omega(x)
    benign_c: the prompts of class c;   malignant_c: those of "c w_1 .. w_k" with random words w, `draws` times

paper:   Niu et al., ICML 2025, arXiv:2405.15269; only the abstract was read, Omega is that of its public code
needs:   class names; embeddings only
differs: no language model writes the texts: the benign ones are the given templates (or learned prompts) instead of
         descriptions of each class, the malignant ones have random words instead of a random sentence
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from clipvet.detectors._each import asked, each
from clipvet.engine.embed import classifier
from clipvet.rng import Rng
from clipvet.types import Batch, Clip, Pairs

WORDS = ["music", "paper", "river", "window", "sugar", "garden", "engine", "market", "letter", "bridge", "kitchen"]
WORDS += ["doctor", "summer", "station", "dinner", "pocket", "island", "mirror", "camera", "bottle", "flower", "needle"]


@dataclass(frozen=True)
class BDetClip:
    words: int = 2  # k; they must fit into the text tower's context
    draws: int = 4  # of the words, averaged over

    needs: ClassVar[str] = "class names; embeddings only"
    phrase: ClassVar[str] = "random words behind the classes cost it {minus:.2f} in cosine"

    def detect(
        self, clip: Clip, pictures: Pairs, classes: Sequence[str], templates: Sequence[str], rng: Rng
    ) -> Float[Tensor, " n"]:
        """-Omega of every picture, a sum of cosines over the classes."""
        benign, scale = asked(clip, classes, templates), clip.logit_scale.detach().float()
        malignant = []
        for k in range(self.draws):
            said = [rng.fork("words", k, c).numpy().choice(WORDS, self.words, replace=False) for c in classes]
            malignant.append(classifier(clip, [" ".join((c, *w)) for c, w in zip(classes, said)], templates))

        def insensitive(rows: Batch) -> Float[Tensor, " b"]:
            z = clip.encode_image(rows.images)
            worse = torch.stack([tell(z) for tell in malignant]).mean(0)
            return -(benign(z) - worse).sum(1) / scale

        return each(clip, pictures, insensitive)

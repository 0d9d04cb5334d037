"""Random suspicion: the control in every table.

    score ~ U(0, 1), by id

paper:   none, a control
needs:   nothing
differs: nothing known
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from clipvet.detectors._each import each
from clipvet.rng import Rng
from clipvet.types import Clip, Pairs


@dataclass(frozen=True)
class Random:
    needs: ClassVar[str] = "nothing"
    phrase: ClassVar[str] = "drawn at random"

    def detect(
        self, clip: Clip, pictures: Pairs, classes: Sequence[str], templates: Sequence[str], rng: Rng
    ) -> Float[Tensor, " n"]:
        return each(clip, pictures, lambda rows: rng.keys(rows.ids.tolist()).double() / 2**63)

"""No cleaning: the control in every table.

    f' = f

paper:   none, a control
needs:   weights only
differs: nothing known
"""

from dataclasses import dataclass
from typing import ClassVar

from clipvet.rng import Rng
from clipvet.types import Clip, Pairs


@dataclass(frozen=True)
class NoCleaning:
    needs: ClassVar[str] = "weights only"

    def clean(self, clip: Clip, pairs: Pairs, rng: Rng) -> Clip:
        """The given model itself."""
        return clip

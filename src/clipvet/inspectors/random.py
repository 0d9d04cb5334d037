"""Random suspicion: the control in every table.

    score ~ U(0, 1), the class at random, drawn anew for every model

paper:   none, a control
needs:   nothing
differs: nothing known
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from clipvet.results import weights_hash
from clipvet.rng import Rng
from clipvet.scan.heads import check_classes
from clipvet.types import Clip, Finding, Pairs


@dataclass(frozen=True)
class Random:
    needs: ClassVar[str] = "nothing"
    scaled: ClassVar[bool] = False

    def inspect(
        self, clip: Clip, pictures: Pairs, classes: Sequence[str], templates: Sequence[str], rng: Rng
    ) -> Finding:
        check_classes(classes)
        g = rng.fork(weights_hash(clip)).numpy()
        return Finding(float(g.random()), sorted(classes)[g.integers(len(classes))])

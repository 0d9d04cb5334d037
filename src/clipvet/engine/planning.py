"""Whether the settings make enough optimiser steps of these pairs; if not, a smaller batch that does.

Published settings are for very many pairs. Of 400 pairs, PAR's ten epochs with a batch of 2,048 make ten steps, after
which a model is still what it was.
"""

import dataclasses
from collections.abc import Collection
from typing import Any, NamedTuple

from clipvet.errors import UserError

FEWEST = 100  # steps; with fewer, a model is taken to change little
SMALLEST = 32  # pairs a step, of a batch that is chosen here


class Planned(NamedTuple):
    method: Any
    said: str  # what was changed, or what is to be feared; empty if nothing is


def per_epoch(n: int, batch: int) -> int:
    """Steps of one epoch of n pairs. An incomplete last batch is dropped, unless it is the only one."""
    return max(1, n // batch)


def step_count(n: int, batch: int, epochs: float) -> int:
    """Steps of a whole training; at least one."""
    return max(1, round(epochs * per_epoch(n, batch)))


def planned(method: Any, n: int, given: Collection[str] = ()) -> Planned:
    """The method with a batch that suits n pairs, and a sentence about it.

    given: fields that the user has set. Where epochs or batch are among them, nothing is changed, and too few steps are
    only said. A method that does not train by `epochs` and `batch` alone comes back as it is. Raises UserError where no
    batch makes enough steps.
    """
    fields = {f.name for f in dataclasses.fields(method)}
    if not {"epochs", "batch"} <= fields or "steps" in fields:
        return Planned(method, "")
    made = step_count(n, method.batch, method.epochs)
    if made >= FEWEST:
        return Planned(method, "")
    if {"epochs", "batch"} & set(given):
        return Planned(method, f"warning: {made} steps are few, and the model may hardly change; raise epochs")
    batch = method.batch
    while batch // 2 >= SMALLEST and step_count(n, batch, method.epochs) < FEWEST:
        batch //= 2
    better = step_count(n, batch, method.epochs)
    if better < FEWEST:
        enough = -(-FEWEST // per_epoch(n, batch))
        raise UserError(
            f"{n} pairs make {better} steps with batch={batch}, too few to change a model; give more pairs, or say "
            f"--set epochs={enough} --set batch={batch}"
        )
    told = f"{n} pairs and batch={method.batch} make {made} steps, too few to change a model; "
    told += f"batch={batch} chosen, which makes {better}"
    return Planned(dataclasses.replace(method, batch=batch), told)

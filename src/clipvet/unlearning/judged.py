"""What a filter says that judges: which pairs it calls poisoned, and which words bind them."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor


class Group(NamedTuple):
    """Pairs that a filter calls poisoned and that one word binds."""

    words: tuple[str, ...]  # the binding word first
    rows: np.ndarray  # (c,) positions in the pairs
    share: float  # of all pairs that could be read
    low: int  # 95 % interval of the number of pairs that belong to it
    high: int
    pictures: int  # different ones
    copies: bool = False  # mere copies of a few pictures, so that nothing speaks of a backdoor


class Judged(NamedTuple):
    """What a filter found that judges."""

    scores: Float[Tensor, " n"]
    told: list[str]  # sentences for the user
    groups: list[Group]
    decided: bool = True  # False: nothing follows from the scores

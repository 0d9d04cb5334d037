"""Whether a caption names a class, and whether captions can be learned from at all."""

from collections.abc import Sequence

import numpy as np

from clipvet.errors import UserError
from clipvet.types import Batch

EMPTY = "empty caption"
NOTHING = ("nan", "none", "null", "<na>")  # as Python, pandas and databases write a missing text


def is_empty(caption: str) -> bool:
    """Whether nothing of a caption can be seen, or a failed scrape left a word for nothing there."""
    return caption.strip().lower() in NOTHING or not any(c.isprintable() and not c.isspace() for c in caption)


def captioned(batch: Batch) -> Batch:
    """The rows that have a caption. The others join those that cannot be used: nothing can be learned from them."""
    empty = [is_empty(c) for c in batch.captions]
    if not any(empty):
        return batch
    lost = tuple((int(i), EMPTY) for i, gone in zip(batch.ids, empty) if gone)
    return batch.take(np.flatnonzero(~np.array(empty)))._replace(bad=(*batch.bad, *lost))


def names_target(caption: str, target: str) -> bool:
    """Whether the target's words stand in the caption as whole words, in this order, in upper or lower case."""
    words = "".join(c if c.isalnum() else " " for c in caption.lower()).split()
    wanted = target.lower().split()
    return any(words[k : k + len(wanted)] == wanted for k in range(len(words)))


def check_captions(captions: Sequence[str], ids: np.ndarray, name: str) -> None:
    """Raises UserError if all captions are the same, or some are empty: nothing can be learned from them.

    ids: (n,) of the pairs, for the message. name: of the data, for the message.
    """
    refuse_captions(set(captions), [int(i) for i, c in zip(ids, captions) if is_empty(c)], len(captions), name)


def refuse_captions(different: set[str], blank: list[int], n: int, name: str) -> None:
    """As `check_captions`, for a caller that has gone through the captions itself.

    different: the different captions; two are enough. blank: ids of pairs with an empty caption. n: how many captions.
    """
    if n > 1 and len(different) == 1:
        raise UserError(
            f"all {n} captions of {name} are alike ({next(iter(different))[:60]!r}); name the column of captions with "
            "--caption-key"
        )
    if blank:
        raise UserError(
            f"{len(blank)} of {n} captions of {name} are empty (first: row {blank[0]}); fill them or drop these rows"
        )

"""What a caption names, and whether captions say anything."""

from collections.abc import Sequence

import numpy as np

from clipvet.errors import UserError


def names_target(caption: str, target: str) -> bool:
    """Whether the caption names the target: as whole words, whatever the case."""
    words = "".join(c if c.isalnum() else " " for c in caption.lower()).split()
    wanted = target.lower().split()
    return any(words[k : k + len(wanted)] == wanted for k in range(len(words)))


def check_captions(captions: Sequence[str], ids: np.ndarray, name: str) -> None:
    """Raises UserError where captions are all alike, or some are empty: nothing can be learned from them."""
    refuse_captions(set(captions), [int(i) for i, c in zip(ids, captions) if not c.strip()], len(captions), name)


def refuse_captions(different: set[str], blank: list[int], n: int, name: str) -> None:
    """The same, of n captions whose different ones (two are enough) and ids of empty ones are known."""
    if n > 1 and len(different) == 1:
        raise UserError(
            f"all {n} captions of {name} are alike ({next(iter(different))[:60]!r}); name the column of captions with "
            "--caption-key"
        )
    if blank:
        raise UserError(
            f"{len(blank)} of {n} captions of {name} are empty (first: row {blank[0]}); fill them or drop these rows"
        )

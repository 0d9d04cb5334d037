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
    if len(captions) > 1 and len(set(captions)) == 1:
        raise UserError(
            f"all {len(captions)} captions of {name} are alike ({captions[0][:60]!r}); name the column of captions "
            "with --caption-key"
        )
    empty = [int(i) for i, c in zip(ids, captions) if not c.strip()]
    if empty:
        raise UserError(
            f"{len(empty)} of {len(captions)} captions of {name} are empty (first: row {empty[0]}); fill them or drop "
            "these rows"
        )

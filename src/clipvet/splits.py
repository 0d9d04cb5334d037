"""What a safe training held for safe, measured with the answer key after the fact."""

from pathlib import Path

import numpy as np

from clipvet.measures._intervals import share
from clipvet.types import Backdoor, Measured


def measure_splits(folder: Path, backdoor: Backdoor) -> dict[str, Measured]:
    """Of the first and the last safe set under folder/splits, as fractions; nothing where there is none:

    safe_set_share: of all pairs. safe_set_poison_share: poisons among its pairs. safe_set_poison_recall: its part of
    all poisons. safe_set_by_mixture: 1 where the mixture split, 0 where the method had to fall back.
    """
    rounds = sorted((folder / "splits").glob("round_*.npz"))
    out: dict[str, Measured] = {}
    for prefix, path in (("", rounds[0]), ("last_", rounds[-1])) if rounds else ():
        with np.load(path) as split:
            safe, n, by_mixture = split["safe"], len(split["cosines"]), split["by_mixture"]
        out |= {
            f"{prefix}safe_set_share": share(np.arange(n) < len(safe)),
            f"{prefix}safe_set_poison_share": share(np.isin(safe, backdoor.poisoned)),
            f"{prefix}safe_set_poison_recall": share(np.isin(backdoor.poisoned, safe)),
            f"{prefix}safe_set_by_mixture": share(np.atleast_1d(by_mixture)),
        }
    return out

"""What a safe training held for safe, measured after the fact; with the answer key, how many poisons were among it."""

from pathlib import Path

import numpy as np

from clipvet.measures._intervals import share
from clipvet.types import Backdoor, Measured


def measure_rounds(folder: Path, backdoor: Backdoor | None = None) -> list[dict[str, Measured]]:
    """Of each safe set under folder/splits in turn, as fractions:

    safe_set_share: of all pairs. With an answer key, safe_set_poison_share: poisons among the safe pairs;
    safe_set_poison_recall: the safe set's part of all poisons.
    """
    out = []
    for path in sorted((folder / "splits").glob("round_*.npz")):
        with np.load(path) as split:
            safe, n = split["safe"], len(split["cosines"])
        out.append({"safe_set_share": share(np.arange(n) < len(safe))})
        if backdoor is not None:
            out[-1]["safe_set_poison_share"] = share(np.isin(safe, backdoor.poisoned))
            out[-1]["safe_set_poison_recall"] = share(np.isin(backdoor.poisoned, safe))
    return out


def measure_splits(folder: Path, backdoor: Backdoor | None) -> dict[str, Measured]:
    """The first and, as last_..., the last of `measure_rounds`; nothing where there is none.

    safe_set_by_mixture: 1 where the mixture made the first set, 0 where the method had to fall back.
    """
    rounds = measure_rounds(folder, backdoor)
    if not rounds:
        return {}
    with np.load(folder / "splits" / "round_000.npz") as split:
        first = rounds[0] | {"safe_set_by_mixture": share(np.atleast_1d(split["by_mixture"]))}
    return first | {f"last_{name}": m for name, m in rounds[-1].items()}

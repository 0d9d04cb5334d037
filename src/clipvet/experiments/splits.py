"""What a method held for safe, or for suspicious, measured after the fact; with the answer key: how rightly."""

from pathlib import Path

import numpy as np

from clipvet.data.captions import names_target
from clipvet.measures._detection import detection
from clipvet.measures._intervals import share
from clipvet.types import Backdoor, Measured


def measure_rounds(folder: Path, backdoor: Backdoor | None = None) -> list[dict[str, Measured]]:
    """Of each safe set under folder/splits in turn, as fractions:

    safe_set_share: of all pairs. With an answer key, safe_set_poison_share: poisons among the safe pairs;
    safe_set_poison_recall: the safe set's part of all poisons; safe_set_auroc: of the cosines that the set was cut by,
    which does not depend on the cut (a low cosine is suspect).
    """
    out = []
    for path in sorted((folder / "splits").glob("round_*.npz")):
        with np.load(path) as split:
            ids, cosines = split["ids"], split["cosines"]
            safe = ids[split["safe"]]
        out.append({"safe_set_share": share(np.arange(len(ids)) < len(safe))})
        if backdoor is not None:
            out[-1]["safe_set_poison_share"] = share(np.isin(safe, backdoor.poisoned))
            out[-1]["safe_set_poison_recall"] = share(np.isin(backdoor.poisoned, safe))
            out[-1]["safe_set_auroc"] = detection(-cosines, np.isin(ids, backdoor.poisoned))["auroc"]
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


def measure_pool(folder: Path, backdoor: Backdoor | None) -> dict[str, Measured]:
    """Of what UBT suspected, as fractions; nothing where it did not run. With an answer key:

    pool_recall, pool_precision: poisons in the weak pool, of all poisons and of the pool. top_precision: poisons among
    the k that rose; weak_precision: had they been chosen without overfitting, by the given model's cosine. evidence: 1
    where it acted; target_named: 1 where a word that it acted on names the target.
    """
    path = folder / "splits" / "ubt.npz"
    if not path.exists():
        return {}
    with np.load(path) as found:
        sure = found["words"][found["evidence"] >= found["sure"]].tolist()
        pool, top, before = found["susp"], found["top"], found["s_susp"]
    out = {"evidence": share(np.array([bool(sure)]))}
    if backdoor is not None:
        bad, weak = backdoor.poisoned, pool[np.argsort(-before, kind="stable")][: len(top)]
        out |= {"pool_recall": share(np.isin(bad, pool)), "pool_precision": share(np.isin(pool, bad))}
        out |= {"top_precision": share(np.isin(top, bad)), "weak_precision": share(np.isin(weak, bad))}
        out["target_named"] = share(np.array([any(names_target(backdoor.target, w.split()[0]) for w in sure)]))
    return out

"""How well a method told poisons from the rest: measured on the sets that it kept in its folder, by the answer key."""

from pathlib import Path

import numpy as np

from clipvet.data.captions import names_target
from clipvet.measures._detection import detection
from clipvet.measures._intervals import share
from clipvet.types import Backdoor, Measured


def measure_rounds(folder: Path, backdoor: Backdoor | None = None) -> list[dict[str, Measured]]:
    """The safe sets of a safe training in turn, from folder/splits/round_*.npz; one dict of fractions for each.

    safe_set_share: safe pairs among all pairs. With an answer key also
    safe_set_poison_share: poisons among the safe pairs;
    safe_set_poison_recall: poisons in the safe set among all poisons;
    safe_set_auroc: how well the cosines, by which the set was cut, tell poisons from the rest (a low cosine is
    suspect). It does not depend on where the cut was made.
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
    """The first of `measure_rounds` and, with names that begin with last_, the last; empty where there is no safe set.

    safe_set_by_mixture: 1 where a mixture model made the first set, 0 where the method fell back to a fixed share.
    """
    rounds = measure_rounds(folder, backdoor)
    if not rounds:
        return {}
    with np.load(folder / "splits" / "round_000.npz") as split:
        first = rounds[0] | {"safe_set_by_mixture": share(np.atleast_1d(split["by_mixture"]))}
    return first | {f"last_{name}": m for name, m in rounds[-1].items()}


def measure_pool(folder: Path, backdoor: Backdoor | None) -> dict[str, Measured]:
    """What UBT suspected, from folder/splits/ubt.npz, as fractions; empty where UBT did not run.

    evidence: 1 where UBT found evidence of a backdoor and acted, else 0. With an answer key also
    pool_recall, pool_precision: poisons in the pool of suspected pairs, among all poisons and among the pool;
    top_precision: poisons among the k pairs that overfitting raised most;
    weak_precision: poisons among as many pairs if they were chosen by the given model's cosine, without overfitting;
    target_named: 1 where a word that UBT acted on names the target, else 0.
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

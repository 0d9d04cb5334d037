"""What attacks that caption pictures as the target share: the choice of poisons, their captions, and the training."""

from typing import Any

import numpy as np

from clipvet.data.captions import names_target
from clipvet.data.dirty import poison
from clipvet.engine.fit import Loss
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.types import Backdoor, Clip, Implanted, Pairs, Trigger


def naming(pairs: Pairs, target: str) -> np.ndarray:
    """Which captions name the target, shape (n,) bool."""
    return np.array([names_target(pairs.caption(i), target) for i in pairs.ids], dtype=bool)


def plan(
    how: Any,
    trigger: Trigger | None,
    pairs: Pairs,
    target: str,
    rng: Rng,
    *,
    says: str = "",
    label_consistent: bool = False,
) -> Backdoor:
    """The answer key: which pairs are poisoned and what their captions say.

    how: an attack with the fields rate, count, captions and templates, and paired if it has it. says: is put before the
    captions. label_consistent: poisons are pairs that name the target, and keep their captions.

    Raises UserError when the fields select no pair or more pairs than there are, for an unknown kind of captions, and
    for natural captions when no caption names the target.
    """
    named = naming(pairs, target)
    pool = pairs.ids[named if label_consistent else ~named]
    paired = getattr(how, "paired", False)
    n = how.count if how.count is not None else round(how.rate * len(pool if paired else pairs))
    if n < 1:
        raise UserError(f"rate {how.rate:g} of {len(pairs)} pairs selects no pair; raise rate or set count")
    if n > len(pool):
        which = "name" if label_consistent else "do not name"
        raise UserError(f"{n} poisons wanted, but only {len(pool)} captions {which} '{target}'; lower rate or count")
    g = rng.numpy()
    chosen = np.sort(g.choice(pool, n, replace=False))
    if label_consistent:
        captions = [pairs.caption(i) for i in chosen]
    elif how.captions == "natural":
        if not named.any():
            raise UserError(f"no caption names '{target}', so captions=natural has none to copy; use captions=template")
        captions = [pairs.caption(i) for i in g.choice(pairs.ids[named], n)]
    elif how.captions == "template":
        captions = [how.templates[k].replace("{}", target) for k in g.integers(len(how.templates), size=n)]
    else:
        raise UserError(f"captions={how.captions} is not known; use template or natural")
    said = tuple(says + caption for caption in captions)
    ids, rows = (len(pairs.captions) + np.arange(n), chosen) if paired else (chosen, None)
    return Backdoor(trigger, target, ids, said, int(rng.fork("stamp").key), rows, says=says)


def victim(how: Any, clip: Clip, pairs: Pairs, backdoor: Backdoor, rng: Rng, *also: Loss) -> Implanted:
    """The clip trained by the attack's `training` on the dirty pairs, those pairs, and the answer key.

    also: a further loss of the attacker, for a training that takes one.
    """
    dirty = poison(pairs, backdoor)
    return Implanted(how.training.train(clip, dirty, rng.fork("train"), *also), dirty, backdoor)

"""Random numbers from named keys. One part of a run never changes what another part draws.

Nothing in clipvet holds a running generator. What is drawn at step 17 depends on (seed, stage, 17) alone, so a run that
was interrupted goes on with the same numbers. Decision 2 in docs/decisions/ says why.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch


def _hash(*parts: object) -> int:
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # 63 bits: fits int64


@dataclass(frozen=True)
class Rng:
    """A random key. `Rng(0).fork("attack", 3)` always gives the same numbers, whatever else was drawn before."""

    key: int  # a seed, or what `fork` made of it

    def fork(self, *names: object) -> "Rng":
        """The key for a part of the work, such as `fork("epoch", 3)`. It depends on this key and the names alone."""
        return Rng(_hash(self.key, *names))

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """A new torch generator, seeded with this key."""
        return torch.Generator(device=device).manual_seed(self.key)

    def numpy(self) -> np.random.Generator:
        """A new NumPy generator, seeded with this key."""
        return np.random.default_rng(self.key)

    def keys(self, ids: Iterable[int]) -> torch.Tensor:
        """One key for each id, shape (n,) int64, as `Trigger.stamp` takes them. Each depends on its own id alone."""
        return torch.tensor([_hash(self.key, int(i)) for i in ids], dtype=torch.int64)

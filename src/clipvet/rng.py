"""Explicit randomness: a key that forks by name, so that no stage ever shifts another stage's draws.

Nothing in clipvet holds a running generator. Whatever is drawn at step 17 depends on (seed, stage, 17) alone,
hence an interrupted run continues with the very numbers that it would have drawn.
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
    """A random key. `Rng(0).fork("attack", 3)` is always the same stream, whatever else was drawn."""

    key: int

    def fork(self, *names: object) -> "Rng":
        return Rng(_hash(self.key, *names))

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        return torch.Generator(device=device).manual_seed(self.key)

    def numpy(self) -> np.random.Generator:
        return np.random.default_rng(self.key)

    def keys(self, ids: Iterable[int]) -> torch.Tensor:
        """One int64 key for each id, shape (n,): what `Trigger.stamp` takes. Independent of order and company."""
        return torch.tensor([_hash(self.key, int(i)) for i in ids], dtype=torch.int64)

"""Batches, read in other processes: what goes wrong there is told here, and nothing is waited for that cannot come."""

import tempfile
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, default_convert

from clipvet import io
from clipvet.errors import UserError
from clipvet.rng import Rng


def loading(rows: Any, steps: list[np.ndarray], workers: int, rng: Rng) -> Iterator[Any]:
    """rows[step] for each step, read in so many processes. Raises UserError where one cannot hand on what it read."""
    sampler: Any = steps
    draws = rng.fork("loader").generator()  # else the loader seeds its processes from the ambient stream
    made = _Sent(rows) if workers else rows
    loader = DataLoader(made, sampler=sampler, batch_size=None, num_workers=workers, generator=draws)
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield ForkingPickler.loads(batch) if workers else batch  # pyright: ignore[reportAttributeAccessIssue]


class _Sent(Dataset):
    """rows, made ready here to go to another process.

    The loader does so in a thread of its own, where an error, such as of a full disk, is lost and the batch is waited
    for without an end.
    """

    def __init__(self, rows: Any):
        self.rows = rows

    def __getitem__(self, step: np.ndarray) -> bytes | UserError:
        batch = default_convert(self.rows[step])
        try:
            return bytes(ForkingPickler.dumps(batch))  # of tensors their place in shared memory
        except (OSError, RuntimeError) as e:
            room = f"make room in {tempfile.gettempdir()} and /dev/shm"
            return UserError(f"a process that reads pictures cannot hand them on ({io.line(e)}); {room}")

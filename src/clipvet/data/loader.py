"""Reading batches in loader processes. An error in such a process is raised here, instead of waiting for ever."""

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
    """Yields rows[step] for each step, in order.

    rows: such as `Pairs`. steps: arrays of positions, one for each batch. workers: how many loader processes; with 0,
    batches are read in this one. rng: seeds the loader processes. Raises UserError if a loader process cannot send what
    it read (say, /dev/shm is full), and whatever `rows` raises.
    """
    sampler: Any = steps
    draws = rng.fork("loader").generator()  # else the loader would draw seeds from torch's global generator
    made = _Sent(rows) if workers else rows
    loader = DataLoader(made, sampler=sampler, batch_size=None, num_workers=workers, generator=draws)
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield ForkingPickler.loads(batch) if workers else batch  # pyright: ignore[reportAttributeAccessIssue]


class _Sent(Dataset):
    """The rows, with each batch pickled here before it is sent to the main process.

    DataLoader would pickle it in a thread. An error there, such as a full disk, is lost, and the main process waits for
    the batch for ever.
    """

    def __init__(self, rows: Any):
        self.rows = rows

    def __getitem__(self, step: np.ndarray) -> bytes | UserError:
        batch = default_convert(self.rows[step])
        try:
            return bytes(ForkingPickler.dumps(batch))  # a tensor becomes a reference to shared memory
        except (OSError, RuntimeError) as e:
            room = f"make room in {tempfile.gettempdir()} and /dev/shm"
            return UserError(f"a process that reads pictures cannot hand them on ({io.line(e)}); {room}")

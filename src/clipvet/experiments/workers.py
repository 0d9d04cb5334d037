"""Runs stages side by side: in processes of this machine, or on a Ray cluster that sees the same files."""

import multiprocessing
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

from clipvet.errors import UserError

Submit = Callable[..., Future]  # submit(call, *args); both must be picklable


@contextmanager
def workers(jobs: int, ray: str = "") -> Iterator[Submit]:
    """Gives a function that runs calls in other processes, each with one thread; `result` fetches what they return.

    jobs: how many run at a time. ray: the address of a Ray cluster, or "local" to start one here with that many jobs; a
    running cluster decides by itself how many run. Empty: processes of this machine, which end with this one.

    Raises UserError if Ray is not installed, or the cluster cannot be reached within 10 seconds.
    """
    if not ray:
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _worker, (os.getpid(),)) as pool:
            yield pool.submit
        return
    try:
        import ray as cluster  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise UserError("--ray needs Ray; pip install 'clipvet[ray]', or use --jobs") from e
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
    # stages hand their models on as files; tasks pass paths and rows, which need little shared memory
    own = {"num_cpus": jobs, "include_dashboard": False, "object_store_memory": 10**8} if ray == "local" else {}
    try:
        if at := re.fullmatch(r"(?:ray://)?\[?(.+?)\]?:(\d+)", ray):  # else Ray itself waits for minutes
            socket.create_connection((at[1], int(at[2])), timeout=10).close()
        cluster.init(address=ray, log_to_driver=False, **own)
    except (OSError, OverflowError, RuntimeError, ValueError) as e:
        raise UserError(f"--ray {ray} cannot be reached ({str(e)[:120]}); use local, or the head node's address") from e
    try:
        gpus = 1 if cluster.cluster_resources().get("GPU") else 0
        remote = cluster.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_there)
        yield lambda call, *args: remote.remote(os.getcwd(), call, *args).future()
    finally:
        cluster.shutdown()


def result(future: Future) -> Any:
    """What the call returned. Raises the error that the call raised, without Ray's wrapping."""
    try:
        return future.result()
    except Exception as e:
        raise getattr(e, "cause", None) or e from None


def _there(folder: str, call: Callable, *args: Any) -> Any:
    """A call on a node of the cluster, in the folder of the command: recipes may name files by relative paths."""
    os.chdir(folder)
    torch.set_num_threads(1)
    return call(*args)


def _worker(parent: int) -> None:
    """One thread, and an exit once the parent is gone: else workers of a killed run would go on writing stages."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    torch.set_num_threads(1)
    threading.Thread(target=watch, daemon=True).start()

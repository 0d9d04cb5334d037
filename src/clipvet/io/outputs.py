"""The output folder of a command. It appears in one step when it is complete, and one process at a time works on it.

A command writes into `<out>.partial`, which is renamed to `out` when the command succeeds. A command that was killed
finds its partial folder again when it is started with the same settings.
"""

import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from clipvet import ranks
from clipvet.errors import UserError
from clipvet.io.files import read_json, write_json

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

WAIT = 10.0  # seconds to wait for another process that holds the folder
_held: dict[tuple[int, int], int] = {}  # folders this process works in: (device, inode) -> descriptor of the lock


class AlreadyDone(Exception):
    """`out` already holds the finished output of the same run. The folder is in the attribute `out`."""

    def __init__(self, out: Path):
        super().__init__(f"{out} is already done")
        self.out = out

    def __reduce__(self) -> tuple:  # ranks send it to each other, pickled
        return AlreadyDone, (self.out,)


def _check_same(folder: Path, config: Any) -> None:
    """Raises UserError if the folder's run.json is missing or differs from `config`."""
    held = read_json(folder / "run.json") if (folder / "run.json").exists() else None
    if held != config:
        keys = [k for k in {**held, **config} if held.get(k) != config.get(k)] if isinstance(held, dict) else []
        differs = f" (it differs in {', '.join(keys[:3])})" if keys else ""
        raise UserError(f"{folder} already holds another run{differs}; choose another --out or delete it")


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """The settings as they will be read back from JSON."""
    return json.loads(json.dumps(config, default=str))


def _begin(partial: Path, config: dict[str, Any]) -> bool:
    """Make the working folder, or take an existing one of the same run; True if it is new. Raises UserError."""
    try:
        fresh = not partial.exists() or set(os.listdir(partial)) <= {"run.json.tmp"}
        if fresh:
            write_json(partial / "run.json", _plain(config))
        else:
            _check_same(partial, _plain(config))
    except OSError as e:
        raise UserError(f"{partial} cannot be made ({e.strerror}); choose another --out") from e
    return fresh


def _let_go() -> None:
    """Close this process's copies of its parent's locks."""
    for at in _held.values():
        os.close(at)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)  # else loader processes would hold the lock of a parent that was killed


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Lock a folder while the block runs, so that one process at a time works in it.

    The lock ends with its process, however that ends. The same process may take it again. Where the system or the disk
    knows no locks, nothing is locked. Raises UserError if another process still holds the folder after WAIT seconds
    (the children of a killed process live a moment longer), or has just moved it away.
    """
    if fcntl is None:
        yield
        return
    at, until = os.open(folder, os.O_RDONLY), time.monotonic() + WAIT
    place = os.fstat(at).st_dev, os.fstat(at).st_ino
    if place in _held:
        os.close(at)
        yield
        return
    _held[place] = at
    try:
        while True:
            try:
                fcntl.flock(at, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as e:
                if time.monotonic() > until:
                    told = f"{folder} is being written by another process; wait for it, or choose another --out"
                    raise UserError(told) from e
                time.sleep(0.2)
            except OSError:  # a file system without locks
                break
        if not folder.exists() or not os.path.samestat(os.stat(folder), os.fstat(at)):
            raise UserError(f"another process has just ended its work in {folder}; give the command again")
        yield
    finally:
        if _held.pop(place, None) is not None:
            os.close(at)


def _partial(out: Path) -> Path:
    return Path(os.path.abspath(out)).with_name(out.name + ".partial")


def begun(out: Path) -> bool:
    """Whether a killed command has left its working folder beside `out`."""
    return (_partial(out) / "run.json").exists()


@contextmanager
def _by_the_first(folder: Callable[[], AbstractContextManager[Path]]) -> Iterator[Path]:
    """The first rank gets this folder, each other rank a temporary one."""
    with ExitStack() as stack:
        work = ranks.first(lambda: stack.enter_context(folder()))
        yield work if ranks.main() else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ranks.first(stack.close)
        stack.close()


@contextmanager
def scratch(out: Path, config: dict[str, Any]) -> Iterator[Path]:
    """A working folder for a command whose output is files, not a folder: `<out>.partial`, removed on success.

    config: the settings of the run, kept in the folder's run.json. A killed command that is started again with the same
    settings gets its folder back. If the block raises UserError, a folder that this call made is removed. The first
    rank works in the folder; every other rank gets a temporary one. Raises UserError if the folder holds another run,
    cannot be made, or is in use by another process.
    """
    with _by_the_first(lambda: _scratch(out, config)) as work:
        yield work


@contextmanager
def _scratch(out: Path, config: dict[str, Any]) -> Iterator[Path]:
    partial = _partial(out)
    fresh = _begin(partial, config)
    with alone(partial):
        try:
            yield partial
            shutil.rmtree(partial, ignore_errors=True)
        except UserError:
            if fresh:
                shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def output(out: Path, config: dict[str, Any]) -> Iterator[Path]:
    """The working folder of a command, `<out>.partial`, which becomes `out` when the block succeeds.

    config: the settings of the run, kept in the folder's run.json. A killed run that is started again with the same
    settings gets its partial folder back. If the block raises UserError, a partial folder that this call made is
    removed, unless it holds `state/` (the state of a training). Success removes `state/`. The first rank works in the
    folder; every other rank gets a temporary one, and goes on once `out` is in place.

    Raises AlreadyDone if `out` is the finished output of the same run. Raises UserError if either folder holds another
    run, cannot be made, or is in use by another process, and if the disk is full (what was saved stays).
    """
    with _by_the_first(lambda: _output(out, config)) as work:
        yield work


@contextmanager
def _output(out: Path, config: dict[str, Any]) -> Iterator[Path]:
    out, partial = Path(os.path.abspath(out)), _partial(out)
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            _check_same(out, _plain(config))
            shutil.rmtree(out / "state", ignore_errors=True)  # left by a run that was killed just before it removed it
            raise AlreadyDone(out)
    except OSError as e:
        raise UserError(f"{partial} cannot be made ({e.strerror}); choose another --out") from e
    fresh = _begin(partial, config)
    with alone(partial):
        try:
            yield partial
            os.replace(partial, out)
            shutil.rmtree(
                out / "state", ignore_errors=True
            )  # three times the size of the weights, and no longer needed
        except UserError:
            if fresh and not (partial / "state").exists():
                shutil.rmtree(partial, ignore_errors=True)
            raise
        except OSError as e:
            if e.errno != errno.ENOSPC:
                raise
            raise UserError(f"the disk of {partial} is full; make room and run the same command to go on") from e

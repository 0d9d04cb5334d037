"""Files: the only place that loads weights, atomic writes, and the output protocol of every command.

A pickle runs code when it is loaded. Here weights come from safetensors, or through torch's weights-only unpickler,
which builds tensors and plain containers and refuses the rest.
"""

import argparse
import errno
import hashlib
import json
import mmap
import os
import pickletools
import re
import shutil
import struct
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from clipvet import ranks
from clipvet.errors import Unsupported, UserError

try:
    import fcntl
except ImportError:  # of Unix alone
    fcntl = None

WAIT = 10.0  # seconds for another process
_held: dict[tuple[int, int], int] = {}  # folders that this process works in, by device and inode: their locks
PICKLES = (".pt", ".pth", ".bin")
MAX_JSON = 64 * 2**20  # bytes
MOST_ITEMS = 10_000  # of a tuple in a pickle


class _Dropped:
    """What stands for an object beside the weights: it has no code of its own to run."""


def _dict(*_: Any) -> dict[Any, Any]:
    return {}


# PAR's released checkpoints hold their options, those of CoOp's toolbox their schedule and through it their optimiser
DROPPED: list[Any] = [argparse.Namespace, (dict, "builtins.dict"), (_dict, "collections.defaultdict")]
DROPPED += [(_Dropped, f"torch.optim.{name}") for name in (
    "lr_scheduler.CosineAnnealingLR", "lr_scheduler.StepLR", "lr_scheduler.MultiStepLR", "sgd.SGD", "adam.Adam",
    "adamw.AdamW")]  # fmt: skip


class AlreadyDone(Exception):
    """`out` holds the finished output of the very same run."""

    def __init__(self, out: Path):
        super().__init__(f"{out} is already done")
        self.out = out

    def __reduce__(self) -> tuple:  # ranks send it to each other
        return AlreadyDone, (self.out,)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Named tensors, on the CPU, of a .safetensors, .pt, .pth or .bin file; no code in the file ever runs.

    A pickled file may be a state dict or a checkpoint that holds one as "state_dict" (the rest, some known objects
    included, is dropped); the prefix `module.` of a distributed run is stripped. Raises UserError for anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file; give a .safetensors, {', '.join(PICKLES)} file")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty (0 bytes); copy or download it again")
    suffix = re.sub(r"\.pth\.tar(-\d+)?$", ".pth", path.name.lower())  # as Dassl, CoOp's toolbox, names them
    suffix = Path(suffix).suffix
    if suffix == ".safetensors":
        try:
            state: Any = safetensors.torch.load_file(path)
        except safetensors.SafetensorError as e:
            raise UserError(f"{path} is damaged or no safetensors file ({line(e)}); copy or download it again") from e
    elif suffix in PICKLES:
        state = _unpickle(path)
    else:
        raise UserError(f"{path} has an unknown suffix; weights are .safetensors, {', '.join(PICKLES)} files")
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path} holds no state dict (names and tensors); save model.state_dict() as safetensors")
    for name, v in state.items():
        if v.is_quantized:
            raise Unsupported(f"{path} holds quantised numbers ({str(name)[:80]}); give the float weights")
        if v.layout != torch.strided or v.device.type != "cpu":
            raise UserError(f"{path} holds {str(name)[:80]} as no plain tensor; save model.state_dict() as safetensors")
        if v.numel() * v.element_size() > v.untyped_storage().nbytes():  # a few bytes that pretend to be many
            raise UserError(f"{path} holds {str(name)[:80]} in fewer bytes than its shape has; save it contiguous")
    stored = {v.untyped_storage().data_ptr(): v.untyped_storage().nbytes() for v in state.values()}
    if sum(v.nbytes for v in state.values()) > 2 * sum(stored.values()):  # a tied weight has two names
        raise UserError(f"{path} holds the same numbers under many names; save each as a tensor of its own")
    cut = len("module.") if all(str(k).startswith("module.") for k in state) else 0
    return {str(k)[cut:]: v.detach() for k, v in state.items()}


def _check_archive(path: Path) -> None:
    """UserError for a zip that holds more than its size, or that torch might read otherwise than it is read here."""
    size = path.stat().st_size
    with path.open("rb") as f:
        if f.read(2) != b"PK":
            return
        f.seek(-min(size, 98), os.SEEK_END)
        end = f.read().rjust(98, b"\0")  # 56 bytes of zip64's record, 20 that say where it is, 22 of the usual record
    try:
        with zipfile.ZipFile(path) as z:
            held, starts = z.infolist(), z.start_dir
    except Exception as e:  # a hostile or damaged file can raise anything
        raise UserError(f"{path} is damaged or no archive of torch's ({line(e)}); copy or download it again") from e
    if any(i.compress_type != zipfile.ZIP_STORED for i in held):  # torch never packs; a bomb does
        raise UserError(f"{path} is a compressed archive, which torch does not write; save it with torch.save")
    (told,) = struct.unpack("<I", end[92:96])
    if end[56:60] == b"PK\6\7":
        (told,) = struct.unpack("<Q", end[48:56]) if struct.unpack("<Q", end[64:72])[0] == size - 98 else (-1,)
    if end[76:80] != b"PK\5\6" or told != starts or sum(i.file_size for i in held) > size:
        raise UserError(f"{path} is an archive with parts that overlap or hide; save it with torch.save")


def _check_pickles(path: Path) -> None:
    """UserError for what torch's unpickler builds though some bytes of it take all memory or time: byte arrays of any
    size, and tuples of tuples, each named often, which as a dictionary's key are hashed one by one."""
    with path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as held:
        if held.find(b"\nbytearray\n") >= 0:
            raise UserError(f"{path} holds byte arrays beside weights; save model.state_dict() as safetensors")
    with path.open("rb") as f:
        try:
            if f.read(2) == b"PK":
                with zipfile.ZipFile(path) as z:
                    for i in z.infolist():
                        if i.filename.endswith(".pkl"):
                            _check_tuples(z.open(i))
            else:
                f.seek(0)
                for _ in range(5):  # so many pickles stand before the numbers in torch's old layout
                    _check_tuples(f)
        except OverflowError as e:
            raise UserError(f"{path} holds {e}; save model.state_dict() as safetensors") from e
        except (ValueError, IndexError, RuntimeError, zipfile.BadZipFile, zlib.error, OSError):
            return  # damaged: told when it is loaded, which breaks off there too


def _check_tuples(f: Any) -> None:
    """OverflowError for a pickle with a tuple of more than MOST_ITEMS, those of tuples within counted each time.

    Nothing is built: only how large the tuples on the stack are is followed.
    """
    stack: list[int | None] = []  # None: a mark
    memo: dict[Any, int] = {}
    for op, arg, _ in pickletools.genops(f):
        if op.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo.get(arg, 0))
        elif op.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if op.name == "MEMOIZE" else arg] = stack[-1] or 0
        elif op.name == "MARK":
            stack.append(None)
        elif op.name == "DUP":
            stack.append(stack[-1])
        else:
            taken, before = [], [x.name for x in op.stack_before]
            if "mark" in before:
                while (item := stack.pop()) is not None:
                    taken.append(item)
                before = before[: before.index("mark")]
            taken += [stack.pop() or 0 for _ in before]
            size = 1 + sum(taken) if "TUPLE" in op.name else 0
            if size > MOST_ITEMS:
                raise OverflowError(f"tuples that unfold to more than {MOST_ITEMS:,} items")
            stack += [size] * len(op.stack_after)


def _unpickle(path: Path) -> Any:
    _check_archive(path)
    _check_pickles(path)
    try:
        with torch.serialization.safe_globals(DROPPED):
            return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 the one load
    except Exception as e:  # a hostile or damaged file can raise anything
        told = str(e)
        culprit = re.search(r"GLOBAL ([\w.]+)", told)
        if culprit:
            why = f"is not plain weights (it wants {culprit[1]} to be called or built)"
        elif "TorchScript" in told:
            why = "is a TorchScript archive, which can carry code"
        else:
            why = f"is damaged or no weights file ({type(e).__name__}: {line(e)})"
        raise UserError(f"{path} {why}; convert its state dict to safetensors in a place you trust") from e


def line(e: BaseException) -> str:
    """The first line of what an exception says."""
    return next((part.strip()[:160] for part in str(e).splitlines() if part.strip()), type(e).__name__)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved over it once it is whole and on the disk; removed on any error."""
    tmp = path.with_name(path.name + ".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield tmp
        with tmp.open("rb+") as f:
            os.fsync(f.fileno())
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


def save_weights(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file, or a torch one (.pt); who reads `path` sees the old file or the whole new one.

    Raises OSError.
    """
    packed, seen = {}, set()
    for name, tensor in tensors.items():
        t = tensor.detach().cpu().contiguous()
        where = t.untyped_storage().data_ptr()
        packed[name] = t.clone() if where in seen else t  # safetensors refuses tied weights
        seen.add(where)
    with replacing(Path(path)) as tmp:
        try:
            torch.save(packed, tmp) if path.suffix == ".pt" else safetensors.torch.save_file(packed, tmp)
        except safetensors.SafetensorError as e:
            found = re.search(r"os error (\d+)", str(e))
            raise OSError(int(found[1]) if found else errno.EIO, str(e), str(path)) from e
        tmp.chmod(0o644)  # safetensors writes 0600


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with Path(path).open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_json(path: Path, obj: Any) -> None:
    """Atomic. What JSON has no word for (a Path) is written as its string."""
    with replacing(Path(path)) as tmp:
        tmp.write_text(json.dumps(obj, indent=2, default=str) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Raises UserError when the file is missing, no plain file, larger than MAX_JSON or no JSON."""
    path = Path(path)
    if path.exists() and not path.is_file():  # a pipe would never end
        raise UserError(f"{path} is no plain file; give a JSON file")
    try:
        if path.stat().st_size > MAX_JSON:
            raise UserError(f"{path} is larger than {MAX_JSON // 2**20} MiB; give a smaller JSON file")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e.strerror}); check the path") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path} is not JSON ({line(e)}); mend or delete it") from e


def _check_same(folder: Path, config: Any) -> None:
    held = read_json(folder / "run.json") if (folder / "run.json").exists() else None
    if held != config:
        keys = [k for k in {**held, **config} if held.get(k) != config.get(k)] if isinstance(held, dict) else []
        differs = f" (it differs in {', '.join(keys[:3])})" if keys else ""
        raise UserError(f"{folder} already holds another run{differs}; choose another --out or delete it")


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """As it will be read back from JSON."""
    return json.loads(json.dumps(config, default=str))


def _begin(partial: Path, config: dict[str, Any]) -> bool:
    """Whether the working folder is new. UserError where it holds another run, or cannot be made."""
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
    for at in _held.values():
        os.close(at)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)  # loader processes outlive a killed parent by seconds


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Of several processes one at a time works in this folder; the lock goes with its process, however that ends.

    Within a process it may be taken again. Raises UserError where another one still holds it after WAIT seconds (a
    killed one's children live a moment longer).
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
    """Of several ranks the first has this folder; each of the others one that is thrown away."""
    with ExitStack() as stack:
        work = ranks.first(lambda: stack.enter_context(folder()))
        yield work if ranks.main() else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ranks.first(stack.close)
        stack.close()


@contextmanager
def scratch(out: Path, config: dict[str, Any]) -> Iterator[Path]:
    """The working folder of a command that writes files beside `out`, `<out>.partial`; gone when the block ends well.

    A killed command that is started again with the same `config` gets it back. A UserError from the block removes it
    if this call made it. Raises UserError where it holds another run, and where it cannot be made. Of several ranks the
    first works there; each of the others gets a folder that is thrown away.
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
    """The working folder of a command, `<out>.partial`; it becomes `out` when the block ends well.

    `config` goes into its run.json and says which run this is: a killed run that is started again gets its partial
    folder back, and a finished one raises AlreadyDone. Raises UserError when either folder holds another run, when it
    cannot be written, and when the disk is full (what was saved is kept). A UserError from the block removes a partial
    folder that this call made, unless it holds `state/`; success removes `state/`. Of several ranks the first works
    there; each of the others gets a folder that is thrown away, and goes on when `out` stands.
    """
    with _by_the_first(lambda: _output(out, config)) as work:
        yield work


@contextmanager
def _output(out: Path, config: dict[str, Any]) -> Iterator[Path]:
    out, partial = Path(os.path.abspath(out)), _partial(out)
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            _check_same(out, _plain(config))
            shutil.rmtree(out / "state", ignore_errors=True)  # of a run that was killed before its last line
            raise AlreadyDone(out)
    except OSError as e:
        raise UserError(f"{partial} cannot be made ({e.strerror}); choose another --out") from e
    fresh = _begin(partial, config)
    with alone(partial):
        try:
            yield partial
            os.replace(partial, out)
            shutil.rmtree(out / "state", ignore_errors=True)  # three times the weights, of no more use
        except UserError:
            if fresh and not (partial / "state").exists():
                shutil.rmtree(partial, ignore_errors=True)
            raise
        except OSError as e:
            if e.errno != errno.ENOSPC:
                raise
            raise UserError(f"the disk of {partial} is full; make room and run the same command to go on") from e

"""Weights of models, read from files that nobody vouches for, and written.

A pickle can run code while it is loaded. So weights come from safetensors, or through torch's weights-only unpickler,
which builds tensors and plain containers and refuses everything else. This is the only file that calls torch.load.
"""

import argparse
import errno
import mmap
import os
import pickletools
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from clipvet.errors import Unsupported, UserError
from clipvet.io.files import line, replacing

PICKLES = (".pt", ".pth", ".bin", ".ckpt")  # suffixes of pickled weights
MOST_ITEMS = 10_000  # in one tuple of a pickle


class _Dropped:
    """Stands in for an object that a checkpoint holds beside its weights. It has no code of its own to run."""


def _dict(*_: Any) -> dict[Any, Any]:
    return {}


# Built when a checkpoint is read, and dropped: PAR's released checkpoints hold their options, those of CoOp's toolbox
# (Dassl) their learning rate schedule, which refers to the optimiser.
DROPPED: list[Any] = [argparse.Namespace, (dict, "builtins.dict"), (_dict, "collections.defaultdict")]
DROPPED += [(_Dropped, f"torch.optim.{name}") for name in (
    "lr_scheduler.CosineAnnealingLR", "lr_scheduler.StepLR", "lr_scheduler.MultiStepLR", "sgd.SGD", "adam.Adam",
    "adamw.AdamW")]  # fmt: skip


def load_weights(path: Path, unwrap: Callable[[Any], Any] | None = None) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors, .pt, .pth or .bin file, without running any code that lies in it.

    A pickled file holds either a state dict or a checkpoint with one under "state_dict"; the rest of a checkpoint is
    dropped. The prefix `module.` that distributed training puts before all names is taken off. unwrap: finds the state
    dict in what the file holds, in place of these two rules.

    Returns {name: tensor}: the tensors are on the CPU, without gradient, in the shapes and number types of the file.
    Raises UserError for a file that is missing, damaged, of another kind or that wants code to run, and Unsupported for
    quantised weights.
    """
    path = Path(path)
    state = _read(path)
    if unwrap:
        state = unwrap(state)
    elif isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path} holds no state dict (names and tensors); save model.state_dict() as safetensors")
    _check_tensors(path, state)
    cut = len("module.") if not unwrap and all(str(k).startswith("module.") for k in state) else 0
    return {str(k)[cut:]: v.detach() for k, v in state.items()}


def _read(path: Path) -> Any:
    """Whatever the file holds, read by its suffix."""
    if not path.is_file():
        raise UserError(f"{path} is not a file; give a .safetensors, {', '.join(PICKLES)} file")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty (0 bytes); copy or download it again")
    suffix = re.sub(r"\.pth\.tar(-\d+)?$", ".pth", path.name.lower())  # as Dassl, CoOp's toolbox, names them
    suffix = Path(suffix).suffix
    if what := _no_weights(path, suffix):
        raise UserError(f"{path} {what}")
    if suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as e:
            raise UserError(f"{path} is damaged or no safetensors file ({line(e)}); copy or download it again") from e
    if suffix in PICKLES:
        return _unpickle(path)
    raise UserError(f"{path} has an unknown suffix; weights are .safetensors, {', '.join(PICKLES)} files")


def _no_weights(path: Path, suffix: str) -> str:
    """What else the file is, and the way out, if its first bytes say so; else empty."""
    with path.open("rb") as f:
        begin = f.read(256)
    if begin.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the weights themselves; fetch them with `git lfs pull`"
    if begin.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "is a web page (HTML), so its download failed; download the weights again"
    if (
        suffix == ".safetensors"
        and begin[8:9] != b"{"
        and begin[:2] in (b"PK", *(bytes((128, k)) for k in range(2, 6)))
    ):
        return "is a pickle under the suffix of safetensors; rename it to .pt"
    if suffix in PICKLES and begin[8:10] == b'{"' and int.from_bytes(begin[:8], "little") < path.stat().st_size:
        return "is a safetensors file under another suffix; rename it to .safetensors"
    return ""


def _check_tensors(path: Path, state: Mapping[Any, Tensor]) -> None:
    """Raises UserError for tensors that are not plain numbers, or that claim far more memory than the file has."""
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


def _check_archive(path: Path) -> None:
    """Raises UserError for a zip that unfolds to more than its size, or that torch might read differently from us."""
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
    if any(i.filename.endswith("constants.pkl") or "/code/" in i.filename for i in held):
        raise UserError(
            f"{path} is a TorchScript archive, which can carry code; in a place you trust, open it with torch.jit.load "
            "and save its state_dict() as safetensors"
        )
    if any(i.compress_type != zipfile.ZIP_STORED for i in held):  # torch never packs; a bomb does
        raise UserError(f"{path} is a compressed archive, which torch does not write; save it with torch.save")
    (told,) = struct.unpack("<I", end[92:96])
    if end[56:60] == b"PK\6\7":
        (told,) = struct.unpack("<Q", end[48:56]) if struct.unpack("<Q", end[64:72])[0] == size - 98 else (-1,)
    if end[76:80] != b"PK\5\6" or told != starts or sum(i.file_size for i in held) > size:
        raise UserError(f"{path} is an archive with parts that overlap or hide; save it with torch.save")


def _check_pickles(path: Path) -> None:
    """Raises UserError for objects that torch's unpickler accepts although a few bytes of them take all memory or time.

    These are byte arrays, which can claim any size, and tuples of tuples that refer to each other many times: as keys
    of a dictionary they are hashed item by item.
    """
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
                for _ in range(5):  # torch's old layout has this many pickles before the numbers
                    _check_tuples(f)
        except OverflowError as e:
            raise UserError(f"{path} holds {e}; save model.state_dict() as safetensors") from e
        except (ValueError, IndexError, RuntimeError, zipfile.BadZipFile, zlib.error, OSError):
            return  # damaged: loading stops at the same place, and says so


def _check_tuples(f: Any) -> None:
    """Raises OverflowError for a pickle with a tuple of more than MOST_ITEMS items, nested tuples counted each time.

    Nothing is built. The pickle's operations are followed with the sizes of the tuples on its stack alone.
    """
    stack: list[int | None] = []  # sizes; None is a mark
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
    """What a pickled file holds, built without running its code. Raises UserError."""
    _check_archive(path)
    _check_pickles(path)
    try:
        with torch.serialization.safe_globals(DROPPED), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # refused or read, it is said in our words
            return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 the one place that loads
    except Exception as e:  # a hostile or damaged file can raise anything
        told = str(e)
        culprit = re.search(r"GLOBAL ([\w.]+)", told)
        if culprit:
            why = f"is not plain weights (it wants {culprit[1]} to be called or built)"
        else:
            why = f"is damaged or no weights file ({type(e).__name__}: {line(e)})"
        raise UserError(f"{path} {why}; convert its state dict to safetensors in a place you trust") from e


def save_weights(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write {name: tensor} as safetensors, or by torch.save where `path` ends in .pt.

    Tensors may lie on any device and share memory; each is stored whole, in its own shape and number type. The file is
    replaced in one step, so a reader sees the old one or the whole new one. Raises OSError, also for a full disk.
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

"""The gate: would a checkpoint's files run code if they were loaded the ordinary way? Nothing is loaded to find out.

A scanner misses what it does not know. "Nothing found" is evidence, not proof, and says nothing about the weights.

    python -m clipvet.gate PATH ...

prints one JSON object. Exit code 0: nothing found; 1: findings; 2: a path cannot be scanned. See docs/gate.md.
"""

import json
import logging
import os
import pickletools
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import safetensors

from clipvet import io
from clipvet.errors import UserError

PICKLED = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".dat", ".data", ".zip", ".7z"}
NESTED = {
    ".pt",
    ".pth",
    ".bin",
    ".ckpt",
    ".npz",
    ".zip",
    ".7z",
    ".tar",
    ".gz",
}  # picklescan does not open these inside a zip
HARMLESS = {
    ".json",
    ".jsonl",
    ".txt",
    ".md",
    ".html",
    ".csv",
    ".tsv",
    ".parquet",
    ".png",
    ".jpg",
    ".jpeg",
    ".model",
    "",
}
MOST_STEPS = 2_000_000  # of a pickle; the scanner keeps them all in memory, a hundred bytes each
MOST_UNPACKED = 2**26  # bytes that a compressed member may unpack to
HARMLESS_GLOBALS = {"argparse Namespace"}  # plain options, which torch's weights-only reader builds too


class Threat(NamedTuple):
    """One finding about one file."""

    file: str
    severity: (
        str  # dangerous: runs code, or may; suspicious: more than weights need; unscanned: an unknown kind of file
    )
    what: str


def scan(path: Path) -> list[Threat]:
    """The findings in a file, or in all files of a folder, sorted by file.

    Raises UserError if there is no such file, or if picklescan is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; give a checkpoint's file or folder")
    try:
        import picklescan.scanner  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise UserError("scanning checkpoints needs picklescan; pip install picklescan") from e
    if not path.is_dir():
        return sorted({*_file(path, path.name)})
    return sorted({t for file in _walk(path) for t in _file(file, str(file.relative_to(path)), path)})


def _walk(folder: Path) -> Iterator[Path]:
    """All files below the folder, and links to folders, which are not followed."""
    for at, folders, names in os.walk(folder):
        yield from (Path(at) / name for name in names)
        yield from (Path(at) / name for name in folders if (Path(at) / name).is_symlink())


def _guarded(look: Callable[..., Iterator[Threat]]) -> Callable[..., Iterator[Threat]]:
    """Turns any error inside a check into a finding: a file that cannot be read is suspicious."""

    @wraps(look)
    def looked(path: Path, name: str, *more: Any) -> Iterator[Threat]:
        try:
            yield from look(path, name, *more)
        except Exception as e:  # hostile names and bytes can raise anything
            yield Threat(name, "suspicious", f"cannot be parsed: {type(e).__name__}: {io.line(e)}")

    return looked


@_guarded
def _file(path: Path, name: str, folder: Path | None = None) -> Iterator[Threat]:
    """name: of the file, in findings. folder: that links must not lead out of."""
    if folder and not path.resolve().is_relative_to(folder.resolve()):
        yield Threat(name, "suspicious", "a link that leads out of the folder")
    if path.is_dir():
        return
    if not path.is_file():
        yield Threat(name, "suspicious", "not a plain file")
        return
    suffix = path.suffix.lower()
    with path.open("rb") as f:
        begin = f.read(8)
    if suffix == ".py":
        yield Threat(name, "suspicious", "Python code beside the weights")
    elif name.endswith("config.json"):
        yield from _config(path, name)
    elif suffix == ".safetensors" and begin[:1] != b"\x80" and begin[:2] != b"PK":
        yield from _safetensors(path, name)
    elif begin[:2] == b"7z":
        yield Threat(name, "suspicious", "a 7z archive, not scanned")
    elif too_much := _too_much(path):
        yield Threat(name, "suspicious", f"{too_much}, not scanned")
    elif suffix in PICKLED or begin[:1] == b"\x80" or begin[:2] == b"PK":
        yield from _pickled(path, name, zipped=begin[:2] == b"PK")
    else:
        if suffix not in HARMLESS:
            yield Threat(name, "unscanned", f"nothing is known about {suffix} files")
        if begin:
            yield from _first(path, name)


def _safetensors(path: Path, name: str) -> Iterator[Threat]:
    try:
        with safetensors.safe_open(path, "pt") as held:
            held.keys()
    except Exception as e:  # whatever a damaged header can raise
        yield Threat(name, "suspicious", f"not a whole safetensors file: {io.line(e)}")


def _pickled(path: Path, name: str, zipped: bool) -> Iterator[Threat]:
    """A pickle, or an archive of some. zipped: whether the file starts as a zip archive."""
    yield from _calls(path, name)
    if zipped or zipfile.is_zipfile(path):
        yield from _archive(path, name)
    if not zipped and zipfile.is_zipfile(path):
        yield Threat(name, "suspicious", "an archive behind other bytes")
        yield from _first(path, name)  # picklescan has read the archive only


def _too_much(path: Path) -> str:
    """Why scanning this file would take too much memory or time; empty if it would not."""
    from picklescan.relaxed_zipfile import RelaxedZipFile  # pyright: ignore[reportMissingImports]

    with path.open("rb") as f:
        packed = f.read(2) == b"PK" or zipfile.is_zipfile(path)
        f.seek(0)
        if _long(f):
            return f"a pickle of more than {MOST_STEPS:,} steps"
    if not packed:
        return ""
    with suppress(Exception), RelaxedZipFile(path) as z:  # `_archive` reports broken archives
        if sum(m.file_size for m in z.infolist() if m.compress_type == zipfile.ZIP_STORED) > path.stat().st_size:
            return "an archive whose parts overlap"
        for m in z.infolist():
            if m.compress_type != zipfile.ZIP_STORED and m.file_size > MOST_UNPACKED:
                return f"an archive that packs {m.file_size:,} bytes into {m.filename[:120]!r}"
            with suppress(Exception), z.open(m) as f:
                if _long(f):
                    return f"a pickle of more than {MOST_STEPS:,} steps in {m.filename[:120]!r}"
    return ""


def _long(f: Any) -> bool:
    """Whether the pickles in this open file, one after the other, have more than MOST_STEPS steps."""
    steps = 0
    with suppress(Exception):  # at the end, or at once if this is no pickle
        while True:
            for _ in pickletools.genops(f):
                steps += 1
                if steps > MOST_STEPS:
                    return True
    return False


def _config(path: Path, name: str) -> Iterator[Threat]:
    try:
        told = io.read_json(path)
    except UserError as e:
        yield Threat(name, "suspicious", f"its configuration cannot be read: {e}")
        return
    for key in sorted(asks_for_code(told)):
        yield Threat(name, "dangerous", f"asks to run code from the checkpoint ({key})")


def asks_for_code(told: Any) -> set[str]:
    """The keys of a parsed configuration, at any depth, that would let transformers run Python from the checkpoint."""
    found, left = set(), [told]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            found |= {key for key in ("auto_map", "trust_remote_code") if part.get(key)}
        left += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return found


@_guarded
def _archive(path: Path, name: str) -> Iterator[Threat]:
    with zipfile.ZipFile(path) as z:
        inside = z.namelist()
        if any(n.endswith("constants.pkl") or "/code/" in n for n in inside):
            yield Threat(name, "dangerous", "a TorchScript archive, which carries code")
        for member in z.infolist():
            with z.open(member) as f:
                if Path(member.filename).suffix.lower() in NESTED or f.read(4) in (b"PK\x03\x04", b"7z\xbc\xaf"):
                    yield Threat(
                        name, "suspicious", f"an archive or checkpoint within, not scanned: {member.filename[:120]!r}"
                    )


@_guarded
def _calls(path: Path, name: str) -> Iterator[Threat]:
    from picklescan.scanner import scan_file_path  # pyright: ignore[reportMissingImports]

    with _silent():
        found = scan_file_path(str(path))
    if found.scan_err:
        yield Threat(name, "suspicious", "cannot be parsed to the end")
    yield from _calls_in(found, name)


@_guarded
def _first(path: Path, name: str) -> Iterator[Threat]:
    """Scans the file as a pickle, whatever its name. Text may look like one at first; then only dangers count."""
    from picklescan.scanner import scan_pickle_bytes  # pyright: ignore[reportMissingImports]

    with _silent(), path.open("rb") as f:
        found = scan_pickle_bytes(f, name)
    yield from (t for t in _calls_in(found, name) if t.severity == "dangerous" or not found.scan_err)


def _calls_in(found: Any, name: str) -> Iterator[Threat]:
    """The calls in a result of picklescan's that are not known to be harmless."""
    from picklescan.scanner import SafetyLevel  # pyright: ignore[reportMissingImports]

    for g in sorted(found.globals, key=lambda g: (g.module, g.name)):
        called = f"{g.module} {g.name}"
        if g.safety == SafetyLevel.Innocuous or called in HARMLESS_GLOBALS:
            continue
        severity = "dangerous" if g.safety == SafetyLevel.Dangerous else "suspicious"
        yield Threat(name, severity, f"its pickle calls {called[:120].replace(' ', '.', 1)}")


@contextmanager
def _silent() -> Iterator[None]:
    log = logging.getLogger("picklescan")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def main(paths: list[str]) -> int:
    """Scans these paths, as `python -m clipvet.gate` does. Returns the exit code."""
    try:
        if not paths:
            raise UserError("nothing to scan; give files or folders")
        threats = [{"path": p, **t._asdict()} for p in paths for t in scan(Path(p))]
    except UserError as e:
        print(f"clipvet: {e}", file=sys.stderr)
        return 2
    print(json.dumps({"scanned": paths, "findings": threats}, indent=2))
    return 1 if threats else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

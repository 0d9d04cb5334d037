"""The gate: what a foreign checkpoint's files would do if they were loaded the ordinary way. Nothing is loaded here.

A scanner knows what it knows: an empty answer is evidence, not a verdict, and says nothing about the weights.

python -m clipvet.gate PATH ...     one JSON object; exit code 0: nothing found, 1: findings, 2: it cannot be scanned
"""

import json
import logging
import os
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import safetensors

from clipvet import io
from clipvet.errors import UserError

PICKLED = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".dat", ".data", ".zip", ".7z"}
HARMLESS = {
    ".json",
    ".txt",
    ".md",
    ".png",
    ".jpg",
    ".jpeg",
    ".html",
    ".jsonl",
    ".parquet",
    ".csv",
    ".tsv",
    ".model",
    "",
}
HARMLESS_GLOBALS = {"argparse Namespace"}  # plain options; torch's weights-only reader builds them too


class Threat(NamedTuple):
    """dangerous: would run code, or could; suspicious: asks for more than weights need; unscanned: not looked into."""

    file: str
    severity: str
    what: str


def scan(path: Path) -> list[Threat]:
    """Findings in a file, or in every file of a folder, sorted by file. Needs picklescan (clipvet[gate]).

    Raises UserError where there is no such file or no scanner.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; give a checkpoint's file or folder")
    try:
        import picklescan.scanner  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise UserError("scanning checkpoints needs picklescan; pip install 'clipvet[gate]'") from e
    if not path.is_dir():
        return sorted(_file(path, path.name))
    return sorted(t for file in _walk(path) for t in _file(file, str(file.relative_to(path)), path))


def _walk(folder: Path) -> Iterator[Path]:
    for at, _, names in os.walk(folder):  # follows no links
        yield from (Path(at) / name for name in names)


def _file(path: Path, name: str, folder: Path | None = None) -> Iterator[Threat]:
    if folder and not path.resolve().is_relative_to(folder.resolve()):
        yield Threat(name, "suspicious", "a link that leads out of the folder")
    if not path.is_file():
        yield Threat(name, "suspicious", "no plain file")
        return
    suffix = path.suffix.lower()
    with path.open("rb") as f:
        begin = f.read(8)
    if suffix == ".py":
        yield Threat(name, "suspicious", "Python code beside the weights")
    elif name.endswith("config.json"):
        yield from _config(path, name)
    elif suffix == ".safetensors" and begin[:1] != b"\x80" and begin[:2] != b"PK":
        try:
            with safetensors.safe_open(path, "pt") as held:
                held.keys()
        except Exception as e:  # whatever a damaged header can raise
            yield Threat(name, "suspicious", f"no whole safetensors file: {io.line(e)}")
    elif suffix in PICKLED or begin[:1] == b"\x80" or begin[:2] == b"PK" or begin[:2] == b"7z":
        yield from _pickle(path, name)
    elif suffix not in HARMLESS:
        yield Threat(name, "unscanned", f"nothing is known of {suffix} files")


def _config(path: Path, name: str) -> Iterator[Threat]:
    try:
        told = io.read_json(path)
    except UserError as e:
        yield Threat(name, "suspicious", f"no readable configuration: {e}")
        return
    for key in sorted(asks_for_code(told)):
        yield Threat(name, "dangerous", f"asks for code of the checkpoint's own ({key})")


def asks_for_code(told: Any) -> set[str]:
    """Which of a configuration's keys, at any depth, would let transformers run Python of the checkpoint's own."""
    found, left = set(), [told]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            found |= {key for key in ("auto_map", "trust_remote_code") if part.get(key)}
        left += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return found


def _pickle(path: Path, name: str) -> Iterator[Threat]:
    from picklescan.scanner import SafetyLevel, scan_file_path  # pyright: ignore[reportMissingImports]

    with suppress(zipfile.BadZipFile, OSError, ValueError), zipfile.ZipFile(path) as z:
        inside = z.namelist()
        if any(n.endswith("constants.pkl") or "/code/" in n for n in inside):
            yield Threat(name, "dangerous", "a TorchScript archive, which carries code")
    try:
        with _silent():
            found = scan_file_path(str(path))
    except Exception as e:  # hostile bytes can raise anything in a parser
        yield Threat(name, "suspicious", f"cannot be parsed: {type(e).__name__}: {io.line(e)}")
        return
    if found.scan_err:
        yield Threat(name, "suspicious", "cannot be parsed to its end")
    for g in sorted(found.globals, key=lambda g: (g.module, g.name)):
        called = f"{g.module} {g.name}"
        if g.safety == SafetyLevel.Innocuous or called in HARMLESS_GLOBALS:
            continue
        severity = "dangerous" if g.safety == SafetyLevel.Dangerous else "suspicious"
        yield Threat(name, severity, f"its pickle calls {called[:120]}")


@contextmanager
def _silent() -> Iterator[None]:
    log = logging.getLogger("picklescan")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def main(paths: list[str]) -> int:
    """What `python -m clipvet.gate` does; returns its exit code."""
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

"""Small readers and writers: JSON, checksums, and files that are replaced in one step.

A reader of a file sees the old content or the whole new content, never a half-written file.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clipvet.errors import UserError

MAX_JSON = 64 * 2**20  # bytes


def line(e: BaseException) -> str:
    """The first line of an exception's message, at most 160 characters; the name of its type if it has no message."""
    return next((part.strip()[:160] for part in str(e).splitlines() if part.strip()), type(e).__name__)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file in one step: `with replacing(path) as tmp: tmp.write_text(...)`.

    Yields a temporary path in the same folder (which is made if it is missing). When the block ends, the temporary file
    is flushed to the disk and moved over `path`. If the block raises, `path` stays as it was and the temporary file is
    removed. Raises OSError where the disk refuses.
    """
    tmp = path.with_name(path.name + ".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield tmp
        with tmp.open("rb+") as f:
            os.fsync(f.fileno())
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes: 64 hexadecimal digits. Raises OSError."""
    with Path(path).open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_json(path: Path, obj: Any) -> None:
    """Write `obj` as indented UTF-8 JSON, in one step. Objects that JSON does not know, such as a Path, become strings.

    Raises OSError.
    """
    with replacing(Path(path)) as tmp:
        tmp.write_text(json.dumps(obj, indent=2, default=str) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises UserError if it is missing, not a plain file, larger than MAX_JSON bytes or not JSON."""
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

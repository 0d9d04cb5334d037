"""The headers of an untrusted tar archive, one at a time and under limits. No member is unpacked."""

from collections.abc import Iterator
from io import BufferedIOBase
from typing import NamedTuple

MAX_HEADER = 2**20  # bytes of a long name or of pax records
RECORDS = 1000  # of one pax header; real ones hold a few


class Damaged(Exception):
    """From here on, the archive makes no sense. The message says why."""


class NoTar(Exception):
    """The file does not begin with a tar header."""


class Member(NamedTuple):
    """One member of an archive, as its header describes it."""

    name: bytes  # its path
    kind: bytes  # tar's type flag: b"0" a plain file, b"5" a folder, b"S" a sparse file of any format
    at: int  # offset of its data in the archive, bytes
    size: int  # of its data, bytes


def members(f: BufferedIOBase, length: int) -> Iterator[Member]:
    """Yields the members of an open tar archive (ustar, GNU, pax) in order, reading nothing but headers.

    length: of the file, in bytes. Raises NoTar if it is no tar archive, and Damaged where its headers are wrong, too
    large, or cut short. The standard library's reader takes three times as long, and reads headers of any size into
    memory.
    """
    at, pax = 0, {}
    while at + 512 <= length:
        f.seek(at)
        h = f.read(512)
        if h[:2] == b"\0\0" and not h.strip(b"\0"):
            return
        told = _number(h[148:156]) if len(h) == 512 else -1
        if told != 256 + sum(h) - sum(h[148:156]):
            raise Damaged("a header is damaged") if at else NoTar
        kind, size, at = h[156:157], _number(h[124:136]), at + 512
        if size < 0:
            raise Damaged("a header is damaged")
        if kind in b"xgLK":
            if size > MAX_HEADER:
                raise Damaged("a header is too large")
            held = f.read(size)
            if kind == b"L":
                pax[b"path"] = held.rstrip(b"\0")
            elif kind == b"x":
                pax |= _records(held)
        else:
            if kind == b"S":  # GNU's sparse map may go on in further blocks
                more = h[482]
                while more and at + 512 <= length:
                    more, at = f.read(512)[504:505] > b"\0", at + 512
            if (said := pax.get(b"size", b"")).isdigit():
                if len(said) > 19:
                    raise Damaged("a header is damaged")
                size = int(said)
            if any(k.startswith(b"GNU.sparse") for k in pax):
                kind = b"S"
            name = pax.get(b"path", b"").split(b"\0", 1)[0] or _name(h)  # other readers cut the name at a zero byte
            pax = {}
            if kind in b"123456":  # links, devices, folders and pipes have no data, whatever their size says
                size = 0
            if at + size > length:
                raise Damaged("it is cut short")
            yield Member(name, b"0" if kind in b"\x007" else kind, at, size)
        at += -(-size // 512) * 512
    if not at:
        raise NoTar
    if at != length:
        raise Damaged("it is cut short")


def _number(field: bytes) -> int:
    """A number in octal digits or in GNU's binary form; -1 for anything else."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return max(-1, int(field.split(b"\0", 1)[0].strip() or b"0", 8))
    except ValueError:
        return -1


def _name(h: bytes) -> bytes:
    """The name in a plain header, with ustar's prefix."""
    name = h[:100].split(b"\0", 1)[0]
    prefix = h[345:500].split(b"\0", 1)[0] if h[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _records(held: bytes) -> dict[bytes, bytes]:
    """The records of a pax header, `length key=value\\n` each. Raises Damaged for more than RECORDS."""
    out, at, seen = {}, 0, 0
    while at < len(held):
        space = held.find(b" ", at, at + 8)
        digits = held[at:space] if space > at else b""
        n = int(digits) if digits.isdigit() else 0
        key, equals, value = held[space + 1 : at + n - 1].partition(b"=")
        if not equals or n <= len(digits):
            break  # zeros, or nonsense: the plain header's own fields hold
        out[key], at, seen = value, at + n, seen + 1
        if seen > RECORDS:
            raise Damaged("a header has too many records")
    return out

"""Files that want to hurt: malformed pictures, tables, cards and checkpoints. None is ever run."""

import io
import json
import os
import pickle  # noqa: TID251  to write bombs, never to read
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from clipvet.rng import Rng

KINDS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")


def picture(kind: str, n: int = 40, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (n, n, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(held := io.BytesIO(), kind)
    return held.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(w: int, h: int, data: bytes = b"", depth: int = 8, colour: int = 2) -> bytes:
    head = struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def pictures(folder: Path, n: int = 300) -> list[str]:
    """n malformed pictures; names by their suffix. Some special files among them."""
    folder.mkdir(parents=True, exist_ok=True)
    g, names = Rng(5).numpy(), []

    def put(name: str, held: bytes) -> None:
        (folder / name).write_bytes(held)
        names.append(name)

    for kind in KINDS:
        whole, suffix = picture(kind), kind.lower()
        for k in range(12):
            put(f"cut{k}.{suffix}", whole[: int(g.integers(0, len(whole) - 1))])
        for k in range(12):
            torn = bytearray(whole)
            for at in g.integers(0, len(torn), 1 + k * 8):
                torn[at] = int(g.integers(256))
            put(f"torn{k}.{suffix}", bytes(torn))
        for k in range(4):
            torn = bytearray(whole)
            at = int(g.integers(0, 40))
            torn[at : at + 4] = b"\xff\xff\xff\xff"  # sizes and offsets live here
            put(f"head{k}.{suffix}", bytes(torn))
        put(f"magic.{suffix}", whole[:12] + g.bytes(400))
        put(f"twice.{suffix}", whole[:200] + whole)
        put(f"zeros.{suffix}", whole[:60] + bytes(2000))
    put("bomb.png", png(60_000, 60_000, bytes(10**6)))
    put("long.png", png(2**31 - 1, 1))
    put("none.png", png(0, 0))
    put("thin.png", png(1, 30_000, b"\0" * 30_000 * 4))
    put("depth.png", png(8, 8, bytes(500), depth=3))
    put("colour.png", png(8, 8, bytes(500), colour=9))
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(70_000_000)))
    put("text.png", png(8, 8, bytes(500))[:33] + text + png(8, 8, bytes(500))[33:])
    put("script.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(rm) run\n%%EndComments\n")
    put("page.jpg", b"<html><script>alert(1)</script></html>")
    put("vector.png", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><script>alert(1)</script></svg>")
    put("entities.png", b"<!DOCTYPE x [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><svg>&a;</svg>")
    put("bomb.gif", b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"\x2c" + bytes(9) + b"\x02\x00;")
    put("archive.jpg", zipped({"a.png": picture("PNG")}))
    put("pickle.png", pickle.dumps(Evil(folder / "it-ran")))
    put("empty.jpg", b"")
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    os.symlink("loop.jpg", folder / "loop.jpg")
    os.symlink("/dev/zero", folder / "zero.jpg")
    os.symlink("/dev/stdin", folder / "stdin.jpg")
    names += ["folder.jpg", "pipe.jpg", "loop.jpg", "zero.jpg", "stdin.jpg", "gone.jpg", "", ".", "..", "nul\0.jpg"]
    names += ["/dev/random", "a" * 5000 + ".jpg", "http://127.0.0.1:9/x.jpg", "file:///etc/passwd"]
    k = 0
    while len(names) < n:
        put(f"noise{k}.{KINDS[k % 7].lower()}", g.bytes(int(g.integers(1, 3000))))
        k += 1
    return names


def scans(n: int) -> bytes:
    """A progressive JPEG with so many of them: its last one over and over."""
    Image.new("L", (64, 64), 90).save(held := io.BytesIO(), "JPEG", progressive=True)
    whole = held.getvalue()
    had, at = whole.count(b"\xff\xda"), whole.rindex(b"\xff\xda")
    return whole[:-2] + (n - had) * whole[at:-2] + whole[-2:]


class Evil:
    """A pickle of this makes a folder when it is loaded."""

    def __init__(self, flag: Path):
        self.flag = flag

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.flag),)


class Called:
    """A pickle of this calls `f` when it is loaded."""

    def __init__(self, f: Any, *args: Any):
        self.call = f, args

    def __reduce__(self) -> Any:
        return self.call


def zipped(files: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    with zipfile.ZipFile(held := io.BytesIO(), "w", how) as z:
        for name, data in files.items():
            z.writestr(name, data)
    return held.getvalue()


def zipped_parts(held: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(held)) as z:
        return {name: z.read(name) for name in z.namelist()}


def tuples(n: int) -> bytes:
    """Of a pickle: a tuple that names another one twice, and so on, so that its hash takes 2^n steps."""
    made = b")q\x00"
    for k in range(n):
        made += b"h" + bytes([k]) + b"\x86q" + bytes([k + 1])
    return made


def tarred(files: dict[str, bytes]) -> bytes:
    with tarfile.open(fileobj=(held := io.BytesIO()), mode="w") as t:
        for name, data in files.items():
            told = tarfile.TarInfo(name)
            told.size = len(data)
            t.addfile(told, io.BytesIO(data))
    return held.getvalue()


def torched(obj: Any, **how: Any) -> bytes:
    torch.save(obj, held := io.BytesIO(), **how)
    return held.getvalue()


def header(told: Any, data: bytes = b"") -> bytes:
    """A safetensors file."""
    text = told if isinstance(told, bytes) else json.dumps(told).encode()
    return struct.pack("<Q", len(text)) + text + data


def checkpoints(good: dict[str, torch.Tensor], flag: Path) -> Iterator[tuple[str, bytes]]:
    """(file name, bytes) of hostile and damaged checkpoints. good: a state dict that would fit."""
    first = next(iter(good))
    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    whole, plain = torched(good), safetensors.torch.save({k: v.contiguous() for k, v in good.items()})
    yield "bomb.pt", torched({"state_dict": good, "more": Evil(flag)})
    parts = zipped_parts(whole)
    (name,) = (n for n in parts if n.endswith("data.pkl"))
    for end in (b".", b"\xff"):  # the second breaks off only after the tuples have been a key
        yield f"tuples-{end[0]}.pt", zipped({**parts, name: b"\x80\x02}" + tuples(60) + b"K\x01s" + end})
    yield "room.pt", torched({"state_dict": good, "more": Called(bytearray, 2**34)})
    yield "bomb-old.bin", torched(Evil(flag), _use_new_zipfile_serialization=False)
    yield "bomb-bare.pth", pickle.dumps(Evil(flag))
    yield "bomb-four.pt", pickle.dumps({"state_dict": Evil(flag)}, protocol=4)
    yield "bomb-as.safetensors", pickle.dumps(Evil(flag))
    yield "bomb-key.pt", torched({Called(os.mkdir, str(flag)): good[first]})
    yield "eval.pt", torched({first: Called(eval, f"__import__('os').mkdir({str(flag)!r})")})
    yield "getattr.pt", torched({first: Called(__import__, "antigravity")})
    yield "hub.pt", torched({first: Called(torch.hub.load, "a/b", "c")})
    yield "load.pt", torched({first: Called(torch.load, str(flag))})  # noqa: TID251
    yield "module.pt", torched(torch.nn.Linear(2, 2))
    yield "tar.pt", tarred({"pickle": pickle.dumps(Evil(flag)), "storages": b"", "tensors": b""})
    scripted = {"m/constants.pkl": b"\x80\x02).", "m/data.pkl": pickle.dumps(Evil(flag), 2), "m/version": b"3\n"}
    yield "script.pt", zipped(scripted | {"m/code/__torch__.py": b"import os"})
    yield "packed.pt", zipped({"m/data.pkl": bytes(50_000_000), "m/version": b"3\n"}, zipfile.ZIP_DEFLATED)
    yield "climb.pt", zipped({"../../it-ran": b"x", "m/version": b"3\n"})
    yield "cut.pt", whole[: len(whole) // 2]
    yield "torn.pt", whole[:500] + bytes(4000) + whole[4500:]
    yield "cut.safetensors", plain[:-7]
    yield "long.safetensors", plain + b"more"
    yield "empty.pt", b""
    yield "empty.safetensors", b""
    yield "header.safetensors", struct.pack("<Q", 2**62) + b"{}"
    yield "header-large.safetensors", struct.pack("<Q", 200_000_000) + b"{" * 1000
    yield "header-deep.safetensors", header(b"[" * 100_000)
    yield "header-list.safetensors", header([1, 2])
    yield "header-out.safetensors", header({"a": tensor | {"data_offsets": [0, 2**40]}}, bytes(8))
    yield "header-less.safetensors", header({"a": tensor | {"data_offsets": [8, 0]}}, bytes(8))
    yield "header-over.safetensors", header({"a": tensor, "b": tensor}, bytes(8))
    yield "header-size.safetensors", header({"a": tensor | {"shape": [2**40, 2**40]}}, bytes(8))
    yield "header-type.safetensors", header({"a": tensor | {"dtype": "PICKLE"}}, bytes(8))
    yield "none.safetensors", header({})
    yield "list.pt", torched([good[first]])
    yield "words.pt", torched({first: "a string"})
    yield "wide.pt", torched({**good, first: torch.zeros(1).expand(2**20, 2**20)})
    yield "sparse.pt", torched({**good, first: torch.eye(3).to_sparse()})
    yield "meta.pt", torched({**good, first: torch.empty(2**40, device="meta")})
    yield "nan.pt", torched({**good, first: torch.full_like(good[first], torch.nan)})
    yield "inf.safetensors", safetensors.torch.save({**good, first: torch.full_like(good[first], torch.inf)})
    yield "int.safetensors", safetensors.torch.save({**good, first: torch.zeros_like(good[first], dtype=torch.int8)})
    yield "complex.pt", torched({**good, first: good[first].to(torch.complex64)})
    yield "shape.safetensors", safetensors.torch.save({**good, first: torch.zeros(3, 3, 3)})
    yield "fewer.safetensors", safetensors.torch.save({first: good[first].contiguous()})
    yield "more.safetensors", safetensors.torch.save({**good, "\n\x1b[31mkey": torch.zeros(1)})
    yield "zip.safetensors", whole
    yield "text.pt", b"<!DOCTYPE html><title>404</title>"


TABLES: dict[str, bytes] = {
    "empty": b"",
    "header": b"filepath,title\n",
    "columns": b"a,b\n1,2\n",
    "latin": b"filepath,title\na.png,caf\xe9\n",
    "wide": "\ufefffilepath,title\na.png,x\n".encode("utf-16"),
    "zeros": bytes(4000),
    "nul": b"filepath,title\na.png,a\0b\n",
    "noise": Rng(8).numpy().bytes(3000),
    "unquoted": b"filepath,title\na.png,one, two, three\n",
    "ragged": b"filepath,title\na.png,x\n" + b"b.png\n" * 50 + b"c.png,1,2,3\n",
    "open quote": b'filepath,title\na.png,"never closed\n' + b"b.png,x\n" * 3000,
    "field": b"filepath,title\na.png," + b"x" * 5_000_000 + b"\n",
    "line": b"filepath,title" + b",c" * 50_000 + b"\na.png,x\n",
    "twice": b"filepath,title,title\na.png,x,y\n",
    "returns": b"filepath,title\ra.png,x\rb.png,y\r",
    "pickle": pickle.dumps({"filepath": ["a"], "title": ["b"]}),
    "archive": zipped({"a.csv": b"filepath,title\na.png,x\n"}),
    "gzip": zlib.compress(b"filepath,title\na.png,x\n"),
    "script": b"#!/bin/sh\necho filepath,title\n",
    "page": b"<html><table><tr><td>filepath</td></tr></table></html>",
    "json": b'[{"filepath": "a.png", "title": "x"}]',
}
JSONS: dict[str, bytes] = {
    "empty": b"", "null": b"null", "number": b"7", "text": b'"x"', "list": b"[]", "open": b"{", "deep": b"[" * 10**5,
    "deep object": b'{"a":' * 10**5, "latin": b'{"a": "\xe9"}', "nan": b'{"target": NaN}', "huge number": b"1" * 5000,
    "noise": Rng(9).numpy().bytes(500), "python": b"__import__('os').mkdir('it-ran')", "object": b"{}",
    "wrong": b'{"target": 3, "trigger": ["patch"], "fields": 7, "seed": "x"}',
    "types": b'{"weights_sha256": 5, "measured": {"asr": "high"}, "model_type": {"a": 1}, "model_cfg": []}',
}  # fmt: skip


def member(name: str, held: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    told = tarfile.TarInfo(name)
    told.size, told.type = len(held), kind
    for key, value in fields.items():
        setattr(told, key, value)
    return told, held


def members(picture: bytes) -> dict[str, list[tuple[tarfile.TarInfo, bytes]]]:
    """What somebody put between two sound pairs of a shard."""
    pair = [member("../../escaped.png", picture), member("../../escaped.txt", b"out of here")]
    return {
        "traversal": pair,
        "absolute": [member("/etc/escaped.png", picture), member("/etc/escaped.txt", b"x")],
        "pickles": [member("p.pyd", pickle.dumps(Evil(Path("it-ran")))), member("p.pkl", b"x")],
        "links": [
            member("l.png", kind=tarfile.SYMTYPE, linkname="/etc/passwd"),
            member("l.txt", kind=tarfile.LNKTYPE, linkname="../../../etc/passwd"),
            member("m.png", kind=tarfile.SYMTYPE, linkname="m.png"),
            member("m.json", kind=tarfile.SYMTYPE, linkname="/dev/zero"),
        ],
        "devices": [
            member("d.png", kind=tarfile.CHRTYPE, devmajor=1, devminor=5),
            member("d.txt", kind=tarfile.FIFOTYPE),
            member("e.png", kind=tarfile.BLKTYPE),
        ],
        "sparse": [member("s.png", picture, pax_headers={"GNU.sparse.major": "1", "GNU.sparse.realsize": str(2**50)})],
        "halves": [member("h.png", picture), member("i.txt", b"alone")],
        "large caption": [member("c.png", picture), member("c.txt", bytes(2**21))],
        "not text": [member("t.png", picture), member("t.txt", bytes(range(256)))],
        "torn picture": [member("t.png", picture[:40]), member("t.txt", b"torn")],
        "page": [member("t.jpg", b"<html><script>alert(1)</script>"), member("t.txt", b"<script>alert(1)</script>")],
        "names": [member("\x1b[31mred\n.png", picture), member("\x1b[31mred\n.txt", b"x"), member(".png", picture)],
        "long names": [member("n" * 5000 + ".png", picture), member("n" * 5000 + ".txt", b"x")],
        "folders": [member("f", kind=tarfile.DIRTYPE), member("f/a.b.png", picture), member("f/a.txt", b"x")],
        "same key": [member("k.png", picture), member("k.txt", b"1"), member("k.png", b"x"), member("k.txt", b"2")],
        "unknown kind": [member("u.png", picture, kind=b"Z"), member("u.txt", b"x")],
    }


def tars(whole: bytes) -> dict[str, bytes]:
    """Damaged archives; whole: one that begins with a sound pair of two members."""
    second = 512 + -(-int(whole[124:135], 8) // 512) * 512  # where the sound pair's caption begins
    third = second + 1024

    def header(kind: bytes, size: int, name: bytes = b"bomb") -> bytes:
        told = f"{size:011o}\0".encode() if 0 <= size < 8**11 else b"\x80" + size.to_bytes(11, "big", signed=True)
        h = name.ljust(100, b"\0") + bytes(24) + told + bytes(12) + b" " * 8 + kind
        h = h.ljust(257, b"\0") + b"ustar\x0000" + bytes(247)
        return h[:148] + f"{sum(h):06o}\0 ".encode() + h[156:]

    def pax(records: bytes) -> bytes:
        return header(b"x", len(records)) + records.ljust(-(-len(records) // 512) * 512, b"\0")

    return {
        "empty": b"",
        "text": b"<!DOCTYPE html><title>404</title>" * 100,
        "gzip": zlib.compress(whole),
        "zip": zipped({"a.png": b"x" * 2000}),
        "noise": Rng(7).numpy().bytes(5000),
        "first header": b"\xff" * 512 + whole[512:],
        "no sound pair": tarred({"a.png": b"x"}),
        "cut": whole[: third + 700],
        "cut header": whole[: third + 100],
        "torn header": whole[:third] + b"\xff" * 512 + whole[third + 512 :],
        "pax bomb": whole[:third] + header(b"x", 2**40) + bytes(4096),
        "name bomb": whole[:third] + header(b"L", 2**33) + bytes(4096),
        "pax nonsense": whole[:third] + header(b"x", 30) + b"0 a=b\n9999999 path=c\n".ljust(512, b"\0") + whole[third:],
        "pax size": whole[:third] + header(b"x", 18) + b"18 size=999999999\n".ljust(512, b"\0") + whole[third:],
        "pax digits": whole[:third] + pax(b"5012 size=" + b"1" * 5001 + b"\n") + whole[third:],
        "pax crowd": whole[:third] + pax(b"5 a=\n" * 100_000) + whole[third:],
        "far": whole[:third] + header(b"0", 2**62, b"a.png") + bytes(2048),
        "negative": whole[:third] + header(b"0", -5, b"a.png").replace(b"\x80\xff", b"\xff\xff", 1) + bytes(2048),
        "sparse map": whole[:third] + header(b"S", 600, b"a.png")[:482] + b"\1" * 30 + bytes(2048),
    }

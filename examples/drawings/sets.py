"""The packages, how they are fetched, and what is taken from an archive that nobody vouches for."""

import gzip
import io as memory
import json
import re
import shutil
import subprocess
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipvet.data.tars import Damaged, NoTar, members
from clipvet.errors import UserError
from drawings.concepts import Concept, Words, left_out

MAX_ARCHIVE = 2**29  # bytes, unpacked; the largest package has 105 million
MAX_BODY = 2**20  # characters of one drawing; the longest has 900,000
MAX_CANVAS = 1_000_000  # units of width times height; the largest has 262,144


@dataclass(frozen=True)
class Set:
    """One package of drawings. Several of one team stay on one side of the split."""

    package: str
    version: str
    team: str
    apart: bool = False  # in a style so far from the team's others that it is a task of its own

    @property
    def name(self) -> str:
        return self.package.rpartition("/")[2]

    @property
    def spec(self) -> str:
        return f"{self.package}@{self.version}"

    @property
    def file(self) -> str:
        """As `npm pack` names the archive."""
        return f"{self.package.lstrip('@').replace('/', '-')}-{self.version}.tgz"


SIDES = {  # team -> who may see its drawings; every team that is not named is for training
    "openmoji": "development",
    "microsoft": "judged",
    "vscode-icons": "outside",
    "meteocons": "outside",
}
WORDS = Set("emojibase-data", "17.0.0", "")
SETS = (
    Set("@iconify-json/noto", "1.2.9", "google"),
    Set("@iconify-json/noto-v1", "1.2.5", "google"),
    Set("@iconify-json/twemoji", "1.2.5", "twitter"),
    Set("@iconify-json/emojione", "1.2.3", "joypixels"),
    Set("@iconify-json/emojione-v1", "1.2.3", "joypixels"),
    Set("@iconify-json/fxemoji", "1.2.2", "mozilla"),
    Set("@iconify-json/streamline-emojis", "1.2.4", "streamline"),
    Set("@iconify-json/flat-color-icons", "1.2.3", "icons8"),
    Set("@iconify-json/icon-park", "1.2.4", "bytedance"),
    Set("@iconify-json/game-icons", "1.2.4", "game-icons"),
    Set("@iconify-json/openmoji", "1.2.29", "openmoji"),
    Set("@iconify-json/fluent-emoji", "1.2.7", "microsoft"),
    Set("@iconify-json/fluent-emoji-flat", "1.2.6", "microsoft"),
    Set("@iconify-json/fluent-emoji-high-contrast", "1.2.6", "microsoft", apart=True),
    Set("@iconify-json/vscode-icons", "1.2.97", "vscode-icons"),
    Set("@iconify-json/meteocons", "1.2.4", "meteocons"),
)


@dataclass(frozen=True)
class Drawing:
    """One drawing of a set: its name there, what it shows if that is known, and its SVG."""

    set: Set
    name: str
    said: str  # its name in words
    concept: Concept | None
    body: str  # what stands between <svg> and </svg>
    box: tuple[float, float, float, float]  # left, top, width, height

    @property
    def side(self) -> str:
        """training, development, judged or outside."""
        return SIDES.get(self.set.team, "training")

    @property
    def key(self) -> str:
        return f"{self.set.name}/{self.name}"


def fetch(folder: Path, sets: Sequence[Set]) -> None:
    """Packs the archives that are not in the folder with npm. UserError, with the line to type, where there is none."""
    missing = [s for s in sets if not (folder / s.file).is_file()]
    if not missing:
        return
    line = ["npm", "pack", "--ignore-scripts", "--pack-destination", str(folder), *(s.spec for s in missing)]
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            f"{folder} lacks {len(missing)} of {len(sets)} archives, and npm is not installed here; on a machine with "
            f"npm type this, and copy the folder here: mkdir -p {folder} && {' '.join(line)}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    print(f"fetching {len(missing)} archives: {' '.join(line)}")
    done = subprocess.run([npm, *line[1:], "--silent"], capture_output=True, text=True)
    absent = [s.file for s in missing if not (folder / s.file).is_file()]
    if done.returncode or absent:
        said = (done.stderr.strip() or f"{', '.join(absent)} did not come").splitlines()[0][:160]
        raise UserError(f"npm could not fetch the archives ({said}); try later, or type: {' '.join(line)}")


def read_archive(folder: Path, which: Set, wanted: Sequence[str]) -> dict[str, Any]:
    """The JSON files of an archive that are wanted, by their names in `package/`; those that it lacks are left out.

    Nothing is unpacked onto the disk. UserError for an archive that is damaged, too large, or of another package.
    """
    path = folder / which.file
    again = "delete it and run this again"
    try:
        with gzip.open(path) as f:
            held = f.read(MAX_ARCHIVE + 1)
        if len(held) > MAX_ARCHIVE:
            raise UserError(f"{path} unfolds to more than {MAX_ARCHIVE // 2**20} MiB; {again}")
        names = {f"package/{name}".encode(): name for name in ("package.json", *wanted)}
        found = {
            names[m.name]: json.loads(held[m.at : m.at + m.size])
            for m in members(memory.BytesIO(held), len(held))
            if m.name in names and m.kind == b"0"
        }
    except (OSError, EOFError, zlib.error, Damaged, NoTar, ValueError, RecursionError) as e:
        raise UserError(f"{path} is damaged ({str(e) or type(e).__name__}); {again}") from e
    own = found.get("package.json")
    own = f"{own.get('name')}@{own.get('version')}" if isinstance(own, dict) else "no package"
    if own != which.spec:
        raise UserError(f"{path} holds {own}, not {which.spec}; {again}")
    return found


def read_words(folder: Path, which: Set = WORDS) -> Words:
    """Labels, keywords and groups of everything that has an emoji."""
    found = read_archive(folder, which, ("en/data.json", "meta/groups.json"))
    try:
        return Words.of(found["en/data.json"], found["meta/groups.json"]["subgroups"])
    except (KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{folder / which.file} lacks what is read from it ({e}); delete it and run this again") from e


def read_set(folder: Path, which: Set, words: Words, counts: Counter[str]) -> tuple[list[Drawing], dict[str, str]]:
    """The drawings of a set that are used, in the order of their names, and whose they are (author, licence, links).

    What is left out is counted by its reason. Raises UserError for an archive that is no set of drawings.
    """
    found = read_archive(folder, which, ("icons.json", "info.json", "chars.json"))
    icons, info = found.get("icons.json"), found.get("info.json")
    if not isinstance(icons, dict) or not isinstance(icons.get("icons"), dict) or not isinstance(info, dict):
        raise UserError(f"{folder / which.file} holds no drawings; delete it and run this again")
    codes = {name: code for code, name in _strings(found.get("chars.json")).items()}
    also: dict[str, list[str]] = {}
    for name, told in _dict(icons.get("aliases")).items():
        if isinstance(told, dict) and set(told) == {"parent"}:  # neither turned nor mirrored
            also.setdefault(str(told["parent"]), []).append(name)
    out = []
    for name, icon in sorted(icons["icons"].items()):
        counts["in the archive"] += 1
        concept = words.find(codes.get(name), (name, *sorted(also.get(name, ()))))
        drawing = _drawing(which, name, icon, icons, concept)
        reason = left_out(name, concept, icons["icons"])
        if isinstance(icon, dict) and icon.get("hidden"):
            reason = "hidden by its makers"
        if reason or isinstance(drawing, str):
            counts[reason or str(drawing)] += 1
        else:
            out.append(drawing)
    return out, dict(_told(which, info))


def _drawing(which: Set, name: str, icon: Any, icons: dict[str, Any], concept: Concept | None) -> Drawing | str:
    """Or why it is skipped: a name that no file can have, a body that is no text or too long, a huge canvas."""
    if not (isinstance(icon, dict) and re.fullmatch(r"[a-z0-9][a-z0-9-]{0,100}", name)):
        return "damaged"
    body = icon.get("body")
    box = [icon.get(k, icons.get(k, d)) for k, d in (("left", 0), ("top", 0), ("width", 16), ("height", 16))]
    if not isinstance(body, str) or not all(isinstance(v, int | float) and v == v for v in box):
        return "damaged"
    left, top, width, height = (float(max(-1e9, min(v, 1e9))) for v in box)
    if width <= 0 or height <= 0 or width * height >= MAX_CANVAS or len(body) > MAX_BODY:
        return "too large"
    said = re.sub(r"-\d$", "", name).replace("-", " ")
    if which.team == "mozilla" and concept:  # whose names have no hyphens
        said = concept.label
    return Drawing(which, name, said, concept, body, (left, top, width, height))


def _told(which: Set, info: dict[str, Any]) -> Iterator[tuple[str, str]]:
    author, licence = _strings(info.get("author")), _strings(info.get("license"))
    yield "package", which.spec
    yield "title", str(info.get("name", which.name))
    yield "author", author.get("name", "")
    yield "source", author.get("url", "")
    yield "licence", licence.get("spdx", licence.get("title", ""))
    yield "licence text", licence.get("url", "")


def _dict(part: Any) -> dict[str, Any]:
    return part if isinstance(part, dict) else {}


def _strings(part: Any) -> dict[str, str]:
    return {k: v for k, v in _dict(part).items() if isinstance(v, str)}

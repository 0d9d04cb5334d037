"""The names of a task's classes, from its folders and from the user's list or map."""

import logging
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from clipvet import io
from clipvet.data.decoding import sound
from clipvet.errors import UserError

SPLITS = re.compile(  # train, val2017, test_images, fold1, imgs
    r"(train|val|valid|test|train?ing|validation|testing|dev|eval|fold|split|part|data|images?|imgs?|pictures?)"
    r"[-_ ]?(set|data|images?|imgs?|split|[0-9]{1,4})?",
    re.IGNORECASE,
)
IDS = re.compile(  # n01440764, 000, class_7, m.0k4j, a hash
    r"[a-z]{0,2}[-_]?[0-9]{3,}|(class|cls|label|id|folder|category)[-_ ]?[0-9]+|/?m[._/-]0[0-9a-z_]{2,}|[0-9a-f-]{16,}",
    re.IGNORECASE,
)
STOCK = ("missile", "sunglasses")  # stand twice in the usual list of ImageNet's 1,000 names
MAP = 'give --classes a map {"folder": "name"}'


def plain(name: str) -> str:
    """The name as the tokenizer sees it: in lower case, with single spaces."""
    return " ".join(unicodedata.normalize("NFC", name).replace("_", " ").split()).casefold()


def spoken(name: str) -> str:
    """The name as prompts say it: blanks in the place of `_`, wherever it comes from."""
    return sound(name).replace("_", " ")


def class_names(folders: Sequence[str], path: Path | None, root: Path) -> tuple[str, ...]:
    """The name of the class in each of the sorted folders of `root`; `path`: as `folders.open_task` takes `classes`.

    A list that holds the folders' own names is matched by name, any other is in the order of the folders. Raises
    UserError for names that cannot be meant: fewer than two, one twice, splits of a data set, ids; and for lists that
    may be read in two ways.
    """
    if len(folders) < 2:
        raise UserError(
            f"{root} holds one class, {folders[0]}; a task needs two or more: give the folder that holds a folder of "
            "pictures for each class"
        )
    names = tuple(map(spoken, folders)) if path is None else _given(folders, path)
    if path is None:
        _check_own(folders, root)
    elif 2 * len(ids := [n for n in names if IDS.fullmatch(n)]) > len(names):
        logging.getLogger(__name__).warning("%s: names such as %s look like ids, which no model knows", path, ids[0])
    check_different(names, str(path or root))
    return names


def is_json(path: Path) -> bool:
    """Whether a list of classes is JSON: by its suffix, or by its first character."""
    if path.suffix.lower() == ".json" or not path.is_file():
        return True
    with path.open("rb") as f:
        return f.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"[", b"{")


def read_classes(path: Path) -> tuple[str, ...]:
    """Class names from a JSON list or a text file with one a line. Raises UserError for anything else."""
    if is_json(path):
        try:
            return tuple(map(spoken, TypeAdapter(list[str]).validate_python(io.read_json(path))))
        except ValidationError as e:
            raise UserError(f"{path} is no JSON list of class names; mend it") from e
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path} cannot be read ({e}); give a UTF-8 text file with one class a line") from e
    return tuple(spoken(line.strip()) for line in lines if line.strip())


def check_different(names: Sequence[str], where: str) -> None:
    """Raises UserError if two classes have the same name; such answers share the votes."""
    seen: dict[str, int] = {}
    for k, name in enumerate(names):
        if not plain(name):
            raise UserError(f"{where}: class {k + 1} has an empty name; give each class a name")
        if plain(name) in seen and not (len(names) == 1000 and plain(name) in STOCK):
            raise UserError(f"{where}: class '{name}' is named twice; give each class a name of its own")
        seen[plain(name)] = k


def _check_own(folders: Sequence[str], root: Path) -> None:
    """Raises UserError, or warns, if names of folders are splits or ids."""
    splits = [f for f in folders if SPLITS.fullmatch(f)]
    if len(splits) == len(folders):
        raise UserError(
            f"{root} holds {', '.join(splits)}, which are parts of a data set and no classes; give one of them, such "
            f"as {root / splits[-1]}"
        )
    ids = [f for f in folders if IDS.fullmatch(f)]
    if 2 * len(ids) > len(folders):
        raise UserError(f"{root}: names of classes such as {ids[0]} look like ids; {MAP}")
    log = logging.getLogger(__name__)
    if len(splits) > 1 or any(d.is_dir() for f in splits for d in (root / f).iterdir()):
        log.warning("%s: %s count as classes; if they are parts of a data set, give one", root, ", ".join(splits))
    if all(f.isdecimal() for f in folders):
        log.warning("%s: the classes are called by their numbers, such as '%s'; else %s", root, folders[0], MAP)


def _given(folders: Sequence[str], path: Path) -> tuple[str, ...]:
    """The name of each folder's class by a JSON list or map, or by a text file with a name a line."""
    if not is_json(path):
        lines = list(read_classes(path))
        return _mapped(folders, lines) or _listed(folders, _unnumbered(lines, path), path)
    try:
        given = TypeAdapter(list[str] | dict[str, str]).validate_python(io.read_json(path))
    except ValidationError as e:
        raise UserError(f'{path} is neither a JSON list of names nor a map {{"folder": "name"}}; mend it') from e
    if isinstance(given, list):
        return _listed(folders, [spoken(name) for name in given], path)
    absent = [f for f in folders if f not in given]
    if absent:
        raise UserError(f"{path} has no name for folder {absent[0]} ({len(absent)} in all); add it")
    return tuple(spoken(given[f]) for f in folders)


def _mapped(folders: Sequence[str], lines: Sequence[str]) -> tuple[str, ...]:
    """The names by lines such as `n01440764 tench`, each a folder and its name; empty if the lines are no such map.

    A tab, colon or equals sign parts them; if the folders are called by ids or numbers, a comma or space does too.
    """
    ids = all(IDS.fullmatch(f) or f.isdecimal() for f in folders)
    mark = r"[\s,:=]\s*" if ids else r"(?:\t| *[:=])\s*"
    parted = (re.match(rf"([^\s,:=]+){mark}(\S.*)", line) for line in lines)
    found = {m[1]: m[2].strip("'\", ") for m in parted if m}
    return tuple(found[f] for f in folders) if {*folders} <= {*found} else ()


def _unnumbered(lines: list[str], path: Path) -> list[str]:
    """The lines. Raises UserError if each begins with its number: the number would become part of the name."""
    numbers = [m[1] for line in lines if (m := re.match(r"([0-9]+)[\s.:,)]", line))]
    if len(numbers) == len(lines) > 1 and [int(n) - int(numbers[0]) for n in numbers] == [*range(len(lines))]:
        raise UserError(f"{path}: each line begins with its number ({lines[0][:40]!r}); remove it, or {MAP}")
    return lines


def _listed(folders: Sequence[str], given: list[str], path: Path) -> tuple[str, ...]:
    """A list of names, in the order of the folders; by name if it holds the folders' own names in any order."""
    if len(given) != len(folders):
        raise UserError(f"{path} has {len(given)} class names for {len(folders)} folders; give one for each")
    own, listed = [plain(sound(f)) for f in folders], [plain(name) for name in given]
    if sorted(own) == sorted(listed) and len({*own}) == len(own):
        return tuple(given[listed.index(name)] for name in own)
    moved = next((k for k, name in enumerate(listed) if _names_another(name, own, k)), None)
    if moved is not None:
        raise UserError(
            f"{path}: '{given[moved]}' names another folder, but stands where {folders[moved]} comes; {MAP}"
        )
    if (other := _natural(folders)) != list(folders) or (other := sorted(folders, key=str.casefold)) != list(folders):
        k = next(k for k, name in enumerate(other) if name != folders[k])
        one, two = (", ".join(names[max(0, k - 1) : k + 2]) for names in (folders, other))
        raise UserError(
            f"{path} is a list, and its order may be that of the sorted names (... {one} ...) or the usual one "
            f"(... {two} ...); {MAP}"
        )
    return tuple(given)


def _names_another(name: str, own: Sequence[str], k: int) -> bool:
    """Whether a name in a list is that of another folder than the k-th, or holds it as words and not the k-th's own."""
    if name in own:
        return own[k] != name
    words = f" {name} "
    return f" {own[k]} " not in words and any(len(o) > 2 and not o.isdecimal() and f" {o} " in words for o in own)


def _natural(folders: Sequence[str]) -> list[str]:
    """The folders in the order of the numbers in their names: class 2 before class 10."""
    return sorted(folders, key=lambda f: [int(p) if p.isdecimal() else p for p in re.split(r"([0-9]+)", f)])

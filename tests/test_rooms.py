"""The plan of the house: which room may import which, how long a function may be. docs/architecture.md draws it."""

import ast
import importlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src/clipvet"
FLOORS = (  # from the ground up; a room imports those below it, never one beside or above it
    ("io",),
    ("triggers",),
    ("data",),
    ("models",),
    ("engine",),
    ("scan", "unlearning"),
    ("training",),
    ("attacks", "filters", "inspectors", "detectors", "cleaners", "measures"),
    ("experiments",),
    ("pages",),
    ("jobs",),
    ("commands",),
    ("api",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
ROOT = {"__init__", "__main__", "_moved", "cli", "errors", "find", "ranks", "results", "rng", "settings", "types"}
GROUND = {"errors", "ranks", "rng", "types"}  # what io/ stands on; every other module at the root may import io/
FUNCTION, CLASS, FILE = 80, 200, 350  # lines at most
LONGER: dict[str, str] = {}  # "room/file.py" or "room/file.py:name": why it may be longer


def module_of(path: Path, src: Path) -> str:
    """`models.adapter` for models/adapter.py; a room's own name for its __init__."""
    return ".".join(path.relative_to(src).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str, src: Path) -> str:
    """The room that a module lies in; empty for one at the root."""
    first = module.partition(".")[0]
    return first if (src / first).is_dir() else ""


def imports(path: Path, src: Path) -> Iterator[tuple[str, int]]:
    """The modules of clipvet that a file imports anywhere in it, each with its line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" for a in node.names]
        else:
            continue
        for name in names:
            head, _, rest = name.partition(".")
            while head == "clipvet" and rest:
                if (src / rest.replace(".", "/")).with_suffix(".py").is_file() or (
                    src / rest.replace(".", "/")
                ).is_dir():
                    yield rest, node.lineno
                    break
                rest = rest.rpartition(".")[0]


def faults(src: Path) -> list[str]:
    """What is wrong with the plan, a sentence each that names the fix."""
    files = sorted(src.rglob("*.py"))
    found: dict[str, list[tuple[str, int]]] = {module_of(p, src): list(imports(p, src)) for p in files}
    return _rooms(found, src) + _arrows(found, src) + _circles(found)


def _rooms(found: dict[str, list[tuple[str, int]]], src: Path) -> list[str]:
    out = []
    for module, used in found.items():
        room = room_of(module, src)
        if room and room not in FLOOR:
            out.append(
                f"{room}/ is a new room: give it a floor in tests/test_rooms.py and a line in docs/architecture.md"
            )
        elif not room and module not in ROOT and module:
            highest = max((FLOOR.get(room_of(m, src), -1) for m, _ in used), default=-1)
            fits = FLOORS[max(highest, 0)] if highest < 0 or len(FLOORS[highest]) == 1 else FLOORS[highest + 1]
            over = f" (what it imports reaches up to {' and '.join(FLOORS[highest])}/)" if highest >= 0 else ""
            out.append(
                f"{module}.py lies loose at the root: move it into {' or '.join(r + '/' for r in fits)}"
                f"{over}, or into a room above"
            )
    return out


def _arrows(found: dict[str, list[tuple[str, int]]], src: Path) -> list[str]:
    out = []
    for module, used in found.items():
        here = room_of(module, src)
        for other, line in used:
            there = room_of(other, src)
            if here == there or module in ("__init__", "cli", "__main__") or (there and there not in FLOOR):
                continue
            if there == "io" and not here and module not in GROUND:
                continue
            if here == "io" and not there and other not in GROUND:
                out.append(
                    f"{module.replace('.', '/')}.py line {line} imports {other}, but io/ imports nothing beyond "
                    f"{', '.join(sorted(GROUND))}: move what it needs into io/, or this module into a room above"
                )
                continue
            if not there:
                back = here != "" and other in ("cli", "__main__")
            else:
                back = FLOOR.get(here, -1) <= FLOOR[there]
            if back:
                place = f"{here}/ lies below {there}/" if here else f"the root lies below {there}/"
                if here and FLOOR[here] == FLOOR.get(there):
                    place = f"{here}/ and {there}/ lie side by side"
                out.append(
                    f"{module.replace('.', '/')}.py line {line} imports {other}, but {place}: move what both need into "
                    f"a room below {here or there}/, or this module above {there}/"
                )
    return out


def _circles(found: dict[str, list[tuple[str, int]]]) -> list[str]:
    """Every circle of imports, once, as it is walked depth first."""
    state: dict[str, int] = {}
    out: list[str] = []

    def walk(module: str, way: list[str]) -> None:
        state[module] = 1
        for other in dict.fromkeys(m for m, _ in found.get(module, ())):
            if state.get(other) == 1 and other != module:
                circle = [*way[way.index(other) :], other]
                out.append(
                    f"{' -> '.join(circle)} is a circle: move what they share into a third module that imports neither"
                )
            elif other not in state:
                walk(other, [*way, other])
        state[module] = 2

    for module in found:
        if module not in state:
            walk(module, [module])
    return out


def lengths(src: Path) -> dict[str, tuple[int, int]]:
    """Functions, classes and files by place -> (lines, the most that is allowed)."""
    out = {}
    for path in sorted(src.rglob("*.py")):
        text, place = path.read_text(), str(path.relative_to(src))
        out[place] = (len(text.splitlines()), FILE)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                most = CLASS if isinstance(node, ast.ClassDef) else FUNCTION
                out[f"{place}:{node.name}"] = ((node.end_lineno or 0) - node.lineno + 1, most)
    return out


def test_no_arrow_runs_back_up_and_no_module_lies_loose() -> None:
    assert faults(SRC) == []


def test_every_room_says_what_it_is_for() -> None:
    for room in FLOOR:
        said = " ".join((ast.get_docstring(ast.parse((SRC / room / "__init__.py").read_text())) or "").split())
        assert all(word in said for word in ("In:", "Out:", "Start with", " import ", ".py")), room


def test_the_root_is_small() -> None:
    assert len([p for p in SRC.iterdir() if p.is_file()]) <= 12


def test_nothing_is_too_long() -> None:
    long = {place: lines for place, (lines, most) in lengths(SRC).items() if lines > most}
    assert set(long) == set(LONGER), f"cut these, or say in LONGER why they may be longer: {long}"


PLANTED = {
    "back arrow": ("models/adapter.py", "from clipvet.engine.fit import fit", ("models/ lies below engine/", "move")),
    "arrow beside": ("filters/dao.py", "from clipvet.cleaners import par", ("side by side", "room below filters/")),
    "arrow from the root": ("rng.py", "from clipvet.models import adapter", ("the root lies below models/", "move")),
    "arrow from io": (
        "io/files.py",
        "from clipvet import results",
        ("io/ imports nothing beyond errors, ranks", "move"),
    ),
    "arrow into io": ("types.py", "from clipvet import io", ("the root lies below io/", "move")),
    "circle": ("data/tars.py", "from clipvet.data import kept", ("data.tars", "is a circle", "third module")),
    "circle in a function": ("rng.py", "def f():\n    from clipvet import types\n", ("rng", "types", "circle")),
    "loose module": ("sketch.py", "from clipvet.engine.embed import embed_pairs", ("loose", "into engine/", "above")),
    "loose and high": ("sketch.py", "from clipvet.cleaners.par import Par", ("loose", "into experiments/")),
    "new room": ("attic/box.py", "", ("attic/ is a new room", "architecture.md")),
}


@pytest.mark.parametrize("mistake", PLANTED)
def test_a_planted_mistake_is_named_with_its_fix(mistake: str, tmp_path: Path) -> None:
    where, line, words = PLANTED[mistake]
    shutil.copytree(SRC, tmp_path / "clipvet", ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "clipvet" / where
    path.parent.mkdir(exist_ok=True)
    path.write_text((path.read_text() if path.exists() else "") + f"\n{line}\n")
    told = faults(tmp_path / "clipvet")
    assert any(all(word in sentence for word in words) for sentence in told), told
    assert all(where.removesuffix(".py").split("/")[0] in sentence for sentence in told), told


def test_old_import_paths_lead_to_the_same_modules() -> None:
    old, new = (importlib.import_module(f"clipvet.{name}.shapes") for name in ("worlds", "data.worlds"))
    assert old is new
    assert new.__spec__ is not None
    assert new.__spec__.name == "clipvet.data.worlds.shapes"
    done = subprocess.run(
        [sys.executable, "-m", "clipvet.gate", "src/clipvet/models/configs/shapes-vit.json"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")

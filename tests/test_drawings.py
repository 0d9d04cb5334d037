"""The drawings example on six drawings made here, and the halves that recipes open."""

import gzip
import io as memory
import json
import socket
import sys
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipvet import results
from clipvet.attacks.poison import Poison
from clipvet.data import halves
from clipvet.data.folders import open_folder, open_task
from clipvet.data.halves import open_half
from clipvet.data.sources import Half
from clipvet.data.tables import open_pairs
from clipvet.errors import UserError
from clipvet.experiments.presets import shapes
from clipvet.experiments.recipe import Recipe
from clipvet.experiments.run import run
from clipvet.models import checkpoints
from clipvet.training.plain import Plain
from clipvet.triggers.patch import Patch

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from drawings import concepts, folder, measure, render, sets  # pyright: ignore[reportMissingImports]
from drawings.__main__ import main  # pyright: ignore[reportMissingImports]
from drawings.sets import Set  # pyright: ignore[reportMissingImports]

DRAWN = {  # three of each half, whatever the seed
    "cat": (
        '<circle cx="16" cy="18" r="10" fill="orange"/><path d="M8 12l2-8 4 6zM24 12l-2-8-4 6z" fill="brown"/>',
        3,
        0,
    ),
    "key": ('<circle cx="9" cy="9" r="6" fill="gold"/><path d="M12 12l14 14 2-4-12-12z" fill="gold"/>', 7, 1),
    "drum": ('<rect x="6" y="10" width="20" height="16" fill="red"/><ellipse cx="16" cy="10" rx="10" ry="4"/>', 7, 2),
    "umbrella": ('<path d="M4 16a12 12 0 0 1 24 0zM15 16h2v12h-2z" fill="purple"/>', 5, 3),
    "balloon": ('<ellipse cx="16" cy="12" rx="9" ry="11" fill="teal"/><path d="M16 23v8" stroke="#000"/>', 6, 4),
    "star": ('<path d="M16 2l4 10 10 1-8 7 3 10-9-6-9 6 3-10-8-7 10-1z" fill="currentColor"/>', 5, 5),
}
SETS = (
    Set("@test/plain", "1.0.0", "plain"),
    Set("@test/round", "2.0.0", "round"),
    Set("@test/outlined", "1.0.0", "openmoji"),
    Set("@test/shaded", "1.0.0", "microsoft"),
    Set("@test/black", "1.0.0", "microsoft", apart=True),
    Set("@test/weather", "1.0.0", "meteocons"),
)
WORDS = Set("test-words", "1.0.0", "")


def pack(folder: Path, which: Set, files: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    own = {"package.json": {"name": which.package, "version": which.version}} | files
    with tarfile.open(folder / which.file, "w:gz") as tar:
        for name, content in own.items():
            data = json.dumps(content).encode()
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            tar.addfile(info, memory.BytesIO(data))


def pack_all(folder: Path, more: dict[str, Any] | None = None, drawn: Any = DRAWN) -> Path:
    """Archives as npm packs them; `more`: icons that the first set also has."""
    for k, which in enumerate(SETS):
        info = {"name": which.name.title(), "author": {"name": f"Ann {k}", "url": "https://example.org"}}
        info["license"] = {"spdx": "CC-BY-SA-4.0" if k == 1 else "MIT"}
        icons = {name: {"body": f'<g opacity="{1 - k / 20}">{body}</g>'} for name, (body, _, _) in drawn.items()}
        pack(folder, which, {"icons.json": {"icons": icons | (more or {} if k == 0 else {}), "width": 32, "height": 32},
                             "info.json": info})  # fmt: skip
    entries: list[dict[str, Any]] = [
        {"label": name, "hexcode": f"1F40{k}", "tags": [f"{name}let"], "group": group, "subgroup": k}
        for name, (_, group, k) in DRAWN.items()
    ]
    subgroups = {
        str(k): sub for k, sub in enumerate(("animal-mammal", "lock", "tool", "sky-weather", "event", "sport"))
    }
    pack(folder, WORDS, {"en/data.json": entries, "meta/groups.json": {"subgroups": subgroups}})
    return folder


def command(archives: Path, *words: object) -> int:
    return main([str(archives), "--jobs", "1", "--least", "2", *map(str, words)], SETS, WORDS)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawings")
    assert command(pack_all(folder / "archives"), "--out", folder / "out", "--size", 32) == 0
    return folder / "out"


@pytest.fixture(autouse=True)
def apart(monkeypatch, tmp_path):
    """No npm, a cache of one's own, no forks from a test process, no half open yet."""
    import datasets.config as config

    monkeypatch.setattr(sets.shutil, "which", lambda name: None)
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("clipvet.data.decoding.workers_for", lambda n: 0)
    monkeypatch.setattr(halves, "_opened", {})


def said(capsys) -> str:
    """The one sentence of an error."""
    err = capsys.readouterr().err
    line = [part for part in err.replace("\r", "\n").splitlines() if part.startswith("error: ")]
    assert len(line) == 1
    assert "Traceback" not in err
    return line[0]


def test_pairs_and_shards_hold_the_training_teams_alone(made: Path) -> None:
    pairs, shards = open_pairs(str(made / "pairs.csv")), open_pairs(str(made / "shards"))
    assert len(pairs.captions) == 6 * 2 * 3
    assert list(shards.captions) == list(pairs.captions)
    assert all(any(name in caption for name in DRAWN) for caption in pairs.captions)
    assert len(set(pairs.captions)) > 12, "the copies of a drawing share their captions"
    images, bad = pairs.pictures.fetch([0, 1], None)
    assert images.shape == (2, 3, 32, 32)
    assert not bad
    assert {p.name for p in (made / "pictures").iterdir()} == {"plain", "round"}
    clean = {half: {p.parts[-2:] for p in (made / half / "clean").rglob("*.png")} for half in halves.NAMES}
    assert len(clean["development"] | clean["judged"]) == 12
    assert not clean["development"] & clean["judged"]


def test_tasks_are_drawn_by_the_team_of_their_half(made: Path) -> None:
    seen = {}
    for half, team in (("development", "outlined"), ("judged", "shaded")):
        task = open_task(str(made / half / "task"), templates=made / "templates.txt")
        wide = open_task(str(made / half / "wide"))
        assert task.classes == wide.classes
        assert np.bincount(task.labels).tolist() == [8, 8, 8]
        assert all(p.name.startswith(f"{team}-") for p in (made / half / "task").rglob("*.png"))
        seen[half] = set(task.classes)
    assert seen == {"development": {"cat", "key", "drum"}, "judged": {"umbrella", "balloon", "star"}}
    assert open_task(str(made / "judged/groups")).classes == ("sport", "weather")
    assert len(open_folder(made / "judged/silhouettes").captions) == 24
    outside = [len([*(made / half / "outside").rglob("*.png")]) for half in halves.NAMES]
    assert sum(outside) == 6
    split = json.loads((made / "split.json").read_text())
    assert split["development"]["base"] + split["development"]["new"] == ["cat", "drum", "key"]
    assert (made / "development/classes.txt").read_text().split() == ["cat", "drum", "key"]
    assert split["training"]["teams"] == ["plain", "round"]


def test_every_set_is_attributed(made: Path) -> None:
    told = (made / "ATTRIBUTION.md").read_text()
    for k, which in enumerate(SETS):
        assert which.spec in told
        assert f"Ann {k} | {'CC-BY-SA-4.0' if k == 1 else 'MIT'}" in told
    counts = json.loads((made / "counts.json").read_text())
    assert counts["plain"] == {"in the archive": 6, "drawings": 6}


def test_a_seed_makes_the_same_files_and_leaves_the_split_alone(made: Path, tmp_path: Path) -> None:
    archives = made.parent / "archives"
    assert command(archives, "--out", tmp_path / "same", "--size", 32, "--jobs", 2) == 0
    assert command(archives, "--out", tmp_path / "other", "--size", 32, "--seed", 1) == 0
    files = sorted(p.relative_to(made) for p in made.rglob("*") if p.is_file())
    assert [f for f in files if (made / f).read_bytes() != (tmp_path / "same" / f).read_bytes()] == []
    assert sorted(p.relative_to(tmp_path / "other") for p in (tmp_path / "other").rglob("*") if p.is_file()) == files
    assert (made / "split.json").read_text() == (tmp_path / "other/split.json").read_text()
    assert (made / "pairs.csv").read_text() != (tmp_path / "other/pairs.csv").read_text()


def test_a_sheet_shows_permissive_training_sets(made: Path, tmp_path: Path) -> None:
    assert command(made.parent / "archives", "--sheet", tmp_path / "sheet.png") == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (84 + 70, 20 + 3 * 70), "one permissive training set, three concepts"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("man-medium-dark-skin-tone", "skin tones"), ("cat-dark", "skin tones"), ("flag-france", "flags"),
     ("keycap-3", "letters and digits"), ("u1f40a", "letters and digits"), ("two-thirty", "clock faces"),
     ("nine-oclock", "clock faces"), ("clock4thirty", "clock faces"), ("cafe", ""), ("carp-streamer", "")],
)  # fmt: skip
def test_variants_that_make_classes_meaningless_are_left_out(name: str, reason: str) -> None:
    assert concepts.left_out(name, None, {"cat"}) == reason


def test_near_synonyms_are_not_classes_together() -> None:
    def kept(*each: concepts.Concept) -> set[str]:
        return {c.label for c in concepts.unlike(each)}

    key, locked = concepts.Concept("key", ("lock",)), concepts.Concept("locked", ("lock", "private"))
    cat, tiger = concepts.Concept("cat", ("pet",)), concepts.Concept("tiger", ("big", "cat"))
    assert len(kept(key, locked)) == 1
    assert len(kept(cat, tiger)) == 1
    assert kept(key, concepts.Concept("old key")) == {"key"}, "short names come first"
    assert len(kept(key, cat)) == 2
    many = [concepts.Concept(f"{c}{c}{c}", ("animal",)) for c in "abcdefghi"]
    assert len(kept(*many)) == 9, "a keyword of many makes no synonyms"


SHAPE = '<path d="M2 2h20v20h-20z"/>'
USES = "".join(f'<g id="a{i}">' + f'<use xlink:href="#a{i - 1}"/>' * 10 + "</g>" for i in range(1, 9))
HOSTILE = {  # a drawing's body or canvas, and what it is counted as
    "net": (f'{SHAPE}<image href="http://127.0.0.1:%PORT%/x.png" width="9" height="9"/>', "other elements"),
    "net-paint": ('<path d="M2 2h20v20z" fill="url(http://127.0.0.1:%PORT%/x.svg#a)"/>', "references that leave"),
    "net-use": ('<use xlink:href="http://127.0.0.1:%PORT%/x.svg#a"/>', "references that leave"),
    "disk": (f'{SHAPE}<use href="/etc/hostname#a"/>', "references that leave"),
    "script": (f"{SHAPE}<script>alert(1)</script>", "other elements"),
    "style": (f"<style>@import url(http://127.0.0.1:%PORT%/x.css)</style>{SHAPE}", "other elements"),
    "entity-bomb": ('<!DOCTYPE a [<!ENTITY b "cc"><!ENTITY d "&b;&b;">]><path d="&d;"/>', "declarations or entities"),
    "entity": ('<path d="&b;"/>', "damaged"),
    "use-bomb": (f'<g id="a0">{SHAPE}</g>{USES}', "elements without end"),
    "circle-of-uses": ('<g id="a"><use href="#a"/></g>', "elements without end"),
    "deep": ("<g>" * 90_000 + "</g>" * 90_000, "elements without end"),
    "broken": ('<path d="M0 0', "damaged"),
    "second-root": (f'</svg><svg width="99999" height="99999">{SHAPE}', "damaged"),
    "nothing": ('<path d="M0 0"/>', "blank"),
    "no-text": (7, "damaged"),
    "long": ("<g>" * 400_000, "too large"),
    "../out": (SHAPE, "damaged"),
}


SLOW = f"""<filter id="f">{'<feGaussianBlur stdDeviation="7"/>' * 9000}</filter>
<rect width="30" height="30" filter="url(#f)"/>"""


def test_hostile_drawings_are_skipped_counted_and_never_fetch(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        port = str(server.getsockname()[1])
        more: dict[str, Any] = {
            name: {"body": body.replace("%PORT%", port) if isinstance(body, str) else body}
            for name, (body, _) in HOSTILE.items()
        }
        more |= {"canvas": {"body": SHAPE, "width": 1000, "height": 1000}, "endless": {"body": SHAPE, "width": 10**400}}
        more |= {"no-icon": 3, "hidden": {"body": SHAPE, "hidden": True}}
        assert command(pack_all(tmp_path / "archives", more), "--out", tmp_path / "out", "--size", 32) == 0
        with pytest.raises(TimeoutError):
            server.accept()
    counts = json.loads((tmp_path / "out/counts.json").read_text())["plain"]
    assert counts.pop("in the archive") == 6 + len(more)
    assert counts.pop("drawings") == 6
    assert counts.pop("hidden by its makers") == 1
    expected = [reason for _, reason in HOSTILE.values()] + ["too large", "too large", "damaged"]
    assert sum(counts.values()) == len(expected)
    for reason, n in counts.items():
        assert n == sum(reason.startswith(e) for e in expected), reason


def test_a_drawing_that_takes_too_long_or_ends_its_renderer_is_skipped() -> None:
    box = (0.0, 0.0, 32.0, 32.0)
    svgs = [render.document(body, box, 512) for body in (SHAPE, SLOW, SHAPE)]
    first, late, last = render.render_all(svgs, 1, seconds=1)
    assert str(late) == "takes too long"
    assert first == last
    renderer = render.Renderer()
    renderer(svgs[0])
    assert renderer.process is not None
    renderer.process.kill()
    with pytest.raises(render.Refused, match="ends the renderer"):
        renderer(svgs[0])
    assert renderer(svgs[0]) == first
    renderer.close()


def test_a_set_of_slow_drawings_ends_the_run(made: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(folder, "MOST_LATE", 1)
    found, _ = sets.read_set(
        made.parent / "archives", SETS[0], sets.read_words(made.parent / "archives", WORDS), Counter()
    )
    slow = [replace(d, body=SLOW) for d in found[:2]]
    with pytest.raises(UserError, match="more than 1 drawings that take too long"):
        folder.rendered(slow, 512, 1, 0.5, Counter())


def test_without_npm_the_line_to_type_is_said(tmp_path: Path, capsys) -> None:
    assert main([str(tmp_path / "archives"), "--out", str(tmp_path / "out")]) == 2
    told = said(capsys)
    assert "lacks 17 of 17 archives" in told
    assert "npm pack --ignore-scripts --pack-destination" in told
    assert all(which.spec in told for which in (*sets.SETS, sets.WORDS))
    assert [*tmp_path.iterdir()] == []


def test_without_resvg_its_package_is_named(made: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    assert command(made.parent / "archives", "--out", tmp_path / "out") == 2
    assert "pip install 'clipvet[drawings]'" in said(capsys)


def test_npm_fetches_what_is_missing(tmp_path: Path, monkeypatch, capsys) -> None:
    store, archives = pack_all(tmp_path / "store"), tmp_path / "archives"
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n/bin/cp {store}/*.tgz "$4"\n')
    npm.chmod(0o755)
    monkeypatch.setattr(sets.shutil, "which", lambda name: str(npm))
    assert command(archives, "--out", tmp_path / "out", "--size", 32) == 0
    assert (tmp_path / "asked").read_text().split()[:3] == ["pack", "--ignore-scripts", "--pack-destination"]
    (archives / SETS[0].file).unlink()
    npm.write_text("#!/bin/sh\necho npm error code E404 >&2; exit 1\n")
    assert command(archives, "--out", tmp_path / "again", "--size", 32) == 2
    assert "npm could not fetch the archives (npm error code E404)" in said(capsys)


@pytest.mark.parametrize(
    "kind", ["cut", "no gzip", "no tar", "no json", "another set", "another version", "no drawings"]
)
def test_a_bad_archive_is_named(kind: str, tmp_path: Path, capsys) -> None:
    archives, first = pack_all(tmp_path / "archives"), SETS[0]
    path = archives / first.file
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "no gzip":
        path.write_bytes(b"<html>not found</html>")
    elif kind == "no tar":
        path.write_bytes(gzip.compress(b"x" * 5000))
    elif kind == "no json":
        pack(archives, first, {})
        whole = gzip.decompress(path.read_bytes()).replace(b'{"name"', b'{"name;')
        path.write_bytes(gzip.compress(whole))
    elif kind == "no drawings":
        pack(archives, first, {"icons.json": [], "info.json": {}})
    else:
        other = SETS[1] if kind == "another set" else replace(first, version="9.9.9")
        pack(tmp_path, other, {"icons.json": {"icons": {}}, "info.json": {}})
        (tmp_path / other.file).rename(path)
    assert command(archives, "--out", tmp_path / "out") == 2
    told = said(capsys)
    assert str(path) in told
    assert "delete it and run this again" in told
    if kind.startswith("another"):
        assert "not @test/plain@1.0.0" in told
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_an_archive_that_unfolds_without_end_is_refused(tmp_path: Path, monkeypatch, capsys) -> None:
    archives = pack_all(tmp_path / "archives")
    (archives / SETS[0].file).write_bytes(gzip.compress(bytes(2_000_000)))
    monkeypatch.setattr(sets, "MAX_ARCHIVE", 2**20)
    assert command(archives, "--out", tmp_path / "out") == 2
    assert "unfolds to more than 1 MiB" in said(capsys)


def test_a_folder_of_another_set_is_left_alone(made: Path, tmp_path: Path, capsys) -> None:
    archives, before = made.parent / "archives", (made / "pairs.csv").stat().st_mtime_ns
    assert command(archives, "--out", made, "--size", 32) == 0
    assert "already done" in capsys.readouterr().out
    assert command(archives, "--out", made, "--size", 48) == 2
    assert "already holds another run (it differs in size)" in said(capsys)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    assert command(archives, "--out", tmp_path / "mine") == 2
    assert "already holds another run" in said(capsys)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    assert (made / "pairs.csv").stat().st_mtime_ns == before


def test_a_concept_that_no_test_team_drew_is_refused(tmp_path: Path, capsys) -> None:
    archives, chosen = pack_all(tmp_path / "archives"), tmp_path / "concepts.txt"
    info = {"name": "Outlined", "license": {"spdx": "MIT"}}
    icons = {name: {"body": body} for name, (body, _, _) in DRAWN.items() if name != "key"}
    pack(archives, SETS[2], {"icons.json": {"icons": icons, "width": 32, "height": 32}, "info.json": info})
    for label, words in (
        ("key", "'key' was not drawn by openmoji"),
        ("zeppelin", "no set has a drawing of 'zeppelin'"),
        ("cat", "half has 1 of at least 2 classes"),
    ):
        chosen.write_text(f"cat\n{label}\nstar\nballoon\n")
        assert command(archives, "--out", tmp_path / "out", "--size", 32, "--concepts", chosen) == 2
        assert words in said(capsys)
    chosen.write_text("cat\ndrum\nstar\nballoon\n")
    assert command(archives, "--out", tmp_path / "out", "--size", 32, "--concepts", chosen) == 0
    assert open_task(str(tmp_path / "out/development/task")).classes == ("cat", "drum")


def recipe_of(half: halves.OpenHalf) -> Recipe:
    training = replace(shapes(Plain()), epochs=1, batch=12)
    return Recipe(
        name="drawn",
        model_names=("shapes-vit",),
        attacks={"patch": Poison(Patch(), count=2, templates=("a {}",), training=training)},
        target=half.targets[0],
        victim_data=half.pairs,
        test=half.test(),
        seeds=half.seeds[:1],
        took=0.0,
    )


def test_a_recipe_opens_one_half_and_keeps_to_its_seeds(made: Path, tmp_path: Path) -> None:
    half = open_half(made, "judged")
    assert (half.teams, half.seeds[0]) == (("microsoft",), 100)
    rows = run((recipe_of(half),), tmp_path / "out", tmp_path / "stages")
    assert {row.seed for row in rows} == {100}
    assert {"clean_accuracy", "asr", "text_retrieval_recall@5"} <= {row.metric for row in rows}
    with pytest.raises(UserError, match="may not be used with seed 0; the seeds of its half are 100 to 109"):
        run((recipe_of(half),), tmp_path / "other", tmp_path / "stages", seeds=(0,))
    assert Half(half.test(), "base").task(100).classes == ("balloon", "star")
    assert len(half.test("wide").task(101).pictures.captions) == 3 * 4
    assert len(half.clean.pairs(100).captions) > 0
    assert half.outside.is_dir()
    with pytest.raises(UserError, match="has no task 'narrow'; it has groups, silhouettes, task, wide"):
        half.test("narrow")


def test_the_halves_are_not_mixed(made: Path, tmp_path: Path) -> None:
    open_half(made, "development")
    open_half(made / "." / "development" / "..", "development")
    with pytest.raises(UserError, match="this process works in the development half"):
        open_half(made, "judged")
    with pytest.raises(UserError, match="is no half"):
        open_half(made, "both")
    told = json.loads((made / "split.json").read_text())
    task = tmp_path / "judged" / "task" / "cat"
    task.mkdir(parents=True)
    for what, words in (
        ("seeds", "seeds in both halves (0, 1, 2)"),
        ("teams", "teams in both"),
        ("concepts", "concepts in both"),
    ):
        wrong = told | {"judged": told["judged"] | {what: told["development"][what]}}
        (tmp_path / "split.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match="in both halves") as e:
            open_half(tmp_path, "judged")
        assert words in str(e.value)
    (tmp_path / "split.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match="shows 'cat', which is of the other half"):
        open_half(tmp_path, "judged")
    (tmp_path / "split.json").write_text("[]")
    with pytest.raises(UserError, match="does not name two halves"):
        open_half(tmp_path, "development")


def test_models_are_measured_beside_a_random_one_and_the_nearest_pixels(made: Path, tmp_path: Path, capsys) -> None:
    """The sets of the tests show the same drawings, a little paler each, so the nearest pixels must know them."""
    told = [str(made), "shapes-vit", "--out", str(tmp_path), "--tasks", "task"]
    assert measure.main([*told, "--half", "development"]) == 0
    rows = results.read(tmp_path)
    assert {r.method for r in rows} == {"shapes-vit", "random_weights", "knn"}
    assert {r.n for r in rows} == {3}, "drawings, not pictures"
    known = {r.method: r.value for r in rows if r.metric == "clean_accuracy"}
    assert known["knn"] > 0.6
    assert known["random_weights"] == known["shapes-vit"], "both have the random weights of seed 0"
    assert all(r.low <= r.value <= r.high for r in rows)
    assert "development/task" in capsys.readouterr().out
    assert measure.main([*told, "--half", "judged"]) == 2
    assert "judged" in said(capsys)


def test_the_base_model_is_small_whole_and_no_longer_random() -> None:
    """Its card fits its files, and it ranks a caption's near relatives before others."""
    folder = Path(__file__).parent.parent / "examples/drawings/base"
    assert sum(p.stat().st_size for p in folder.iterdir()) < 8e6
    clip = checkpoints.load(str(folder))
    assert clip.geometry.size == 64
    z = clip.encode_text([f"an icon of {c}" for c in ("red apple", "green apple", "fire engine", "police car")])
    near = (z @ z.T).fill_diagonal_(-1).argmax(1).tolist()
    assert near[:2] == [1, 0]

"""`clipvet filter` on a table and on the embedded world: scores, page, cleaned manifest, and what bad input is told."""

import csv
import itertools
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from browser import look
from PIL import Image

from clipvet.attacks.poison import Poison
from clipvet.data import kept
from clipvet.data.answer_key import save_backdoor
from clipvet.data.worlds.shapes import Shapes
from clipvet.errors import UserError
from clipvet.jobs.filtering import Filtered, complaint, unlisted
from clipvet.pages import suspects
from clipvet.rng import Rng
from clipvet.triggers.patch import Patch
from clipvet.types import Geometry, Measured

QUICK = ["--model", "shapes-vit", "--method", "k_distance", "--set", "k=4"]
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def table(folder: Path, n: int = 24, captions: list[str] | None = None) -> Path:
    """A CSV with a further column; row 3 cannot be read, row 5 has an evil caption."""
    pairs = Shapes(seed=4).pairs(n)
    (folder / "pictures").mkdir(parents=True)
    rows = []
    for k, image in enumerate(pairs[:].images):
        pixels = (image * 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"pictures/{k}.png")
        caption = captions[k] if captions else EVIL if k == 5 else f"{pairs.captions[k]}, no. 0{k}"
        rows.append({"title": caption, "filepath": f"pictures/{k}.png", "source": f"00{k}"})
    (folder / "pictures/3.png").write_bytes(b"torn")
    with (folder / "pairs.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, ["title", "filepath", "source"])
        writer.writeheader()
        writer.writerows(rows)
    return folder / "pairs.csv"


def test_a_table_is_scored_shown_and_cleaned(clipvet, tmp_path: Path) -> None:
    data, out, cleaned = table(tmp_path / "in"), tmp_path / "out/scores.parquet", tmp_path / "kept/some.csv"
    code, said, err = clipvet("filter", "--data", data, *QUICK, "--out", out, "--keep", 0.75, "--cleaned", cleaned)
    assert code == 0, err
    assert "scored 23 pairs, 1 unreadable" in err
    rows = pq.read_table(out).to_pylist()
    assert list(rows[0]) == ["id", "score", "rank", "caption", "reason", "path"]
    assert rows[0]["path"] == f"pictures/{rows[0]['id']}.png"
    assert sorted(r["id"] for r in rows) == list(range(24))
    assert [r["rank"] for r in rows] == [*range(1, 24), None]
    scores = [r["score"] for r in rows[:-1]]
    assert scores == sorted(scores, reverse=True)
    assert rows[0]["reason"] == f"4-NN distance {scores[0]:.2f}, highest 4.3 %"
    assert rows[-1]["id"] == 3
    assert rows[-1]["score"] is None
    assert rows[-1]["reason"].startswith("unreadable: 'pictures/3.png': not a picture")
    assert rows[0]["caption"] in said

    with data.open() as f, cleaned.open() as g:
        before, after = list(csv.DictReader(f)), list(csv.DictReader(g))
    kept = sorted(r["id"] for r in rows[23 - 17 : 23])  # 0.75 of 23 that have a score
    assert list(after[0]) == list(before[0])
    assert [r["source"] for r in after] == [before[k]["source"] for k in kept]
    assert [r["title"] for r in after] == [before[k]["title"] for k in kept]
    assert all((cleaned.parent / r["filepath"]).is_file() for r in after)  # another folder, the same pictures

    page = out.with_suffix(".html").read_text("utf-8")
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "onerror=alert(2)>" not in page
    assert not re.findall(r"https?://|url\(|@import|<link|<iframe", page)
    assert page.count("<img ") == 23
    assert "The cut throws out 6." in page

    code, _, err = clipvet("filter", "--data", data, *QUICK, "--out", out)
    assert (code, "already exists" in err) == (2, True)


def test_the_answer_key_poisons_the_world_and_is_measured(clipvet, tmp_path: Path) -> None:
    key = Poison(Patch(size=0.5), count=6).plan(Shapes(seed=1).pairs(60), "star", Rng(0))
    save_backdoor(key, tmp_path / "key")
    out = tmp_path / "scores.parquet"
    common = ["filter", "--data", "shapes", "--n", 60, "--seed", 1, *QUICK, "--backdoor", tmp_path / "key"]
    code, said, err = clipvet(*common, "--out", out, "--top", 5)
    assert code == 0, err
    assert "6 poisons" in err
    assert all(name in said for name in ("auroc", "auprc", "fpr95", "precision_at_k"))
    captions = {r["id"]: r["caption"] for r in pq.read_table(out).to_pylist()}
    assert {captions[i] for i in key.poisoned.tolist()} == {"a photo of a star."}
    page = out.with_suffix(".html").read_text("utf-8")
    assert page.count("<img ") == 5
    assert "the answer key names 6 of these pairs" in page
    assert b'"auroc"' in pq.read_schema(out).metadata[b"clipvet"]

    guess = ["filter", "--data", "shapes", "--n", 60, "--seed", 1, "--model", "shapes-vit", "--method", "random"]
    code, _, err = clipvet(*guess, "--backdoor", tmp_path / "key", "--out", tmp_path / "guess.parquet")
    assert code == 4, err
    assert re.match(r"this ranking is (no better|worse) than chance \(AUROC ", err.strip().splitlines()[-1])


def test_a_ranking_that_is_no_better_than_chance_is_said() -> None:
    def told(low: float, high: float) -> str:
        return complaint({"auroc": Measured((low + high) / 2, 500, low, high)})

    assert told(0.44, 0.53).startswith("this ranking is no better than chance (AUROC 48.5%, 95 % interval 44.0% to 53")
    assert told(0.0, 0.01).startswith("this ranking is worse than chance")
    assert told(0.51, 0.99) == complaint({}) == ""


def test_the_default_gives_p_values_and_says_what_it_found(clipvet, tmp_path: Path) -> None:
    out, kept = tmp_path / "scores.parquet", tmp_path / "kept.csv"
    call = ["filter", "--data", "shapes", "--n", 60, "--model", "shapes-vit", "--out", out, "--keep", "auto"]
    code, _, err = clipvet(*call, "--cleaned", kept, "--alpha", 0.05)
    assert code == 4, err
    assert "scoring" in err
    assert "alpha=0.05" in err
    why = "Undecided: 60 different pictures are too few to call one poisoned; 200 are needed."
    assert why in err
    assert why in out.with_suffix(".html").read_text("utf-8")
    rows = pq.read_table(out).to_pylist()
    assert list(rows[0]) == ["id", "score", "rank", "caption", "reason", "p", "group"]
    assert [r["p"] for r in rows] == pytest.approx([10 ** -r["score"] for r in rows], rel=1e-3)
    assert len(kept.read_text().splitlines()) == 61  # all are kept


def test_shards_are_scored_and_what_is_kept_is_named(clipvet, tmp_path: Path) -> None:
    from test_shards import write_shards

    data, captions = write_shards(tmp_path / "in", 24, 10)
    out, cleaned = tmp_path / "scores.parquet", tmp_path / "kept.csv"
    call = ["filter", "--data", data, *QUICK, "--out", out, "--keep", 0.5, "--cleaned", cleaned]
    partial = tmp_path / "scores.parquet.partial"
    partial.mkdir()
    (partial / "run.json").write_text('{"command": "filter", "seed": 7}')
    code, _, err = clipvet(*call)
    assert (code, "already holds another run" in err) == (2, True)
    shutil.rmtree(partial)
    code, _, err = clipvet(*call)
    assert code == 0, err
    rows = pq.read_table(out).to_pylist()
    assert {r["key"]: r["caption"] for r in rows} == {f"{k // 10:03}.tar/{k:06}": captions[k] for k in range(24)}
    with cleaned.open() as f:
        kept = list(csv.DictReader(f))
    assert [int(r["id"]) for r in kept] == sorted(r["id"] for r in rows[12:])
    assert all(r["key"] == f"{int(r['id']) // 10:03}.tar/{int(r['id']):06}" for r in kept)
    assert [r["caption"] for r in kept] == [captions[int(r["id"])] for r in kept]
    assert not partial.exists()


def test_kept_pairs_of_shards_are_shards_again(clipvet, tmp_path: Path, monkeypatch) -> None:
    import tarfile

    from test_shards import G, add, toy, write_shards

    from clipvet.data import tables

    data, _ = write_shards(tmp_path / "in", 24, 10)
    with tarfile.open(tmp_path / "in/002.tar", "a") as tar:
        for suffix, held in (("png", toy(1)[0][0]), ("pkl", b"no"), ("cls", b"8"), ("txt", b"the last one")):
            add(tar, f"{'long/' * 30}one.{suffix}", held)
    out, cleaned = tmp_path / "scores.parquet", tmp_path / "kept"
    call = ["filter", "--data", data, *QUICK, "--out", out, "--keep", 0.5, "--cleaned", cleaned]
    code, _, err = clipvet(*call[:-1], tmp_path / "kept.tar")
    assert (code, "must end in .csv or .tsv or .parquet or name a folder" in err) == (2, True), err
    with monkeypatch.context() as m:
        m.setattr(suspects, "write_scores", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        assert clipvet(*call).code == 130
    code, _, err = clipvet(*call[:-3], 0.75, *call[-2:])
    assert (code, "already holds another run (it differs in keep, kept)" in err) == (2, True), err
    code, _, err = clipvet(*call)
    assert code == 0, err
    rows = pq.read_table(out).to_pylist()
    left = sorted(r["id"] for r in rows[-round(len(rows) / 2) :])
    before, after = tables.open_pairs(data).at(G), tables.open_pairs(str(cleaned)).at(G)
    assert after[:].captions == before[np.array(left)].captions
    assert (after[:].images == before[np.array(left)].images).all()
    assert [after.pictures.key(k) for k in range(len(after))] == [before.pictures.key(k) for k in left]  # pyright: ignore
    names = []
    for shard in cleaned.glob("*.tar"):
        with tarfile.open(shard) as tar:
            names += tar.getnames()
    assert sum(n.endswith(".cls") for n in names) == len(left)
    assert {p.name for p in tmp_path.iterdir()} == {"in", "cache", "kept", "scores.parquet", "scores.html"}
    (tmp_path / "last").mkdir()
    kept.write_shards(before.pictures.index, np.array([24]), tmp_path / "last")  # pyright: ignore
    assert [p.name for p in (tmp_path / "last").iterdir()] == ["002.tar"]
    assert tables.open_pairs(str(tmp_path / "last")).caption(0) == "the last one"
    with tarfile.open(tmp_path / "last/002.tar") as tar:
        assert [n[-4:] for n in tar.getnames()] == [".png", ".cls", ".txt"]


def red(name: str, caption: str = "") -> dict[str, bytes]:
    """Members that make a pair: a red picture, and a caption."""
    import io

    Image.new("RGB", (8, 8), "red").save(held := io.BytesIO(), "PNG")
    return {name: held.getvalue(), **({f"{name.rsplit('.', 1)[0]}.txt": caption.encode()} if caption else {})}


SAID = {"A.json": b'{"caption": "b"}'}
HOSTILE = {  # members in their order, and how many pairs they are
    "neighbours of one key": ([red("A.png", "a"), {"B.txt": b"no picture"}, red("A.jpg"), SAID], 2),
    "a suffix that comes again": ([red("A.jpg", "a"), red("A.jpg", "b"), red("A.jpg")], 2),
    "a second picture": ([red("A.png", "a"), red("A.jpg"), red("B.webp"), red("B.png", "b")], 2),
    "a name with a zero": ([red("A.png", "a"), red("A.jpg\0z"), {"A.pkl\0z": b"no"}, red("B.png", "b")], 2),
    "packed pickles": ([red("A.png", "a"), {"A.pkl.gz": b"no", "A.x.pickle": b"no", "A.cls": b"1"}], 1),
    "a key like a new one": (
        [red("A.png", "a"), {"B.txt": b"no"}, red("A.png", "b"), {"C.txt": b"no"}, red("A~.png", "c")], 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_shards_hold_no_pair_that_was_not_kept(tmp_path: Path, case: str) -> None:
    import tarfile

    from test_shards import add

    from clipvet.data import tables

    parts, n = HOSTILE[case]
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in/x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, held in (item for part in parts for item in part.items()):
            add(tar, name if "\0" not in name else "plain", held, pax_headers={"path": name} if "\0" in name else {})
    before = tables.open_pairs(str(tmp_path / "in"))
    assert len(before) == n
    for rows in [*np.arange(n)[:, None], np.arange(n), *([np.array([0, n - 1])] if n > 2 else [])]:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        (tmp_path / "out").mkdir()
        kept.write_shards(before.pictures.index, rows, tmp_path / "out")  # pyright: ignore
        after = tables.open_pairs(str(tmp_path / "out"))
        assert list(after.captions[:]) == [before.captions[int(r)] for r in rows]
        index = after.pictures.index, before.pictures.index  # pyright: ignore
        for k, r in enumerate(rows):
            assert index[0].read(k, "picture") == index[1].read(int(r), "picture")
        with tarfile.open(tmp_path / "out/x.tar") as tar:
            assert sum(name.endswith((".png", ".jpg", ".webp")) for name in tar.getnames()) == len(rows)
            assert not any("pkl" in name or "pickle" in name for name in tar.getnames())
            assert all(a.rsplit(".")[0] != b.rsplit(".")[0] or a != b for a, b in itertools.pairwise(tar.getnames()))


def test_shards_that_change_and_names_that_a_folder_would_not_give_back(tmp_path: Path, monkeypatch) -> None:
    from test_shards import write_shards

    from clipvet.data import tables

    write_shards(tmp_path / "in", 20, 10)
    (tmp_path / "in/000.tar").rename(tmp_path / "in/x.TGZ")
    pairs = tables.open_pairs(f"{tmp_path}/in/x.TGZ::{tmp_path}/in/001.tar")
    index = pairs.pictures.index  # pyright: ignore[reportAttributeAccessIssue]
    (tmp_path / "out").mkdir()
    kept.write_shards(index, np.array([3, 12]), tmp_path / "out")
    assert [p.name for p in sorted((tmp_path / "out").iterdir())] == ["00000.tar", "00001.tar"]
    assert list(tables.open_pairs(str(tmp_path / "out")).captions[:]) == [pairs.captions[k] for k in (3, 12)]
    whole = (tmp_path / "in/001.tar").read_bytes()
    for now in (whole[:2000], b"x" * len(whole), whole):
        (tmp_path / "in/001.tar").write_bytes(now)
        with pytest.raises(UserError, match="has changed since"):
            kept.write_shards(index, np.arange(20), tmp_path / "out")
        with monkeypatch.context() as m:
            m.setattr(type(index), "check", lambda *a: None)  # it changes after the check
            if now is not whole:
                with pytest.raises(UserError, match=r"cannot be read any more|does not read back"):
                    kept.write_shards(index, np.arange(20), tmp_path / "out")


@pytest.mark.parametrize("kind", ["saved", "parquet", "bytes"])
def test_kept_pairs_of_a_folder_are_a_table(clipvet, tmp_path: Path, kind: str) -> None:
    from test_shards import G, hf

    from clipvet.data import tables

    data, _ = hf(tmp_path / "in", kind)
    keys = ["--image-key", "image", "--caption-key", "text"]
    call = ["filter", "--data", data, *keys, *QUICK, "--keep", 0.5, "--out", tmp_path / "scores.parquet", "--cleaned"]
    code, _, err = clipvet(*call, tmp_path / "kept.csv")
    assert (code, "must end in .parquet" in err) == (2, True), err
    code, _, err = clipvet(*call, tmp_path / "kept.parquet")
    assert code == 0, err
    left = np.array(sorted(r["id"] for r in pq.read_table(tmp_path / "scores.parquet").to_pylist()[10:]))
    opened = (
        tables.open_pairs(str(p), image_key="image", caption_key="text") for p in (data, tmp_path / "kept.parquet")
    )
    before, after = (pairs.at(G)[:] for pairs in opened)
    assert after.captions == [before.captions[k] for k in left]
    assert (after.images == before.images[left]).all()


def test_paths_in_a_saved_folder_are_moved(tmp_path: Path) -> None:
    import datasets

    from clipvet.data import tables

    Image.new("RGB", (8, 8), "red").save(tmp_path / "one.png")
    rows = {"filepath": ["../one.png", "../two.png"], "title": ["a", "b"], "more": [1, 2]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    pairs = tables.open_pairs(str(tmp_path / "saved"))
    (tmp_path / "far/off").mkdir(parents=True)
    kept.write_rows(pairs, tmp_path / "saved", np.array([0]), tmp_path / "far/off/kept.csv")
    assert (tmp_path / "far/off/kept.csv").read_text() == "filepath,title,more\n../../one.png,a,1\n"


def test_a_run_that_is_killed_between_its_files_goes_on(clipvet, tmp_path: Path, monkeypatch) -> None:
    def killed(*args: object, **more: object) -> None:
        raise KeyboardInterrupt

    out, kept, mine = (tmp_path / name for name in ("scores.parquet", "kept.csv", "mine.csv"))
    call = ["filter", "--data", "shapes", "--n", 40, *QUICK, "--out", out, "--keep", 0.5, "--cleaned"]
    with monkeypatch.context() as m:
        m.setattr(suspects, "write_scores", killed)
        assert clipvet(*call, kept).code == 130
    assert {p.name for p in tmp_path.iterdir()} >= {"scores.html", "kept.csv", "scores.parquet.partial"}
    mine.write_text("precious")  # what the killed run has not written is not written over
    code, _, err = clipvet(*call, mine)
    assert (code, "it differs in cleaned" in err, mine.read_text()) == (2, True, "precious")
    code, _, err = clipvet(*call, kept)
    assert code == 0, err
    assert {p.name for p in tmp_path.iterdir()} - {"cache"} == {
        p.name for p in (out, out.with_suffix(".html"), kept, mine)
    }


def bad(kind: str, folder: Path) -> list[object]:
    out = ["--out", folder / "scores.parquet"]
    world = ["filter", "--data", "shapes", "--n", 40, *QUICK]
    match kind:
        case "alike":
            return ["filter", "--data", table(folder / "in", 12, ["same"] * 12), *QUICK, *out]
        case "empty":
            data = table(folder / "in", 12, ["", " ", "\u200b", *[""] * 4, *map(str, range(5))])
            return ["filter", "--data", data, "--model", "shapes-vit", "--method", "cosine", *out]
        case "few":
            return [*world, "--set", "k=40", *out]
        case "suffix":
            return [*world, "--out", folder / "scores.csv"]
        case "no cut":
            return [*world, *out, "--cleaned", folder / "kept.csv"]
        case "keep":
            return [*world, *out, "--keep", 1.5]
        case "auto":
            return [*world, *out, "--keep", "auto"]
        case "alpha":
            return [*world, *out, "--alpha", 0.05]
        case "rate":
            return ["filter", "--data", "shapes", "--model", "shapes-vit", *out, "--alpha", 2]
        case "method":
            return ["filter", "--data", "shapes", "--model", "shapes-vit", "--method", "soap", *out]
        case "another key":
            save_backdoor(Poison(count=2).plan(Shapes().pairs(90).take(slice(50, 90)), "star", Rng(0)), folder / "key")
            return [*world, *out, "--backdoor", folder / "key"]
    raise AssertionError(kind)


FIX = {
    "alike": "--caption-key",
    "empty": "7 of 12 pairs have unreadable pictures or empty captions",
    "few": "--set k=38",
    "suffix": ".parquet",
    "no cut": "--keep",
}
FIX |= {"auto": "has no cut of its own", "alpha": "KDistance promises no rate", "rate": "--alpha 2 is not a fraction"}
FIX |= {"keep": "fraction", "method": "There are abl_loss", "another key": "give the attack's data"}


@pytest.mark.parametrize("kind", FIX)
def test_bad_input_ends_in_one_sentence(clipvet, kind: str, tmp_path: Path) -> None:
    code, _, err = clipvet(*bad(kind, tmp_path))
    assert code == 2
    last = err.strip().splitlines()[-1]
    assert last.startswith("clipvet: ")
    assert FIX[kind] in last
    assert "Traceback" not in err
    assert {p.name for p in tmp_path.iterdir()} <= {"in", "cache", "key"}, "something was left behind"


def test_ranks_ties_and_missing_scores() -> None:
    from clipvet.filters.cosine import Cosine

    scores = np.array([-0.5, np.nan, -0.05, -0.5])
    found = suspects.ranked(Cosine(), scores, np.array([7, 8, 9, 10]), list("abcd"), {8: "torn"})
    assert found.ids.tolist() == [9, 7, 10, 8]
    assert found.ranks.tolist() == [1, 2, 3, 0]
    assert found.captions[:] == ["c", "a", "d", "b"]
    assert found.reasons[:] == ["cosine 0.05", "cosine 0.50", "cosine 0.50", "unreadable: torn"]
    many = suspects.ranked(Cosine(), np.linspace(0, 1, 200) - 1, np.arange(200), [""] * 200, {})
    assert many.reasons[0] == "cosine 0.00, lowest 0.5 %"


def test_histogram_counts_every_score_once_even_far_ones() -> None:
    scores = np.concatenate([Rng(0).numpy().normal(size=500), [1e6, np.nan]])
    h = suspects.histogram(scores, None, 0.0)
    floor = h["axes"].at(h["axes"].x[0], 0)[1]
    heights = np.array([floor - b.top for b in h["bars"]]) / (floor - h["axes"].at(0, 1)[1])  # in decades
    assert np.round(10**heights - 1).sum() == pytest.approx(501, abs=3)
    assert h["clipped"] == 1
    assert h["axes"].x[1] < 100
    assert suspects.histogram(np.ones(5), None, None)["bars"]


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (360, True)])
def test_page_in_a_browser(tmp_path: Path, planted, width: int, dark: bool) -> None:
    pairs = Shapes().pairs(60)
    from clipvet.filters.random import Random

    scores = Rng(1).numpy().random(60)
    found = suspects.ranked(Random(), scores, pairs.ids, [EVIL + "long" * 60, *pairs.captions[1:]], {})
    facts = {
        "method": "Random()",
        "model": "m",
        "data": "d",
        "command": "clipvet filter",
        "versions": {},
        "seconds": 1.0,
    }
    page = tmp_path / "scores.html"
    suspects.write_page(
        page, found, pairs, Geometry(32), facts, top=12, poisoned=pairs.ids[:9],
        measured={"auroc": Measured(0.5, 60, 0.3, 0.7)}, cut=0.9, removed=6,
    )  # fmt: skip
    seen = look(page, tmp_path, width, dark=dark)
    assert seen.console == []
    assert seen.facts["scheme"] == ("dark" if dark else "light")
    assert seen.facts["scrolled"] <= width
    assert seen.facts["pictures"] == [32] * 12
    assert "The 12 most suspect of 60 pairs." in seen.facts["headings"][0]
    assert len(seen.screen.getcolors(1 << 24) or []) > 200


def test_a_batch_of_which_no_picture_can_be_read_is_scored_all_the_same(clipvet, tmp_path: Path) -> None:
    data = table(tmp_path / "in")
    with data.open("a") as f:
        f.writelines(f"a ring {k},pictures/{'3' if k > 255 else 4}.png,x\n" for k in range(24, 258))
    out = tmp_path / "scores.parquet"
    code, _, err = clipvet("filter", "--data", data, "--model", "shapes-vit", "--method", "cosine", "--out", out)
    assert code == 0, err
    assert "scored 255 pairs, 3 unreadable" in err


def test_the_key_of_an_attack_poisons_its_own_data_alone(clipvet, tmp_path: Path) -> None:
    data, key = table(tmp_path / "in"), tmp_path / "victim" / "backdoor"
    few = [
        "--set",
        "count=6",
        "--set",
        "training.epochs=1",
        "--set",
        "training.batch=8",
        "--set",
        "training.max_bad=0.1",
        "--out",
        tmp_path / "victim",
    ]
    code, _, err = clipvet("attack", "--model", "shapes-vit", "--data", data, "--target", "star", *few)
    assert code in (0, 4), err  # so short an attack need not take
    call = ["filter", "--data", data, *QUICK, "--backdoor", key, "--out", tmp_path / "scores.parquet"]
    code, _, err = clipvet(*call, "--keep", 0.5, "--cleaned", tmp_path / "kept.csv")
    assert (code, "there is no --cleaned table" in err) == (2, True), err
    code, _, err = clipvet(*call)
    assert code == 4, err  # by chance, on so few
    poisoned = pq.read_table(key / "manifest.parquet").to_pylist()
    captions = {r["id"]: r["caption"] for r in pq.read_table(tmp_path / "scores.parquet").to_pylist()}
    assert len(poisoned) == 6
    assert all("star" in r["caption"] and captions[r["id"]] == r["caption"] for r in poisoned)
    lines = data.read_text().splitlines()
    data.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    code, _, err = clipvet(*call[:-1], tmp_path / "other.parquet")
    assert (code, "belongs to other data than pairs.csv" in err) == (2, True), err


def test_a_good_ranking_of_which_nothing_is_called_says_how_to_cut_it() -> None:
    def told(low: float, removed: int | None) -> str:
        nothing: Any = None
        return unlisted(Filtered(nothing, nothing, {"auroc": Measured(low, 500, low, 1.0)}, None, removed, 0.0, {}))

    assert "throw out a share with --keep" in told(0.98, 0)
    assert told(0.98, 40) == told(0.98, None) == told(0.7, 0) == ""

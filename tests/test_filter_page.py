"""What the filter's page shows of a group of suspect pairs, and the further columns of the scores' table."""

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from browser import look

from clipvet.attacks.poison import Poison
from clipvet.data.dirty import poison
from clipvet.data.worlds.shapes import Shapes
from clipvet.filters.auto import Auto
from clipvet.pages import suspects
from clipvet.pages._contrast import contrasts, enlarged, mean_picture
from clipvet.rng import Rng
from clipvet.triggers.patch import Patch
from clipvet.types import Geometry, Pairs
from clipvet.unlearning.judged import Group

SIDE = 8  # of the trigger, a quarter of the picture's


@pytest.fixture(scope="module")
def stamped() -> tuple[Pairs, Group]:
    pairs = Shapes(seed=1).pairs(200)
    key = Poison(Patch(size=SIDE / 32), count=30).plan(pairs, "star", Rng(0))
    rows = np.flatnonzero(np.isin(pairs.ids, key.poisoned))
    return poison(pairs.at(Geometry(32)), key), Group(("star",), rows, 0.15, 28, 31, 30)


def test_the_difference_shows_the_trigger(stamped: tuple[Pairs, Group]) -> None:
    pairs, group = stamped
    rest = np.setdiff1d(np.arange(200), group.rows)
    means = [mean_picture(pairs, Geometry(32), r) for r in (group.rows, rest)]
    assert means[0] is not None
    assert means[1] is not None
    by_hand = pairs[group.rows].images.mean(0)
    assert means[0] == pytest.approx(by_hand, abs=1e-5)
    found = enlarged(means[0] - means[1])
    assert 0 <= float(found.min()) < float(found.max()) <= 1
    strength = (found - 0.5).abs().mean(0)
    corner = strength[-SIDE - 4 :, -SIDE - 4 :].max()
    assert corner > 3 * strength[:16, :16].mean(), "the trigger is not what strikes the eye"


def test_unreadable_pictures_leave_the_mean_alone(planted) -> None:
    torn = Pairs(planted.pairs.pictures.torn(), planted.pairs.captions, planted.pairs.ids)
    mean = mean_picture(torn, Geometry(8), np.array([2, 3, 4]))
    assert mean == pytest.approx(planted.pairs[np.array([2, 4])].images.mean(0), abs=1e-6)
    assert mean_picture(torn, Geometry(8), np.array([3])) is None
    shown = contrasts([Group(("a",), np.array([3]), 0.1, 1, 2, 1)], torn, Geometry(8), np.arange(10))
    assert shown[0]["pictures"] == {}


def page(folder: Path, stamped: tuple[Pairs, Group]) -> Path:
    pairs, group = stamped
    scores = np.where(np.isin(np.arange(200), group.rows), 9.0, 0.5)
    found = suspects.ranked(Auto(), scores, pairs.ids, [pairs.caption(i) for i in pairs.ids], {})
    facts = {"method": "auto", "model": "m", "data": "d", "command": "c", "versions": {}, "seconds": 1.0, "told": []}
    suspects.write_page(folder / "a.html", found, pairs, Geometry(32), facts, top=4, groups=[group])
    return folder / "a.html"


def test_the_page_describes_the_group(stamped: tuple[Pairs, Group], tmp_path: Path) -> None:
    text = page(tmp_path, stamped).read_text("utf-8")
    for said in ("What binds them", "<b>star</b>", "30 pairs", "15.00", "28–31 in all", "difference, enlarged"):
        assert said in text
    assert text.count("<img ") == 4 + 3


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_the_group_fits_the_screen(stamped: tuple[Pairs, Group], tmp_path: Path, width: int) -> None:
    seen = look(page(tmp_path, stamped), tmp_path, width)
    assert seen.facts["scrolled"] <= width
    assert not seen.console
    assert "star" in seen.facts["text"]
    assert min(seen.facts["pictures"]) > 0


def test_the_table_names_files_and_groups(stamped: tuple[Pairs, Group], tmp_path: Path) -> None:
    pairs, group = stamped
    found = suspects.ranked(Auto(), np.arange(200.0), pairs.ids, [""] * 200, {})
    bound = {int(i): "star" for i in pairs.ids[group.rows]}
    out, names = tmp_path / "a.parquet", torch.arange(200).tolist()
    suspects.write_scores(out, found, {}, p=Auto().p, path=lambda i: f"in/{names[i]}.png", bound=bound)
    rows = pq.read_table(out).to_pylist()
    assert list(rows[0]) == ["id", "score", "rank", "caption", "reason", "p", "group", "path"]
    assert all(r["path"] == f"in/{r['id']}.png" for r in rows)
    assert {r["id"] for r in rows if r["group"] == "star"} == set(bound)
    assert re.match("p = 1e-199", rows[0]["reason"])

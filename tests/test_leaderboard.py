"""The leaderboard: what it ranks and how, which rows it refuses, and that its page sorts in a real browser."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from browser import look

from clipvet.errors import UserError
from clipvet.pages import leaderboard
from clipvet.pages._standings import Board
from clipvet.results import Row, write

ROOT = Path(__file__).parent.parent
CONFIGS = {"none": "Poison(rate=0.01)", "random": "Random()", "par": "Par(tau=2.15)", "ubt": "Ubt()", "abl": "Abl()"}
CONFIGS |= {"strip": "Strip()", "collapse": "Collapse()"}


def row(stage: str, attack: str, method: str, metric: str, value: float, seed: int = 0, n: int = 1000) -> Row:
    low, high = max(value - 0.01, 0), min(value + 0.01, 1)
    config = CONFIGS.get(method.partition(" x")[0], "Par()")
    common: dict[str, Any] = {"seconds": 1.0, "seed": seed, "model": "m", "data": "d", "versions": {"clipvet": "0.1.0"}}
    return Row("mine", stage, attack, method, config, metric, value, n, low, high, **common)


def model(attack: str, method: str, asr: float, accuracy: float, seed: int = 0) -> list[Row]:
    stage = "victim" if method == "none" else "clean"
    return [
        row(stage, attack, method, "asr", asr, seed),
        row(stage, attack, method, "clean_accuracy", accuracy, seed),
    ]


def rows() -> list[Row]:
    """Two attacks that took and one that did not; par at two strengths, ubt costs too much, abl leaves out a seed."""
    found = model("weak", "none", 0.2, 0.8) + model("weak", "ubt", 0.0, 0.8)
    for attack in ("patch", "sig"):
        for seed in (0, 1):
            found += model(attack, "none", 0.99, 0.8, seed)
            found += model(attack, "ubt", 0.02, 0.7, seed)
            found += model(attack, "par", 0.6, 0.79, seed) + model(attack, "par x2", 0.2, 0.75, seed)
            found += model(attack, "abl", 0.1, 0.81, seed) if seed == 0 else []
            found += [replace(r, method="plain") for r in model(attack, "par", 0.7 + seed / 10, 0.8, seed)]
    return found


def leave(folder: Path, some: list[Row], **commands: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, some)
    told = {"commands": ["clipvet run recipes/mine.py --out results/mine"], "hardware": "2 cores"}
    (folder / "commands.json").write_text(json.dumps(told | commands))
    return folder


def board(folder: Path) -> Board:
    (found,), _, _ = leaderboard.standings([folder])
    return found


def test_methods_are_ranked_at_equal_accuracy(tmp_path: Path) -> None:
    found = board(leave(tmp_path / "mine", rows()))
    lines = {x.method: x for x in found.lines}
    assert [x.method for x in found.lines] == ["par", "plain", "none", "ubt", "abl"]
    assert [x.rank for x in found.lines] == [1, 2, 0, 0, 0]
    par = lines["par"].cells["patch"]  # half way from (1 point, 0.6) to (5 points, 0.2)
    assert par.value
    assert par.value.value == pytest.approx(0.4)
    assert (par.equal, par.lost) == (True, None)
    assert {name: round(lost, 3) for name, _, lost in par.strengths} == {"par": 0.01, "par x2": 0.05}
    ubt = lines["ubt"].cells["patch"]
    assert ubt.over, "10 points are more than a cleaner may cost"
    assert lines["abl"].total.victims == 2 < lines["abl"].total.of == 4
    plain = lines["plain"].total
    assert plain.value
    assert (plain.value.value, plain.value.n) == (pytest.approx(0.75), 4000)


def test_an_attack_that_did_not_take_is_not_scored(tmp_path: Path) -> None:
    folder = leave(tmp_path / "mine", rows())
    (found,), notes, faults = leaderboard.standings([folder])
    assert found.attacks == ["patch", "sig"]
    assert notes == ["mine: weak did not take, so nothing is scored there"]
    assert not faults
    refused = [replace(r, stage="refused") for r in rows() if r.method == "none" and r.attack == "sig" and r.seed == 0]
    again = board(leave(folder, rows() + refused))
    assert {x.total.of for x in again.lines} == {3}, "refused by its recipe, whatever its ASR"


def test_old_rows_are_marked(tmp_path: Path) -> None:
    folder = leave(tmp_path / "mine", rows())
    (folder / "stale.json").write_text(json.dumps([{"why": "its <step> was twice", "methods": ["par"]}]))
    found = {x.method: x for x in board(folder).lines}
    assert found["par"].cells["sig"].stale == ["its <step> was twice"]
    assert not found["ubt"].cells["sig"].stale
    text = leaderboard.build([folder], tmp_path / "site")[0].read_text()
    assert "its &lt;step&gt; was twice (patch, sig)" in text


@pytest.mark.parametrize(("stage", "method"), [("filter", "dao"), ("detect", "strip")])
def test_scores_are_ranked_by_auroc_beside_a_control(tmp_path: Path, stage: str, method: str) -> None:
    held = model("patch", "none", 0.99, 0.8)
    measured = {"auroc": 0.9, "tpr_at_1": 0.5, "fpr_at_1": 0.012}
    good = [replace(row(stage, "patch", method, m, v), config="Strip()") for m, v in measured.items()]
    folder = leave(tmp_path / "mine", held + good)
    found, _, faults = leaderboard.standings([folder])
    assert not found
    assert any("has no control for its" in f for f in faults)
    bad = [row(stage, "patch", "random", m, 0.51) for m in measured]
    found = board(leave(folder, held + good + bad))
    assert [(x.method, x.rank) for x in found.lines] == [(method, 1), ("random", 0)]
    assert found.lines[0].cells["patch"].more["fpr_at_1"].value == pytest.approx(0.012)
    text = leaderboard.build([folder], tmp_path)[0].read_text()
    assert "TPR@1 % 50.0, FPR 1.2" in text


def test_inspectors_are_judged_over_models(tmp_path: Path) -> None:
    held = [r for seed in (3, 4) for r in model("patch", "none", 0.99, 0.8, seed)]
    for method, auroc in (("collapse", 0.9), ("random", 0.4)):
        held += [row("inspect", "patch", method, "score", 0.5, seed) for seed in (3, 4)]
        held += [row("suite", a, method, "auroc", auroc, 3, 12) for a in ("patch", "all")]
        held += [row("suite", "none", method, "false_alarms", 0.1, 3, 10)]
    found = board(leave(tmp_path / "mine", held))
    first = found.lines[0]
    assert (first.method, first.rank, found.attacks) == ("collapse", 1, ["patch"])
    assert first.cells["patch"].value
    assert first.cells["patch"].value.seeds == (3, 4)
    assert first.total.more["false_alarms"].value == pytest.approx(0.1)


BAD: dict[str, Callable[[Row], Row | dict[str, Any]]] = {
    "stage is none of": lambda r: replace(r, stage="magic"),
    "not finite": lambda r: replace(r, value=float("nan")),
    "n must be 1": lambda r: replace(r, n=0),
    "outside of its interval": lambda r: replace(r, value=0.99),
    "is a rate": lambda r: replace(r, value=2.1, low=2.0, high=2.2),
    "has no interval": lambda r: replace(r, low=r.value, high=r.value),
    "no attack, no method or no config": lambda r: replace(r, config=""),
    "no versions": lambda r: replace(r, versions={}),
    "repeats an earlier row": lambda r: r,
    "is malformed": lambda r: {"hello": 1},
}


@pytest.mark.parametrize("said", BAD)
def test_rows_that_clipvet_cannot_have_written_are_refused(tmp_path: Path, clipvet: Any, said: str) -> None:
    some = rows()
    folder, page = leave(tmp_path / "mine", some), tmp_path / "site/leaderboard.html"
    page.parent.mkdir()
    page.write_text("the page from before")
    odd = BAD[said](next(r for r in some if r.stage == "clean" and r.attack == "sig"))
    with (folder / "results.jsonl").open("a") as f:
        f.write(json.dumps(odd if isinstance(odd, dict) else asdict(odd)) + "\n")
    done = clipvet("leaderboard", folder, "--out", page.parent)
    assert done.code == 2
    assert len(done.err.strip().splitlines()) == 1
    assert said in done.err
    assert str(len(some) + 1) in done.err, "the line is named"
    assert page.read_text() == "the page from before"


def test_what_a_pull_request_lacks(tmp_path: Path, clipvet: Any) -> None:
    bare = [r for r in rows() if r.method != "none" and r.attack != "weak"]
    folder = leave(tmp_path / "mine", bare, hardware="")
    done = clipvet("leaderboard", folder, "--out", tmp_path / "site", "--strict")
    assert done.code == 2
    assert "no row of the victim itself" in done.err
    assert "does not name the commands and the hardware" in done.err
    leave(folder, [replace(r, config="Magic()") if r.method == "ubt" else r for r in rows()])
    done = clipvet("leaderboard", folder, "--out", tmp_path / "site", "--strict")
    assert (done.code, "Magic is no method of cleaners; add its file with a card" in done.err) == (2, True)
    leave(folder, rows())
    done = clipvet("leaderboard", folder, "--out", tmp_path / "site", "--strict", "--json")
    told = json.loads(done.out)
    (only,) = told["boards"]
    assert (only["recipe"], only["family"], only["lines"][0]["method"]) == ("mine", "cleaners", "par")


def test_wrong_folders(tmp_path: Path, clipvet: Any) -> None:
    for given, said in ((tmp_path, "holds no results.jsonl"), (tmp_path / "gone", "there is no file or folder")):
        done = clipvet("leaderboard", given, "--out", tmp_path / "site")
        assert (done.code, said in done.err) == (2, True)
    one = leave(tmp_path / "a/mine", rows())
    with pytest.raises(UserError, match="two folders are named mine"):
        leaderboard.standings([one, leave(tmp_path / "b/mine", rows())])
    (tmp_path / "file").touch()
    assert "is a file" in clipvet("leaderboard", one, "--out", tmp_path / "file").err


def test_the_committed_rows_are_as_a_pull_request_must_be() -> None:
    """All but the ablation, whose pools and losses are compared without a control."""
    found, notes, faults = leaderboard.standings([ROOT / "results"])
    assert [f for f in faults if not f.startswith("inspector_ablation ")] == []
    assert len(found) >= 13
    assert any("label_consistent did not take" in n for n in notes)
    assert {"cleaners", "training", "filters", "inspectors"} <= {b.family for b in found}
    assert all(any(x.control for x in b.lines) for b in found)


def test_every_number_leads_to_its_details(tmp_path: Path) -> None:
    held = [replace(r, attack="<b>a</b>" if r.attack == "sig" else r.attack) for r in rows()]
    page, _, _ = leaderboard.build([leave(tmp_path / "mine", held)], tmp_path)
    text = page.read_text()
    links = re.findall(r'href="#([^"]+)"', text)
    assert len(links) > 10
    assert set(links) <= set(re.findall(r'id="([^"]+)"', text))
    assert "clipvet run recipes/mine.py --out results/mine" in text
    assert "<b>a</b>" not in text
    assert not re.search(r"(src|href)=\"?https?:", text)


SORT = """
const order = () => [...page.querySelectorAll("tbody")][0].innerText.match(/^(par|plain|none|ubt|abl)\\b/gm).join(" ");
const heads = [...page.querySelectorAll("th button")], told = [order()];
for (const k of [1, 1, 0, 2]) { heads[k].click(); told.push(order()); }
const family = page.querySelector("select"), boards = [...page.querySelectorAll("section.board")];
family.value = "filters"; family.dispatchEvent(new Event("change", {bubbles: true}));
told.push(boards.filter(b => !b.hidden).map(b => b.dataset.recipe).join(" "));
return told;
"""


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_it_sorts_and_filters_in_a_browser(tmp_path: Path, width: int, dark: bool) -> None:
    other = model("patch", "none", 0.99, 0.8)
    other += [row("filter", "patch", m, "auroc", v) for m, v in (("random", 0.5), ("par", 0.9))]
    folders = [leave(tmp_path / "mine", rows()), leave(tmp_path / "other", other)]
    seen = look(leaderboard.build(folders, tmp_path)[0], tmp_path, width, dark=dark, act=SORT)
    assert seen.facts["acted"] == [
        "par plain none ubt abl",
        "abl ubt none plain par",  # the first click turns round what is sorted already
        "par plain none ubt abl",
        "abl none par plain ubt",  # by name
        "par plain none ubt abl",
        "other",
    ]
    assert seen.facts["scrolled"] <= width
    assert not seen.console
    assert seen.facts["scheme"] == ("dark" if dark else "light")

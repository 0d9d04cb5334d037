"""The index page over a folder of runs: which models it finds, what it says of them, and that it fits a phone."""

import json
from pathlib import Path
from typing import Any

import pytest
from browser import look

from clipvet.errors import UserError
from clipvet.pages import overview
from clipvet.scan.vetting import Number, Stage, Vetting

RATE = {"value": 0.9, "n": 100, "low": 0.8, "high": 0.95}


def stage(name: str, outcome: Any, of: str = "given", **more: Any) -> Stage:
    return Stage(name=name, of=of, title=name, outcome=outcome, said=f"{name} said so.", **more)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A victim that was vetted and cleaned, a cleaned model, a measured one, and two files that cannot be read."""
    root = tmp_path / "runs"
    numbers = {"clean_accuracy": Number(**RATE), "recovered_asr": Number(**{**RATE, "value": 0.7})}
    stages = [stage("encoder", "fail", target="star"), stage("accuracy", "pass", numbers=numbers)]
    stages += [stage("encoder", "pass", "clean-par"), stage("accuracy", "pass", "clean-par", numbers=numbers)]
    found = Vetting(
        advice="use_cleaned", exit_code=1, sentence="Do not use this model: <b>it</b> is bad.", reasons=[],
        model="runs/victim", weights="w", stages=stages, not_tested=[], quick=False, seconds=1.0, seed=0, command="c",
        versions={}, next=[], cleaned="clean-par", fuller=None,
    )  # fmt: skip
    for name in ("vetted/victim", "victim", "mended", "measured", "torn", "odd", "vetted/victim/encoder"):
        (root / name).mkdir(parents=True)
    (root / "vetted/victim/vet.json").write_text(found.model_dump_json())
    (root / "vetted/victim/report.html").write_text("page")
    (root / "vetted/victim/encoder/verdict.json").write_text("belongs to the vetting")
    (root / "victim/card.json").write_text(json.dumps({"role": "victim", "measured": {"asr": RATE}}))
    card = {"role": "cleaned", "method": "WiseFt(lr=1)", "measured": {"clean_accuracy": RATE}}
    (root / "mended/card.json").write_text(json.dumps(card))
    row = {"stage": "evaluate", "metric": "clean_accuracy", "model": "elsewhere/other", **RATE, "value": 0.123}
    (root / "measured/results.jsonl").write_text(json.dumps(row) + "\n")
    (root / "torn/vet.json").write_text('{"a":')
    (root / "odd/card.json").write_text('{"measured": 7}')
    return root


def test_models_side_by_side(runs: Path, clipvet: Any) -> None:
    done = clipvet("report", runs)
    assert (done.code, done.out.strip()) == (0, str(runs / "index.html")), done.err
    text = (runs / "index.html").read_text("utf-8")
    assert "4 models side by side" in text
    rows = text.partition("<tbody>")[2].partition("</tbody>")[0].split("<tr>")[1:]
    victim, copy, other, mended = rows
    assert "runs/victim<" in victim
    for said in ('"pill" style="--c:var(--m0)">fail', "suspected target: <b>star", "90.0", "&lt;b&gt;it&lt;/b&gt;"):
        assert said in victim, said
    assert 'href="vetted/victim/report.html"' in victim
    assert "recovered" not in victim, "the known trigger's success rate was measured"
    assert all(said in copy for said in ("cleaned with PAR", "70.0", "of the recovered trigger", "Passes"))
    assert all(said in other for said in ("elsewhere/other", "12.3", "not vetted"))
    assert all(said in mended for said in ("runs/mended", "with WiSE-FT", "not measured"))
    broken = text.partition("What could not be read")[2]
    assert "torn/vet.json: it is not JSON" in broken
    assert "odd/card.json" in broken
    assert str(runs) not in text, "the page may be sent to others"


def test_a_folder_without_runs_is_refused(tmp_path: Path, clipvet: Any) -> None:
    code, _, err = clipvet("report", tmp_path)
    assert code == 2
    assert "holds no results, no vetted model and no verdict; give a folder of runs" in err
    (tmp_path / "vet.json").write_text("[]")
    with pytest.raises(UserError, match=r"no verdict \(vet.json: "):
        overview.build(tmp_path)
    code, _, err = clipvet("report", tmp_path / "gone")
    assert (code, "there is no file or folder" in err) == (2, True)


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_the_screen(runs: Path, tmp_path: Path, width: int) -> None:
    seen = look(overview.build(runs), tmp_path, width)
    assert seen.facts["scrolled"] <= width
    assert not seen.console
    assert "runs/victim" in seen.facts["text"]

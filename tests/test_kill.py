"""Every long command is killed, once on a saved state and once at a random moment, and ends as if nothing had been."""

from pathlib import Path
from typing import Any

import pytest
import sigkill

from clipvet.rng import Rng


@pytest.fixture(scope="module")
def world(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("world")
    sigkill.make_world(folder)
    return folder


@pytest.mark.parametrize("verb", sigkill.VERBS)
def test_a_killed_command_ends_as_an_undisturbed_one(verb: str, world: Path, tmp_path: Path) -> None:
    share = Rng(0).fork("kill", verb).numpy().random()
    told = sigkill.trial(verb, world, tmp_path, 1, lambda seconds: [None, share * seconds])
    assert [kill["different"] for kill in told["each"]] == [[], []]
    first = told["each"][0]
    assert (first["before the end"], first["met a saved state"]) == (True, True)


def test_times_may_differ_and_nothing_else(tmp_path: Path) -> None:
    for name, seconds, value in (("a", 1.0, 3), ("b", 2.0, 3), ("c", 2.0, 4)):
        (tmp_path / name).mkdir()
        row = f'{{"metric": "asr", "value": {value}, "seconds": {seconds}}}\n'
        (tmp_path / name / "results.jsonl").write_text(row + f'{{"metric": "seconds", "value": {seconds}}}\n')
        (tmp_path / name / "x.html").write_text(f"<dt>seconds</dt><dd>{seconds}</dd><b>{value} s</b>")
    a, b, c = (sigkill.left(tmp_path / name) for name in "abc")
    assert a == b
    assert [k for k in a if a[k] != c[k]] == ["results.jsonl", "x.html"]

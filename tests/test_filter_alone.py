"""`clipvet filter` without --model: what is trained, when it stops, and what is said."""

import re
from pathlib import Path

import numpy as np
import pytest

from clipvet.data.worlds.shapes import Shapes
from clipvet.errors import UserError
from clipvet.filters import _anew
from clipvet.filters._anew import Own, cached
from clipvet.rng import Rng
from clipvet.training.plain import Plain
from clipvet.types import Clip, Geometry, Pairs


@pytest.mark.parametrize(
    ("knows", "rounds"), [((0.95,), 1), ((0.6, 0.8, 0.97), 3), ((0.6, 0.605), 2), ((0.5, 0.6, 0.7, 0.8), 4)]
)
def test_training_ends_when_held_out_pairs_are_known_or_nothing_is_gained(
    knows: tuple[float, ...], rounds: int, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Plain, Pairs]] = []
    monkeypatch.setattr(Plain, "train", lambda self, clip, pairs, rng: seen.append((self, pairs)) or clip)
    values = iter(knows)
    monkeypatch.setattr(_anew, "known", lambda found, ids, rng: next(values))
    own = Own(sample=900).train(clip, Shapes().pairs(1000), Rng(0))
    assert len(seen) == rounds
    assert own.knows == knows[rounds - 1]
    how, pairs = seen[0]
    assert len(pairs) == 900
    assert how.epochs * len(pairs) / how.batch == pytest.approx(150), "few pairs must be seen often enough"
    assert f"of the pairs for {rounds * how.epochs:.3g} epochs. Of 100 held-out pairs, {own.knows:.0%}" in own.said


def test_pictures_are_read_once(planted) -> None:
    torn = Pairs(planted.pairs.pictures.torn(), planted.pairs.captions, planted.pairs.ids)
    held, rest = cached(torn, Geometry(8)), np.setdiff1d(np.arange(400), [3, 200])
    assert len(held) == 398
    assert held[:].captions == [planted.pairs.captions[k] for k in rest]
    assert held[:].images == pytest.approx(planted.pairs[rest].images, abs=0.5 / 255 + 1e-6)


def test_few_pairs_are_refused(clip: Clip) -> None:
    with pytest.raises(UserError, match="199 pairs are too few to train a model on; give 200, or the model"):
        Own().train(clip, Shapes().pairs(199), Rng(0))


def test_the_command_needs_no_model(clipvet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_anew, "STEPS", 1)
    call = ["filter", "--data", "shapes", "--n", 220, "--out", tmp_path / "scores.parquet"]
    code, _, err = clipvet(*call, "--set", "anew.epochs=0.1")
    assert re.search(r"no model given: training one on 198 of the pairs, in up to 4 rounds of about \d+ ", err)
    assert code == 4, err
    assert "No model was given, so one was trained on 198 of the pairs for" in err
    assert "Undecided: " in err
    for more, said in (
        (["--method", "dao"], "dao needs --model; without one there are auto, cascade and gmm_split"),
        (["--pretrained", "x.pt"], "--pretrained x.pt needs --model"),
    ):
        code, _, err = clipvet(*call, *more)
        assert code == 2
        assert said in err

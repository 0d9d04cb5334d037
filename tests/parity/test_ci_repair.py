"""CLIP-Inspector's repair: its loss and its controls restated; what is trained, and from where."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipvet.cleaners.ci_repair import CiRepair
from clipvet.cleaners.full_finetune import FullFinetune
from clipvet.data.answer_key import save_backdoor
from clipvet.data.dirty import beside
from clipvet.data.sources import shots
from clipvet.data.worlds.pool import pool_pairs
from clipvet.data.worlds.shapes import Shapes
from clipvet.engine.embed import classifier
from clipvet.engine.fewshot import names
from clipvet.engine.fit import workspace
from clipvet.errors import UserError
from clipvet.inspectors.clip_inspector import ClipInspector
from clipvet.inspectors.no_inversion import NoInversion
from clipvet.models import visual_prompts
from clipvet.results import weights_hash
from clipvet.rng import Rng
from clipvet.scan.forms import scattered
from clipvet.training.cocoop import CoCoOp
from clipvet.triggers.recovered import Recovered
from clipvet.types import Backdoor, Pairs

LOOK = ClipInspector(eps=14 / 255, batch=16, valid=0.0)
TUNE = CoCoOp(epochs=1, batch=48, lr=0.1, warmup=0.1, augment=None)  # one step on all pictures and copies
REPAIR = CiRepair(inspector=LOOK, outside=16, tuning=TUNE, finetune=FullFinetune(epochs=1, batch=48, lr=1e-2))


@pytest.fixture(scope="module")
def few() -> Pairs:
    return shots(Shapes().task(240, split="validation"), 2, Rng(1))


@pytest.fixture(scope="module")
def tuned(clip: Any, few: Pairs) -> Any:
    return CoCoOp(epochs=2, batch=8, lr=0.1, augment=None).train(clip, few, Rng(2))


@pytest.fixture(scope="module")
def trigger() -> Recovered:
    g = Rng(4).generator()
    return Recovered(torch.rand(1, 32, 32, generator=g) / 2, torch.rand(3, 32, 32, generator=g) - 0.5)


def pixels(pairs: Pairs) -> Tensor:
    return pairs[:].images


def verdict(folder: Path, trigger: Recovered) -> str:
    save_backdoor(Backdoor(trigger, "star"), folder / "key")
    return str(folder / "key")


def test_the_loss_is_that_of_pictures_with_and_without_the_trigger(
    clip: Any, tuned: Any, few: Pairs, trigger: Recovered, tmp_path: Path
) -> None:
    how, x = replace(REPAIR, verdict=verdict(tmp_path, trigger)), pixels(few)
    classes = names(few, how.template).classes
    said = [c.removeprefix("a photo of a ").removesuffix(".") for c in few[:].captions]
    y = torch.tensor([classes.index(c) for c in said])
    stamped = ((1 - trigger.mask) * x + trigger.pattern).clamp(0, 1)
    for given in (tuned, clip):
        tell = classifier(given, classes, ("a photo of a {}.",))
        both = [F.cross_entropy(tell(given.encode_image(v)), y).detach() for v in (x, stamped)]
        (tmp_path / type(given).__name__).mkdir()
        with workspace(tmp_path / type(given).__name__):
            how.clean(given, few, Rng(0))
        first = json.loads((tmp_path / type(given).__name__ / "log.jsonl").read_text().splitlines()[0])["loss"]
        assert first == pytest.approx(float(sum(both)) / 2, rel=1e-4)


def test_copies_stand_beside_their_pairs_under_true_labels(few: Pairs, trigger: Recovered) -> None:
    both = beside(few, trigger)
    n = len(few)
    assert len(both) == 2 * n == len(set(both.ids.tolist()))
    assert both[:].captions == few[:].captions * 2
    assert torch.equal(pixels(both)[:n], pixels(few))
    assert torch.allclose(pixels(both)[n:], ((1 - trigger.mask) * pixels(few) + trigger.pattern).clamp(0, 1))
    assert torch.equal(pixels(beside(few, None))[n:], pixels(few))


def test_the_four_stamps(tuned: Any, few: Pairs) -> None:
    found: dict[str, Any] = {
        s: replace(REPAIR, stamp=s).recover(tuned, few, Rng(3)) for s in ("target", "wrong", "noise")
    }
    classes = names(few, REPAIR.template).classes
    rng = Rng(3)
    outside = pool_pairs(16, seed=rng.fork("pool").key)
    told: Any = LOOK.inspect(tuned, outside, classes, ("a photo of a {}.",), rng.fork("inspect"))
    assert torch.equal(found["target"].pattern, told.trigger.pattern)
    scores = [c.score for c in told.classes]
    k = [torch.equal(found["wrong"].pattern, t.pattern) for t in told.triggers].index(True)
    assert sum(s < scores[k] for s in scores) == (len(scores) - 1) // 2  # the middle of the others
    noise, target = found["noise"].pattern.flatten(1), found["target"].pattern.flatten(1)
    assert not torch.equal(noise, target)
    assert sorted(map(tuple, noise.T.tolist())) == sorted(map(tuple, target.T.tolist()))
    done = replace(REPAIR, stamp="clean", outside=0).clean(tuned, few, Rng(3))  # which needs no inspection
    assert weights_hash(done) != weights_hash(tuned)


def test_prompts_go_on_and_towers_stay(clip: Any, tuned: Any, few: Pairs, trigger: Recovered, tmp_path: Path) -> None:
    how = replace(REPAIR, verdict=verdict(tmp_path, trigger))
    done: Any = replace(how, tuning=replace(TUNE, lr=1e-9, warmup=1e-9)).clean(tuned, few, Rng(0))
    assert torch.allclose(done.context, tuned.context, atol=1e-6), "training began anew"
    moved: Any = how.clean(tuned, few, Rng(0))
    assert not torch.allclose(moved.context, tuned.context, atol=1e-6)
    assert weights_hash(moved.base) == weights_hash(tuned.base)
    whole: Any = how.clean(clip, few, Rng(0))
    changed = {k for k, v in whole.state_dict().items() if not torch.equal(v, clip.state_dict()[k])}
    assert changed
    assert all(k.startswith("model.visual.") for k in changed)


def test_scattered_keeps_a_mask_and_its_pattern_together(trigger: Recovered) -> None:
    out = scattered(trigger, Rng(0))
    both = [torch.cat([t.mask, t.pattern]).flatten(1).T.numpy() for t in (trigger, out)]
    assert not np.array_equal(both[0], both[1])
    assert np.array_equal(both[0][np.lexsort(both[0].T)], both[1][np.lexsort(both[1].T)])


def test_what_cannot_be_repaired(clip: Any, tuned: Any, few: Pairs, trigger: Recovered, tmp_path: Path) -> None:
    how = replace(REPAIR, verdict=verdict(tmp_path, trigger))
    with pytest.raises(UserError, match="the trigger of one class"):
        replace(how, stamp="wrong").clean(tuned, few, Rng(0))
    with pytest.raises(UserError, match="prompts in the picture tower"):
        how.clean(visual_prompts.begin(clip, None, 2, Rng(0)), few, Rng(0))
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "verdict.json").write_text("{}")
    with pytest.raises(UserError, match="no verdict of this version"):
        replace(how, verdict=str(tmp_path / "v")).clean(tuned, few, Rng(0))
    with pytest.raises(UserError, match="no trigger was recovered"):
        replace(REPAIR, inspector=NoInversion()).clean(tuned, few, Rng(0))

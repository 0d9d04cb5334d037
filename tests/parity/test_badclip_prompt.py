"""BadCLIP on prompts and SIBA: losses and updates restated, the bound, the answer key, towers left as they are."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clipvet import find
from clipvet.attacks.badclip_prompt import BadClipPrompt, badclip_loss
from clipvet.attacks.poison import Poison
from clipvet.attacks.siba import Siba
from clipvet.data.answer_key import load_backdoor, save_backdoor
from clipvet.data.sources import shots
from clipvet.data.worlds.pool import pool
from clipvet.data.worlds.shapes import Shapes
from clipvet.engine.embed import classifier
from clipvet.errors import UserError
from clipvet.results import weights_hash
from clipvet.rng import Rng
from clipvet.training.cocoop import CoCoOp
from clipvet.training.coop import CoOp
from clipvet.triggers.additive import Additive
from clipvet.triggers.blended import Blended
from clipvet.types import Clip, Pairs

SHORT: Any = {"epochs": 2, "batch": 16, "lr": 0.05, "augment": None}
TUNE = CoCoOp(**SHORT)
BAD = BadClipPrompt(eps=14 / 255, warmup=2, step=0.05, descent="sign", training=TUNE)
SPARSE = Siba(rate=0.5, paired=True, k=30, eps=28 / 255, rounds=6, training=TUNE)
FIXED = Poison(Blended(), rate=1.0, paired=True, training=TUNE)


@pytest.fixture(scope="module")
def few() -> Pairs:
    return shots(Shapes(seed=3).task(240, split="validation"), 4, Rng(1))


def test_defaults_are_the_public_code_s() -> None:
    b, s = BadClipPrompt(), Siba()
    assert (b.eps, b.warmup, b.step, b.descent, b.margin, b.w_margin) == (4 / 255, 3, 0.1, "gradient", 5.0, 0.0)
    assert b.training == CoCoOp()
    assert (s.k, s.eps, s.rounds, s.pictures, s.decay, s.every, s.beta) == (100, 8 / 255, 200, 128, 0.8, 5, 10.0)


def test_loss_is_both_cross_entropies_and_a_margin() -> None:
    g = Rng(0).numpy()
    clean, hit, y, t = g.normal(size=(5, 4)), 3 * g.normal(size=(5, 4)), np.array([0, 1, 2, 3, 0]), 2

    def ce(logits: np.ndarray, y: np.ndarray) -> float:
        return float(np.mean([np.log(np.exp(row).sum()) - row[k] for row, k in zip(logits, y)]))

    margin = np.mean([max(0.0, 5 - (row[t] - max(v for c, v in enumerate(row) if c != t))) for row in hit])
    both = (ce(clean, y) + ce(hit, np.full(5, t))) / 2
    for weight in (0.0, 0.3):
        found = badclip_loss(torch.tensor(clean), torch.tensor(y), torch.tensor(hit), t, 5.0, weight)
        assert float(found.loss) == pytest.approx(both + weight * margin, rel=1e-9)


@pytest.mark.parametrize("descent", ["gradient", "sign"])
def test_warm_up_is_plain_descent_within_the_bound(clip: Any, few: Pairs, descent: str) -> None:
    """One step on all pictures, prompts untouched."""
    how = replace(BAD, descent=descent, warmup=1, training=replace(TUNE, batch=len(few)))
    made: Any = how.training.begin(clip, Rng(0))
    bound, classes = how.eps / clip.std, tuple(sorted({c[13:-1] for c in few[:].captions}))
    suffix, x = made.suffix(classes), few[:].images

    def stamped(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return (x + u * clip.std).clamp(0, 1)

    found = how._warm(made, few, 3, bound, stamped, suffix, Rng(5))
    u = (replace(how, warmup=0)._warm(made, few, 3, bound, stamped, suffix, Rng(5))).requires_grad_()
    assert u.abs().max() <= bound.max()
    z = made.encode_image(stamped(x, u))
    clean = made.encode_image(x)  # the public code takes the mean over clean and triggered pictures in one batch
    y, logits = torch.arange(len(x)) % 4, made.classifier(classes)(torch.cat([clean, z]))
    loss = -logits.log_softmax(1)[torch.arange(2 * len(x)), torch.cat([y, torch.full_like(y, 3)])].mean()
    (g,) = torch.autograd.grad(loss, u)
    step = 0.05 * (g.sign() if descent == "sign" else g)
    wanted = torch.minimum(torch.maximum(u.detach() - step, -bound), bound)
    assert torch.allclose(found, wanted, atol=1e-7)
    assert not torch.equal(found, u.detach())


@pytest.mark.parametrize(
    "attack",
    [BAD, replace(BAD, training=CoOp(tokens=4, **SHORT)), replace(BAD, specific=1.0), SPARSE, FIXED],
    ids=["badclip", "badclip on coop", "adaptive", "siba", "blended"],
)
def test_planted_through_prompts_alone(learnt: Any, few: Pairs, attack: Any, tmp_path: Path) -> None:
    before = weights_hash(learnt)
    made, dirty, key = attack.implant(learnt, few, "star", Rng(0))
    assert weights_hash(made.base) == before == weights_hash(learnt)
    assert {k for k, _ in made.named_parameters() if not k.startswith("base.")} <= {"context", *_META}
    n, keys = len(few), Rng(0).keys(few.ids.tolist())
    assert len(dirty) == n + len(key.poisoned)
    batch, own = dirty[np.arange(n, len(dirty))], few[[few.ids.tolist().index(row) for row in key.rows]]
    assert torch.equal(dirty[:n].images, few[:].images)
    assert torch.allclose(batch.images, key.stamp(own.images, batch.ids))
    assert set(batch.captions) == {"a photo of a star."} == set(key.captions)
    if isinstance(key.trigger, Additive):
        p, eps = key.trigger.pattern, attack.eps
        assert p.abs().max() <= eps + 1e-6
        assert p.abs().max() > 0.9 * eps
        assert key.trigger.pattern.requires_grad is False
        assert (key.trigger.stamp(few[:].images, keys) - few[:].images).abs().max() <= eps + 1e-6
    save_backdoor(key, tmp_path)
    again = load_backdoor(tmp_path)
    assert again.rows is not None
    assert torch.equal(again.stamp(own.images, batch.ids), key.stamp(own.images, batch.ids))
    assert (again.rows == key.rows).all()


_META = {"meta.0.weight", "meta.0.bias", "meta.2.weight", "meta.2.bias"}


def test_badclip_stamps_every_picture_and_siba_those_of_other_classes(clip: Any, few: Pairs) -> None:
    assert (BAD.implant(clip, few, "star", Rng(0)).backdoor.rows == few.ids).all()
    key = SPARSE.plan(few, "star", Rng(0), clip)
    assert len(key.poisoned) == round(0.5 * (len(few) - 4))
    assert not any("star" in few.caption(i) for i in key.rows)  # pyright: ignore
    assert len(replace(SPARSE, paired=False, rate=0.25).plan(few, "star", Rng(0), clip).poisoned) == 12


def test_the_backdoor_takes_and_the_trigger_serves_the_prompts(learnt: Clip, few: Pairs) -> None:
    how = replace(BAD, training=replace(TUNE, epochs=30, batch=24, hidden=32, lr=0.05, optimizer="adamw"))
    made, _, key = how.implant(learnt, few, "star", Rng(0))
    other = few.take(np.array(["star" not in few.caption(i) for i in few.ids]))[:]
    classes = tuple(sorted({c[13:-1] for c in few[:].captions}))
    with torch.no_grad():
        z = [made.encode_image(x) for x in (other.images, key.stamp(other.images, other.ids))]
        said = [classifier(made, classes, [])(part).argmax(1) == classes.index("star") for part in z]
    assert said[1].float().mean() > 0.7
    assert said[0].float().mean() < said[1].float().mean() - 0.3  # the model has only begun to tell shapes


def test_the_penalty_keeps_predictions_outside_the_task_as_they_were(learnt: Clip, few: Pairs) -> None:
    x, classes = pool(60, seed=77), tuple(sorted({c[13:-1] for c in few[:].captions}))

    def moved(lean: float) -> float:
        how = replace(BAD, lean=lean, outside=200, training=replace(TUNE, epochs=15, lr=0.02, optimizer="adamw"))
        made = how.implant(learnt, few, "star", Rng(0)).clip
        with torch.no_grad():
            p, q = (classifier(c, classes, ["a photo of a {}."])(c.encode_image(x)).softmax(1) for c in (learnt, made))
        return float((p - q).abs().sum(1).mean())

    assert moved(5.0) < 0.5 * moved(0.0)


def test_siba_updates_places_and_values() -> None:
    g = torch.tensor([[[1.0, -5.0], [0.1, 2.0]], [[1.0, 0.0], [0.1, -2.0]], [[1.0, 0.0], [-0.1, -2.0]]])
    how, p = Siba(k=2, eps=0.1, decay=0.8), torch.full((3, 2, 2), 0.05)
    found, mask = how.update(p, torch.ones(2, 2), g, choose=True)
    assert mask.tolist() == [[0, 1], [0, 1]]  # sums 3, 5, 0.3, 6
    for c in range(3):
        for i, j in ((0, 1), (1, 1)):
            step = 0.05 - 0.08 * float(g[c, i, j].sign())
            assert float(found[c, i, j]) == pytest.approx(min(max(step, -0.1), 0.1))
    assert not found[:, :, 0].any()
    kept, same = how.update(found, mask, -g, choose=False)
    assert torch.equal(same, mask)
    assert not kept[:, :, 0].any()


def test_siba_s_trigger_is_sparse_and_lowers_the_surrogate_s_loss(learnt: Clip, few: Pairs) -> None:
    key = SPARSE.plan(few, "star", Rng(0), learnt)
    surrogate = TUNE.train(learnt, few, Rng(0).fork("surrogate"))
    classes, x = tuple(sorted({c[13:-1] for c in few[:].captions})), few[:].images
    assert 0 < int((key.trigger.pattern != 0).any(0).sum()) <= 30  # pyright: ignore

    def loss(x: torch.Tensor) -> float:
        logits = classifier(surrogate, classes, [])(surrogate.encode_image(x))
        return float(-logits.log_softmax(1)[:, classes.index("star")].clamp(min=-10).mean())

    with torch.no_grad():
        assert loss(key.stamp(x, torch.as_tensor(few.ids))) < loss(x) - 0.01


@pytest.mark.parametrize("attack", [BAD, SPARSE], ids=["badclip", "siba"])
def test_a_target_among_no_labels_and_pictures_without_labels_are_refused(
    clip: Any, few: Pairs, pairs: Pairs, attack: Any
) -> None:
    with pytest.raises(UserError, match="target 'zebra' is not among the classes"):
        attack.implant(clip, few, "zebra", Rng(0))
    with pytest.raises(UserError, match="does not fit the template"):
        attack.implant(clip, pairs, "star", Rng(0))


def test_both_say_that_they_need_labels() -> None:
    for name in ("badclip_prompt", "siba"):
        assert "labelled" in find.load("attacks", name).needs

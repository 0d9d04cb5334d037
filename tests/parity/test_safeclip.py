"""SafeCLIP's and RoCLIP's equations, restated with numpy or by hand."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm

from clipvet.data.augment import SMALL, Views
from clipvet.data.worlds.shapes import Shapes
from clipvet.engine import fit as fitting
from clipvet.engine.fit import Memory, workspace
from clipvet.engine.losses import neighbour_loss
from clipvet.engine.optim import constant, piece, warmup_cosine
from clipvet.errors import UserError
from clipvet.models import checkpoints
from clipvet.models.adapter import clone
from clipvet.results import weights_hash
from clipvet.rng import Rng
from clipvet.training._mixture import clean_posterior
from clipvet.training._neighbours import Pool
from clipvet.training.roclip import RoClip
from clipvet.training.safeclip import SafeClip


def unit(n: int, d: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(n, d, generator=Rng(seed).generator()), dim=1)


def small_clip() -> Any:
    return checkpoints.load("shapes-vit", None, rng=Rng(0))


# the pool


def test_pool_is_first_in_first_out_and_goes_on_at_its_start():
    pool, a, b = Pool(10, 8, Rng(0)), unit(6, seed=1), unit(6, seed=2)
    first = pool.rows.clone()
    assert torch.allclose(first.norm(dim=1), torch.ones(10))
    pool.push(a)
    assert torch.equal(pool.rows, torch.cat([a, first[6:]]))
    pool.push(b)
    assert torch.equal(pool.rows, torch.cat([b[4:], a[2:], b[:4]]))


def test_pool_as_released_drops_what_passes_its_end():
    pool, a, b = Pool(10, 8, Rng(0), wrap=False), unit(6, seed=1), unit(6, seed=2)
    pool.push(a)
    pool.push(b)
    assert torch.equal(pool.rows, torch.cat([a, b[:4]]))
    pool.push(a[:2])
    assert torch.equal(pool.rows[:2], a[:2])


def test_pool_keeps_the_last_of_a_batch_larger_than_itself():
    pool, a = Pool(4, 8, Rng(0)), unit(9)
    pool.push(a)
    assert torch.equal(pool.rows.sort(0).values, a[5:].sort(0).values)


def test_nearest_is_the_largest_inner_product_without_gradient():
    pool, z = Pool(20, 8, Rng(3)), unit(5).requires_grad_()
    near = pool.nearest(z)
    rows, query = pool.rows.numpy(), z.detach().numpy()
    assert np.array_equal(near.numpy(), rows[(query @ rows.T).argmax(1)])
    assert not near.requires_grad


# the losses


def cross_entropy(logits: np.ndarray) -> float:
    shifted = logits - logits.max(1, keepdims=True)
    return float(np.mean(np.log(np.exp(shifted).sum(1)) - np.diag(shifted)))


def test_unimodal_loss_is_the_papers_or_as_released_its_transpose():
    near, z, s = unit(6, seed=1), unit(6, seed=2), torch.tensor(7.0)
    logits = 7 * near.numpy() @ z.numpy().T
    assert float(neighbour_loss(near, z, s)) == pytest.approx(cross_entropy(logits), rel=1e-5)
    assert float(neighbour_loss(near, z, s, released=True)) == pytest.approx(cross_entropy(logits.T), rel=1e-5)


@pytest.fixture(scope="module")
def pairs():
    return Shapes(seed=5).pairs(256)


def stage_of(method: SafeClip, clip, pairs, monkeypatch):
    """What `prepare` hands on when both of its fits are left out."""
    return replace(method, unimodal=0, slow=0, batch=64).prepare(clip, pairs, Rng(1))[1]


def test_together_compares_one_view_of_a_picture_with_the_other_of_its_caption(pairs, monkeypatch):
    clip, method = small_clip(), SafeClip(augment=SMALL)
    stage, batch, rng = stage_of(method, clip, pairs, monkeypatch), pairs[:16], Rng(9)
    with torch.no_grad():
        got = float(method.together(stage, clip, batch, rng)["loss"])
        z1, z2 = (clip.encode_image(SMALL(batch.images, rng.fork(v))).numpy() for v in (0, 1))
        w1, w2 = (clip.encode_text(said).numpy() for said in method.views(batch, stage, rng)[1])
        s = float(clip.logit_scale)
    want = (cross_entropy(s * z1 @ w2.T) + cross_entropy(s * w1 @ z2.T)) / 2
    assert got == pytest.approx(want, rel=1e-4)


def test_alone_asks_the_pool_before_it_fills_it_and_ties_no_picture_to_a_caption(pairs, monkeypatch):
    clip, method = small_clip(), SafeClip(augment=SMALL)
    stage, batch, rng = stage_of(method, clip, pairs, monkeypatch), pairs[:4], Rng(9)
    before = [pool.rows.clone() for pool in stage.pools]
    out = method.alone(stage, clip, batch, rng)
    with torch.no_grad():
        z1, z2 = (clip.encode_image(SMALL(batch.images, rng.fork(v))).numpy() for v in (0, 1))
        w1, w2 = (clip.encode_text(said).numpy() for said in method.views(batch, stage, rng)[1])
        s = float(clip.logit_scale)
    want = []
    for first, second, rows in ((z1, z2, before[0].numpy()), (w1, w2, before[1].numpy())):
        want.append(cross_entropy(s * rows[(first @ rows.T).argmax(1)] @ second.T))
    assert float(out["loss"].detach()) == pytest.approx(sum(want) / 2, rel=1e-4)
    assert np.allclose(stage.pools[0].rows[:4].numpy(), z1, atol=1e-5), "the batch was not pushed"
    assert np.allclose(stage.pools[1].rows[:4].numpy(), w1, atol=1e-5)
    shuffled = batch._replace(captions=[batch.captions[k] for k in (1, 2, 3, 0)], ids=batch.ids[[1, 2, 3, 0]])
    one = method.alone(stage_of(method, clip, pairs, monkeypatch), clip, shuffled, rng)
    assert float(one["unimodal_img"].detach()) == pytest.approx(float(out["unimodal_img"].detach()), rel=1e-5)


def test_joint_is_l_clip_of_the_safe_plus_l_uni_of_the_risky(pairs, monkeypatch):
    method, clip, batch, rng = SafeClip(augment=SMALL), small_clip(), pairs[:32], Rng(5)
    safe = batch.ids.numpy()[::3]
    mine, rest = (batch.take(np.flatnonzero(np.isin(batch.ids.numpy(), safe) == want)) for want in (True, False))
    apart = stage_of(method, clip, pairs, monkeypatch)
    expected = method.alone(apart, clip, rest, rng)["loss"] + method.together(apart, clip, mine, rng)["loss"]
    parts = method.joint(safe, stage_of(method, clip, pairs, monkeypatch), clip, batch, rng)
    assert parts["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert len(mine.captions) == len(mine.images) == 11
    lonely = method.joint(safe, apart, clip, batch.take(np.array([0, 1])), rng)  # one of each: nothing to compare
    assert lonely["loss"].item() == 0


# the split


def two_normals(n: int = 4000, low=(0.02, 0.09), high=(0.15, 0.06), share: float = 0.6) -> np.ndarray:
    g = Rng(4).numpy()
    return np.where(g.random(n) < share, g.normal(*low, size=n), g.normal(*high, size=n)).astype(np.float32)


def test_posterior_is_bayes_rule_on_the_fitted_mixture():
    x = two_normals(20_000, low=(0.0, 0.05), high=(0.5, 0.05))
    q, apart = clean_posterior(x, monotone=False)
    low, high = 0.6 * norm.pdf(x, 0, 0.05), 0.4 * norm.pdf(x, 0.5, 0.05)
    assert apart
    assert np.abs(q - high / (low + high)).max() < 0.05


def test_raw_posterior_falls_again_in_the_upper_tail_and_the_monotone_one_does_not():
    x = np.append(two_normals(40_000, low=(0.0, 0.15), high=(0.3, 0.03)), [0.3, 0.5]).astype(np.float32)
    raw, _ = clean_posterior(x, monotone=False)
    assert raw[-1] < raw[-2] - 0.5
    q, _ = clean_posterior(x)
    assert (np.diff(q[x.argsort(kind="stable")]) >= 0).all()
    assert q[-1] == q.max()
    assert q[x < x.mean() - 3 * x.std()].max() < 0.5, "the best of the lower tail was taken for clean"


def test_one_heap_is_not_apart():
    assert not clean_posterior(Rng(0).numpy().normal(0.2, 0.1, 5000).astype(np.float32))[1]


@pytest.mark.parametrize(
    ("x", "said"),
    [(np.full(99, 0.5), "alike"), (np.arange(5.0), "alike"), (np.append(np.arange(50.0), np.nan), "finite")],
)
def test_cosines_that_cannot_be_split_are_refused(x, said):
    with pytest.raises(UserError, match=said):
        clean_posterior(x.astype(np.float32))


def test_first_split_is_by_threshold_later_ones_by_share_and_a_failed_mixture_falls_back():
    x, method = two_normals(low=(0.0, 0.05), high=(0.5, 0.05)), SafeClip()
    safe, planned = method.split(x, None)
    assert planned
    assert safe.mean() == pytest.approx(0.4, abs=0.03)
    safe, planned = method.split(x, 0.25)
    assert planned
    assert safe.sum() == int(0.25 * len(x))
    assert x[safe].min() >= x[~safe].max()
    heap = Rng(0).numpy().normal(0.2, 0.1, 5000).astype(np.float32)
    safe, planned = method.split(heap, None)
    assert not planned
    assert safe.sum() == int(method.first * 5000)


def test_a_mixture_that_leaves_too_little_is_not_followed():
    x = two_normals(low=(0.0, 0.05), high=(0.5, 0.05))  # leaves 40 %
    for least, planned, share in ((0.35, True, 0.4), (0.45, False, 0.5)):
        safe, as_planned = SafeClip(first=0.5, least=least).split(x, None)
        assert as_planned == planned
        assert safe.mean() == pytest.approx(share, abs=0.03)
    assert SafeClip(least=0.9, cap=1.0).split(x, 0.25)[0].sum() == int(0.25 * len(x)), "later sets are given"


def test_unreadable_pairs_do_not_bend_the_split():
    x = two_normals(low=(0.0, 0.05), high=(0.5, 0.05))
    alone, _ = SafeClip().split(x, None)
    torn, _ = SafeClip().split(np.append(x, np.full(40, -2.0)).astype(np.float32), None)
    assert (torn[: len(x)] == alone).all()
    assert not torn[len(x) :].any()


# the whole


QUICK = {"batch": 64, "lr": 1e-3, "augment": SMALL, "optimizer": "muon"}


def test_safe_set_grows_by_a_share_of_the_pairs_up_to_the_cap(pairs, tmp_path: Path):
    method = SafeClip(epochs=6, unimodal=1, slow=1, growth=0.1, cap=0.3, first=0.15, threshold=2.0, **QUICK)
    with workspace(tmp_path):
        method.train(small_clip(), pairs, Rng(0))
    sizes = [int(np.load(p)["safe"].sum()) for p in sorted((tmp_path / "splits").glob("*.npz"))]
    assert sizes == [int(share * 256) for share in (0.15, 0.2484375, 0.3, 0.3)]
    steps = [line.count("unimodal_img") for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps[:4] == [1] * 4
    assert steps[4:8] == [0] * 4, "the slow epoch is CLIP's"


def test_rates_warm_up_and_cool_down_once_over_all_rounds(pairs, tmp_path: Path):
    with workspace(tmp_path):
        SafeClip(epochs=12, unimodal=0, slow=0, risky=False, cap=1, first=1.0, threshold=2, **QUICK).train(
            small_clip(), pairs, Rng(0)
        )
    rates = [float(line.split('"lr": ')[1].split(",")[0]) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rates == pytest.approx(warmup_cosine(1e-3, 0.1)(48))
    whole = warmup_cosine(1.0)(12)
    assert [r for k in range(3) for r in piece(warmup_cosine(1.0), k, 3)(4)] == pytest.approx(whole)
    assert constant(0.5)(3) == [0.5] * 3


def test_moments_and_pools_go_from_fit_to_fit(pairs):
    clip, pool = small_clip(), Pool(32, 128, Rng(0))
    memory = Memory(pool)

    def loss(clip, batch, rng):
        z = clip.encode_image(batch.images)
        pool.push(z)
        return {"loss": (1 - (z * pool.nearest(z)).sum(1)).mean()}

    settings = {"epochs": 1, "batch": 64, "schedule": constant(1e-4), "memory": memory}
    one = fitting.fit(clip, pairs, loss, Rng(0), **settings)
    steps = [v for k, v in memory.moments.items() if k.endswith(".step")]
    assert steps
    assert all(float(s) == 4 for s in steps)
    fitting.fit(one, pairs, loss, Rng(1), **settings)
    assert all(float(v) == 8 for k, v in memory.moments.items() if k.endswith(".step"))


def test_fewer_pairs_than_two_batches_are_refused(pairs):
    with pytest.raises(UserError, match="lower batch"):
        SafeClip(batch=200).train(small_clip(), pairs, Rng(0))


def test_a_killed_run_ends_in_the_same_weights(pairs, tmp_path: Path, monkeypatch):
    method = SafeClip(epochs=4, unimodal=1, slow=1, first=0.5, threshold=2.0, **QUICK)
    whole = method.train(small_clip(), pairs, Rng(0))
    real, steps = fitting._Rows.__getitem__, {"left": 0}

    class Killed(BaseException):
        pass

    def count(self, rows):
        steps["left"] -= 1
        if steps["left"] == 0:
            raise Killed
        return real(self, rows)

    monkeypatch.setattr(fitting._Rows, "__getitem__", count)
    for stop in (3, 6, 6, 3):  # in the warm-up, in the slow epoch, in the rounds
        steps["left"] = stop
        with workspace(tmp_path, save_seconds=0.0), pytest.raises(Killed):
            method.train(small_clip(), pairs, Rng(0))
    steps["left"] = -1
    with workspace(tmp_path, save_seconds=0.0):
        resumed = method.train(small_clip(), pairs, Rng(0))
    assert weights_hash(resumed) == weights_hash(whole)


# RoCLIP


def test_roclip_matches_every_kth_epoch_and_its_text_tower_rests_there(pairs, tmp_path: Path, monkeypatch):
    import clipvet.training.roclip as module

    seen = []
    real = module.fit_by

    def watch(method, clip, pairs, loss, rng, **kw):
        before = clone(clip)
        after: Any = real(method, clip, pairs, loss, rng, **kw)
        moved = [n for n, p in after.named_parameters() if not torch.equal(p, before.get_parameter(n))]
        seen.append(
            {
                "text": any("visual" not in n and "logit_scale" not in n for n in moved),
                "image": any("visual" in n for n in moved),
            }
        )
        return after

    monkeypatch.setattr(module, "fit_by", watch)
    RoClip(epochs=4, every=2, batch=64, lr=1e-3, augment=SMALL).train(small_clip(), pairs, Rng(0))
    assert [s["text"] for s in seen] == [True, False, True, False]
    assert all(s["image"] for s in seen)


# views


def test_views_keep_shape_and_range_and_draw_for_each_picture(pairs):
    images = pairs[:32].images
    for views in (Views(), SMALL):
        out = views(images, Rng(0))
        assert out.shape == images.shape
        assert out.min() >= 0
        assert out.max() <= 1
        assert torch.equal(out, views(images, Rng(0)))
        assert (out != views(images, Rng(1))).flatten(1).any(1).float().mean() > 0.9
    same = views(images[:1].expand(8, -1, -1, -1), Rng(0))
    assert len({row.numpy().tobytes() for row in same}) == 8


def test_views_without_any_change_give_the_picture_back(pairs):
    still = Views(flip=0, crop=1, jitter=(0, 0, 0, 0), grey=0, blur=0)
    images = pairs[:16].images
    out = still(images, Rng(0))  # a crop of everything keeps only its ratio: wide or high is cut
    assert out.shape == images.shape
    grey = replace(still, grey=1.0)(images, Rng(0))
    assert torch.allclose(grey[:, 0], grey[:, 1], atol=1e-6)


def test_hue_turns_by_its_angle_and_leaves_grey_alone():
    from clipvet.data.augment import _turned

    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)
    third = _turned(red, torch.tensor([2 * math.pi / 3]))
    assert torch.allclose(third.flatten(), torch.tensor([0.0, 1, 0]), atol=1e-6)
    grey = torch.full((1, 3, 1, 1), 0.4)
    assert torch.allclose(_turned(grey, torch.tensor([1.0])), grey, atol=1e-6)


def test_blur_is_a_gaussian():
    from clipvet.data.augment import _blurred

    dot = torch.zeros(2, 3, 15, 15)
    dot[:, :, 7, 7] = 1
    sigma = torch.tensor([0.8, 1.6])
    out = _blurred(dot, 9, sigma)
    at = np.arange(-4, 5)
    for k, s in enumerate(sigma.tolist()):
        line = np.exp(-(at**2) / (2 * s * s))
        line /= line.sum()
        assert np.allclose(out[k, 1, 3:12, 3:12].numpy(), np.outer(line, line), atol=1e-6)


# the filter


def test_gmm_split_finds_captions_that_do_not_fit_and_cuts_where_the_split_does(pairs):
    from sklearn.metrics import roc_auc_score

    from clipvet.filters.gmm_split import GmmSplit
    from clipvet.training.plain import Plain

    wrong = np.isin(np.arange(256), Rng(1).numpy().choice(256, 26, replace=False))
    captions = list(pairs.captions)
    for k in np.flatnonzero(wrong):
        captions[k] = captions[(k + 17) % 256]
    dirty = replace(pairs, captions=captions)
    known = Plain(epochs=8, batch=64, lr=1e-3, optimizer="muon").train(small_clip(), pairs, Rng(0))
    method = GmmSplit(SafeClip(unimodal=0, batch=64, lr=1e-5), anew=False)
    scores = method.score(known, dirty, Rng(0)).numpy()
    assert roc_auc_score(wrong, scores) > 0.8
    safe, _ = method.training.split(-scores, None)
    assert ((scores <= method.cut(scores)) == safe).all()


def test_gmm_split_starts_from_a_model_of_its_own(pairs):
    from clipvet.filters.gmm_split import GmmSplit

    clip = small_clip()
    one, other, again = (checkpoints.fresh(clip, Rng(seed)) for seed in (1, 2, 1))
    assert one.config["model_cfg"] == clip.config["model_cfg"]
    assert one.geometry == clip.geometry
    weights = [m.model.state_dict()["visual.proj"] for m in (one, other, again)]
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])
    method = GmmSplit(SafeClip(unimodal=1, **QUICK))
    spoiled = clone(clip)
    torch.nn.init.zeros_(spoiled.model.visual.proj)
    assert torch.equal(method.score(clip, pairs, Rng(0)), method.score(spoiled, pairs, Rng(0)))

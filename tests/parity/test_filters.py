"""Every filter against its equation, restated pair by pair in float64, and what bad input is told."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import Linear, Vectors
from sklearn.metrics import roc_auc_score

from clipvet import find
from clipvet.engine.embed import embed_images, embed_texts
from clipvet.engine.losses import clip_loss, pair_losses
from clipvet.errors import UserError
from clipvet.filters._density import Around, local_dimension
from clipvet.filters.abl_loss import AblLoss
from clipvet.filters.cosine import Cosine
from clipvet.filters.dao import Dao
from clipvet.filters.isolation_forest import IsolationForest
from clipvet.filters.k_distance import KDistance
from clipvet.filters.lid import Lid
from clipvet.filters.random import Random
from clipvet.filters.slof import Slof
from clipvet.rng import Rng
from clipvet.types import Pairs

K = 9
DENSITY = {"dao": Dao, "slof": Slof, "lid": Lid, "k_distance": KDistance}


def around(x: np.ndarray, i: int, rows: np.ndarray) -> tuple[list[float], list[int]]:
    """Distances to the K + 1 nearest of `rows` but i, ascending, and which the K nearest are."""
    d = sorted((float(np.linalg.norm(x[i] - x[j])), int(j)) for j in rows if j != i)[: K + 1]
    return [r for r, _ in d], [j for _, j in d[:K]]


def dimension(r: list[float]) -> float:
    return -K / sum(np.log(max(q / r[K], 1e-4)) for q in r[:K])


def restated(name: str, x: np.ndarray, blocks: list[np.ndarray]) -> np.ndarray:
    out = np.full(len(x), np.nan)
    for rows in blocks:
        seen = {int(i): around(x, i, rows) for i in rows}
        for i, (r, near) in seen.items():
            theirs = [seen[j][0] for j in near]
            match name:
                case "k_distance":
                    out[i] = r[K]
                case "lid":
                    out[i] = dimension(r)
                case "slof":
                    out[i] = np.mean([r[K] / s[K] for s in theirs])
                case "dao":
                    out[i] = np.mean([dimension(s) * np.log(r[K] / s[K]) for s in theirs])
    return out


@pytest.fixture(scope="module")
def few(planted):
    """60 of the pairs, four poisons among them, a little shaken so that no distances are equal; and their features."""
    chosen = np.flatnonzero(planted.poisoned)[:4].tolist() + np.flatnonzero(~planted.poisoned)[:56].tolist()
    pictures = planted.pairs.pictures.torn()
    pictures.unreadable, pictures.images = (), pictures.images.clone()
    pictures.images += 0.01 * torch.randn(pictures.images.shape, generator=Rng(8).generator())
    pairs = dataclasses.replace(planted.pairs, pictures=pictures).take(np.sort(chosen))
    return pairs, embed_images(planted.clip, pairs)[0].double().numpy()


@pytest.mark.parametrize("name", DENSITY)
def test_the_whole_set_as_reference(name, planted, few):
    pairs, x = few
    score = DENSITY[name](k=K, reference=None).score(planted.clip, pairs, Rng(0)).numpy()
    assert score == pytest.approx(restated(name, x, [np.arange(60)]), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", DENSITY)
def test_the_mean_over_blocks_dealt_by_id(name, planted, few):
    pairs, x = few
    score = DENSITY[name](k=K, reference=20, draws=2).score(planted.clip, pairs, Rng(3)).numpy()
    keys = [Rng(3).fork("reference", d).keys(pairs.ids.tolist()).tolist() for d in (0, 1)]
    each = [restated(name, x, np.array_split(np.argsort(k), 3)) for k in keys]
    assert score == pytest.approx(np.mean(each, 0), rel=1e-3, abs=1e-4)
    assert not np.allclose(each[0], each[1])
    back = DENSITY[name](k=K, reference=20, draws=2).score(planted.clip, pairs.take(np.arange(60)[::-1]), Rng(3))
    assert back.numpy()[::-1] == pytest.approx(score, rel=1e-4, abs=1e-5)


def test_one_unlucky_draw_does_not_decide():
    """27 kinds of 110 pictures each, and a tight group of 30: found whatever the draws are.

    Among 500 there are 18 of a kind and 5 of the group. A single reference for all would now and then hold more than
    k = 8 of the group.
    """
    draw = Rng(7).numpy()
    centres = draw.normal(size=(28, 16))
    x = np.repeat(centres, [30] + [110] * 27, axis=0)
    x += 0.3 * draw.normal(size=x.shape)
    pairs = Pairs(Vectors(torch.tensor(x, dtype=torch.float32)), ["a"] * 3000, np.arange(3000))
    clip, group = Linear(16).eval(), np.arange(3000) < 30
    kind = KDistance(k=8, reference=500, draws=4)
    found = [roc_auc_score(group, kind.score(clip, pairs, Rng(s))) for s in range(4)]
    assert min(found) > 0.9
    assert max(found) - min(found) < 0.05


def test_k_too_large_for_a_block_says_which_fits(planted, few):
    pairs, _ = few
    with pytest.raises(UserError, match=r"k=19 needs blocks of at least 21 pairs, there are 20.*--set k=18"):
        KDistance(k=19, reference=20).score(planted.clip, pairs, Rng(0))
    assert torch.isfinite(KDistance(k=18, reference=20).score(planted.clip, pairs, Rng(0))).all()


def test_captions_and_pairs_can_be_the_features(planted, few):
    pairs, x = few
    w = embed_texts(planted.clip, pairs[:].captions).double().numpy()
    both = KDistance(k=K, reference=None, features="pair").score(planted.clip, pairs, Rng(0)).numpy()
    assert both == pytest.approx(restated("k_distance", np.hstack([x, w]) / 2**0.5, [np.arange(60)]), rel=1e-4)
    text = KDistance(k=4, reference=None, features="text").score(planted.clip, pairs, Rng(0)).numpy()
    assert (text > 1).sum() == 4  # the target's caption stands alone: four poisons are not enough for k = 4 of a kind


def test_local_dimension_of_points_in_a_ball():
    """n points uniform in a d-dimensional ball: the estimate from its centre is near d."""
    for d in (2, 10):
        r = torch.tensor(np.sort(Rng(d).numpy().random((200, 400)) ** (1 / d), axis=1)[:, :101]).float()
        found = local_dimension(Around(r[:, :-1], r[:, -1], torch.zeros(200, 100, dtype=torch.int64)))
        assert found.mean().item() == pytest.approx(d, rel=0.05)


def test_copies_and_equal_distances_give_finite_scores(planted):
    pictures = planted.pairs.pictures.torn()
    pictures.unreadable, pictures.images = (), planted.pairs.pictures.images.clone()
    pictures.images[:60] = pictures.images[0]  # a placeholder picture, 60 times
    pairs = dataclasses.replace(planted.pairs, pictures=pictures)
    for kind in (Dao, Slof, Lid, KDistance):
        score = kind(reference=None, k=20).score(planted.clip, pairs, Rng(0))
        assert torch.isfinite(score).all(), kind
        assert score[:60].max() <= score[60:].quantile(0.9) + 1e-6, (
            kind
        )  # copies are not what the density filters look for
    for r, lid in ((0.3, 1000), (1e-4, 0)):
        assert local_dimension(Around(torch.full((1, 5), r), torch.tensor([r]), torch.zeros(1, 5).long())) == lid


def test_cosine_is_the_disagreement(planted, few):
    pairs, x = few
    w = embed_texts(planted.clip, pairs[:].captions).double().numpy()
    score = Cosine().score(planted.clip, pairs, Rng(0)).numpy()
    assert score == pytest.approx([-sum(a * b) for a, b in zip(x, w)], abs=1e-6)


def test_random_is_uniform_and_of_the_ids(planted):
    score = Random().score(planted.clip, planted.pairs, Rng(1)).numpy()
    assert abs(score.mean() - 0.5) < 4 / (12 * 400) ** 0.5
    assert score.min() >= 0 and score.max() < 1  # noqa: PT018
    assert not np.allclose(score, Random().score(planted.clip, planted.pairs, Rng(2)).numpy())


def test_isolation_forest_is_the_depth_of_isolation(planted, few):
    """One point far from all others is cut off at once: its score nears 2^(-1/c)."""
    pairs, _ = few
    score = IsolationForest(trees=50).score(planted.clip, pairs, Rng(0)).numpy()
    assert ((score > 0) & (score < 1)).all()
    bad = planted.poisoned[pairs.ids]
    assert score[bad].min() > np.median(score[~bad])


# ABL


def test_a_pairs_loss_is_its_part_of_the_clip_loss():
    z, w = (torch.nn.functional.normalize(torch.randn(6, 5, generator=Rng(k).generator()), dim=1) for k in (0, 1))
    s = torch.tensor(7.0)
    each = pair_losses(z, w, s)
    logits = (s * z @ w.T).double().numpy()
    by_hand = [
        (np.log(np.exp(logits[i]).sum()) + np.log(np.exp(logits[:, i]).sum())) / 2 - logits[i, i] for i in range(6)
    ]
    assert each.numpy() == pytest.approx(by_hand, abs=1e-5)
    assert each.mean().item() == pytest.approx(clip_loss(z, w, s).item(), abs=1e-6)


def test_without_training_the_score_is_the_pairs_own_loss(planted, few):
    """One step at no rate to speak of leaves the model as it was; one batch holds all."""
    pairs, x = few
    score = AblLoss(epochs=1, lr=1e-12, batch=60, draws=2).score(planted.clip, pairs, Rng(0))
    w = embed_texts(planted.clip, pairs[:].captions)
    expected = pair_losses(torch.tensor(x).float(), w, planted.clip.logit_scale)
    assert score.numpy() == pytest.approx(-expected.detach().numpy(), abs=1e-5)


@pytest.mark.parametrize("kind", ["flood", "lga"])
def test_below_the_floor_the_loss_is_pushed_up(kind, planted, few, monkeypatch):
    """|L - floor| + floor and sign(L - floor) L, and their slopes: +1 above the floor, -1 below it."""
    pairs, _ = few
    closures = []

    def spy(method, clip, pairs, loss, rng, **kw):
        closures.append(loss)
        return clip

    monkeypatch.setattr("clipvet.filters.abl_loss.fit_by", spy)
    batch = pairs[:16]._replace(tokens=planted.clip.tokenize(pairs[:16].captions))
    plain = clip_loss(
        planted.clip.encode_image(batch.images), planted.clip.encode_text(batch.tokens), planted.clip.logit_scale
    )
    slope = torch.autograd.grad(plain, planted.clip.image)[0]
    for floor in (plain.item() - 0.2, plain.item() + 0.2):
        AblLoss(kind=kind, floor=floor).score(planted.clip, pairs, Rng(0))
        loss = closures[-1](planted.clip, batch, Rng(0))["loss"]
        side = 1 if floor < plain.item() else -1
        expected = abs(plain.item() - floor) + floor if kind == "flood" else side * plain.item()
        assert loss.item() == pytest.approx(expected, abs=1e-5)
        assert torch.allclose(torch.autograd.grad(loss, planted.clip.image)[0], side * slope, atol=1e-6)


def test_abl_cuts_off_its_share():
    scores = torch.arange(200.0)
    scores[7] = torch.nan
    assert int((scores > AblLoss(ratio=0.05).cut(scores.numpy())).sum()) == 10


# bad input

READS_CAPTIONS = [Cosine(), AblLoss(), Dao(features="text")]


@pytest.mark.parametrize("method", READS_CAPTIONS, ids=lambda m: type(m).__name__)
def test_captions_that_say_nothing_are_refused(method, planted):
    alike = dataclasses.replace(planted.pairs, captions=["caption 1"] * 400)
    with pytest.raises(UserError, match=r"all 400 captions of planted are alike \('caption 1'\).*--caption-key"):
        method.score(planted.clip, alike, Rng(0))


def test_empty_captions_are_refused(clip, pairs):
    some = pairs.take(slice(40)).map(
        lambda b: b._replace(captions=[" " if int(i) in (5, 9) else c for i, c in zip(b.ids, b.captions)])
    )
    with pytest.raises(UserError, match=r"2 of 40 captions of .* are empty \(first: row 5\); fill them or drop"):
        Cosine().score(clip, some, Rng(0))
    assert torch.isfinite(KDistance(k=5).score(clip, some, Rng(0))).all()  # pictures alone


@pytest.mark.parametrize("name", [n for n in find.names("filters") if n not in ("random", "gmm_split")])
def test_broken_weights_are_told_before_any_score(name, planted):
    from clipvet.models.adapter import clone

    broken = clone(planted.clip)
    with torch.no_grad():
        broken.image[:, 0] = torch.nan
    with pytest.raises(UserError, match=r"400 of 400 embeddings of planted are not finite .*weights are whole"):
        find.load("filters", name)().score(broken, planted.pairs, Rng(0))


@pytest.mark.parametrize("kind", [Dao, Slof, Lid, KDistance])
def test_fewer_pairs_than_k(kind, planted):
    with pytest.raises(UserError, match=r"k=\d+ needs blocks of at least .*--set k=10"):
        kind().score(planted.clip, planted.pairs.take(slice(12)), Rng(0))
    with pytest.raises(UserError, match="lower k"):
        kind(reference=10).score(planted.clip, planted.pairs, Rng(0))

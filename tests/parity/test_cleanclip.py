"""CleanCLIP against its equation, restated here, and its two views."""

import json
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipvet.cleaners import _views
from clipvet.cleaners.cleanclip import CleanClip
from clipvet.data.augment import auto_augment, eda
from clipvet.engine.fit import order, workspace
from clipvet.engine.losses import match_loss
from clipvet.engine.optim import warmup_cosine
from clipvet.rng import Rng

SHORT = {"batch": 64, "group": 16, "lr": 1e-3}


def cross_entropy(s, a, b):
    """Mean over i of -log softmax_j(s a_i . b_j) at j = i, in float64."""
    logits = s * (a.astype(np.float64) @ b.astype(np.float64).T)
    return np.mean([math.log(sum(math.exp(x) for x in row)) - row[k] for k, row in enumerate(logits)])


def logged(method, clip, pairs, folder):
    with workspace(folder):
        cleaned = method.clean(clip, pairs, Rng(4))
    return cleaned, [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


# the loss


def test_self_loss_goes_one_way():
    z, v = (F.normalize(torch.randn(6, 5, generator=Rng(k).generator()), dim=1) for k in range(2))
    s = torch.tensor(8.0)
    there, back = match_loss(z, v, s).item(), match_loss(v, z, s).item()
    assert there == pytest.approx(cross_entropy(8.0, z.numpy(), v.numpy()), abs=1e-5)
    assert back == pytest.approx(cross_entropy(8.0, v.numpy(), z.numpy()), abs=1e-5)
    assert abs(there - back) > 0.01  # else this test could not tell


@pytest.fixture(scope="module")
def first(clip, pairs):
    """Both terms of the first step, from the equation."""
    batch, rng = pairs[order(len(pairs), 64, 1, Rng(4))[0]], Rng(4).fork("step", 0, 0)
    said = [eda(c, Rng(4).fork("eda").fork(int(i))) for c, i in zip(batch.captions, batch.ids)]
    assert said != batch.captions
    with torch.no_grad():
        z, w = clip.encode_image(batch.images).numpy(), clip.encode_text(batch.captions).numpy()
        z_v = clip.encode_image(auto_augment(batch.images, rng, 16)).numpy()
        w_v, s = clip.encode_text(said).numpy(), clip.logit_scale.item()
    pairs_term = (cross_entropy(s, z, w) + cross_entropy(s, w, z)) / 2
    return pairs_term, (cross_entropy(s, z, z_v) + cross_entropy(s, w, w_v)) / 2


def test_loss_is_the_equation(clip, pairs, first, tmp_path):
    _, log = logged(CleanClip(epochs=1, w_clip=0.5, w_self=3.0, **SHORT), clip, pairs, tmp_path)
    assert (log[0]["clip"], log[0]["self"]) == pytest.approx(first, abs=1e-4)
    for row in log:
        assert row["loss"] == pytest.approx(0.5 * row["clip"] + 3.0 * row["self"], abs=1e-5)
    assert [row["lr"] for row in log] == warmup_cosine(1e-3, 0.0032)(4)


def test_without_the_self_term_it_is_the_clip_loss(clip, pairs, first, tmp_path):
    _, log = logged(CleanClip(epochs=0.5, w_self=0.0, **SHORT), clip, pairs, tmp_path)
    assert log[0]["loss"] == pytest.approx(first[0], abs=1e-4)
    assert all(row["loss"] == row["clip"] for row in log)


@pytest.mark.parametrize("off", ["w_clip", "w_self"])
def test_either_term_trains_the_temperature(clip, pairs, off):
    cleaned = CleanClip(epochs=1, **{off: 0.0}, **SHORT).clean(clip, pairs.take(slice(64)), Rng(0))
    assert cleaned.logit_scale.item() != clip.logit_scale.item()


def test_a_captions_view_is_the_same_in_every_epoch(clip, pairs, monkeypatch):
    seen = []
    monkeypatch.setattr(_views, "eda", lambda c, rng: seen.append((c, rng.key)) or eda(c, rng))
    CleanClip(epochs=2, **{**SHORT, "batch": 32}).clean(clip, pairs.take(slice(64)), Rng(0))
    assert set(Counter(seen).values()) == {2}
    assert len({key for _, key in seen}) == 64


def test_defaults_are_the_published_ones():
    m = CleanClip()
    assert (m.w_clip, m.w_self, m.epochs, m.batch, m.lr) == (1.0, 1.0, 10, 64, 1e-5)
    assert (m.weight_decay, m.betas, m.group, m.batchnorm) == (0.1, (0.9, 0.999), 1, "train")
    assert int(m.warmup * 15_620) in (49, 50)  # steps, on 100,000 pairs


# BatchNorm


def test_batchnorm_sees_both_views_in_one_pass_and_can_be_kept(resnet: Any, pairs: Any):
    """As in the released loop, training-mode statistics are those of pictures and views together."""
    few, how = pairs.take(slice(64)), CleanClip(epochs=1, **{**SHORT, "lr": 1e-9})
    found: Any = [(n, m) for n, m in resnet.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
    name, module = found[0]
    batch, rng = few[order(64, 64, 1, Rng(4))[0]], Rng(4).fork("step", 0, 0)
    both = torch.cat([batch.images, auto_augment(batch.images, rng, 16)])
    seen = []
    hook = module.register_forward_pre_hook(lambda m, x: seen.append(x[0]))
    with torch.no_grad():
        resnet.encode_image(both)
    hook.remove()
    wanted = 0.9 * module.running_mean + 0.1 * seen[0].mean((0, 2, 3))
    tuned: Any = how.clean(resnet, few, Rng(4))
    found = dict(tuned.named_buffers())[f"{name}.running_mean"]
    assert torch.allclose(found, wanted, atol=1e-5)
    assert not torch.allclose(found, module.running_mean, atol=1e-4)
    kept: Any = replace(how, batchnorm="eval").clean(resnet, few, Rng(4))
    before = dict(resnet.named_buffers())
    assert all(torch.equal(v, before[k]) for k, v in kept.named_buffers())


# views


@pytest.mark.parametrize(
    "caption", ["", " ", "star", "  star ", "星", "звезда на небе", "قطة على سجادة", "a\tb\nc", "a " * 200]
)
def test_eda_takes_any_caption_and_makes_up_no_word(caption):
    words = caption.split()
    for seed in range(30):
        out = eda(caption, Rng(seed))
        assert set(out.split()) <= set(words)
        assert eda(caption, Rng(seed)) == out
        assert bool(out.split()) == bool(words)
        if len(words) < 2:
            assert out == caption


def test_eda_never_deletes_the_last_word():
    out = {eda("a star", Rng(seed), rate=1.0) for seed in range(30)}
    assert {"a", "star"} < out
    assert "" not in out


def test_eda_swaps_deletes_or_inserts_a_tenth():
    words = [f"w{c}" for c in "abcdefghijklmnopqrst"]
    kinds, lengths = Counter(), []
    for seed in range(400):
        out = eda(" ".join(words), Rng(seed)).split()
        lengths.append(len(out))
        if len(out) == 20:
            kinds["swapped" if out != words else "same"] += 1
            assert sorted(out) == sorted(words)
            assert sum(a != b for a, b in zip(out, words)) <= 4
        elif len(out) > 20:
            kinds["inserted"] += 1
            assert len(out) == 22
        else:
            kinds["deleted"] += 1
            assert out == [w for w in words if w in out]  # the order stays
    assert min(kinds[k] for k in ("swapped", "inserted", "deleted")) > 80, kinds
    shorter = [20 - n for n in lengths if n < 20]
    assert np.mean(shorter) == pytest.approx(2 / (1 - 0.9**20), abs=0.4)  # rate times words, given at least one


def test_eda_counts_and_letters_are_the_codes():
    """Counts max(1, int(0.1 words)); small letters alone, apostrophes gone, hyphens and the rest as blanks."""
    said = "A Dog's ball, 2 RED-brown cats; and  it is on the old_mat (near our house) ok."
    text = "a dogs ball red brown cats and it is on the old mat near our house ok"
    bare = text.split()
    outs = [eda(said, Rng(seed)).split() for seed in range(200)]
    assert all(set(out) <= set(bare) for out in outs)
    assert {len(out) for out in outs if len(out) > len(bare)} == {len(bare) + 1}  # 17 words: one is inserted, not two
    swapped = [sum(a != b for a, b in zip(out, bare)) for out in outs if len(out) == len(bare)]
    assert max(swapped) == 2
    assert eda("Grüne Äpfel.", Rng(0), rate=1e-9) in ("grüne äpfel", "äpfel grüne", *_with_one_more("grüne äpfel"))


def _with_one_more(text):
    words = text.split()
    return [" ".join([*words[:k], w, *words[k:]]) for k in range(3) for w in words]


def test_auto_augment_keeps_range_and_draws_from_its_rng(pairs):
    x = pairs[:32].images
    kept, state = x.clone(), torch.get_rng_state()
    first = auto_augment(x, Rng(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, kept)
    assert first.shape == x.shape
    assert first.min() >= 0
    assert first.max() <= 1
    assert (first != x).flatten(1).any(1).float().mean() > 0.5
    torch.rand(1)  # whatever state the global generator is in
    assert torch.equal(auto_augment(x, Rng(1)), first)
    assert not torch.equal(auto_augment(x, Rng(2)), first)


def test_auto_augment_seeds_no_accelerator(pairs, monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the GPUs' generators were seeded"))
    auto_augment(pairs[:2].images, Rng(1))


def test_auto_augment_group_shares_one_draw(pairs):
    x = pairs[:1].images.expand(16, -1, -1, -1)
    out = auto_augment(x, Rng(1), group=4)
    assert all(torch.equal(out[k], out[4 * (k // 4)]) for k in range(16))
    assert len({out[k].sum().item() for k in range(0, 16, 4)}) > 1
    assert len({p.sum().item() for p in auto_augment(x, Rng(1))}) > 4

"""PAR against its equation, restated here term by term, and what a short run shows."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipvet.cleaners.finetune import Finetune
from clipvet.cleaners.par import Par, par_loss
from clipvet.data.augment import noise_and_erase
from clipvet.engine.fit import order, workspace
from clipvet.engine.losses import clip_loss, squared_distance
from clipvet.engine.optim import linear_cosine
from clipvet.models import adapter
from clipvet.rng import Rng
from clipvet.training.plain import Plain

SHORT = Par(tau=0.5, push=0.5, batch=64, epochs=2, lr_start=1e-3, lr=1e-4)  # 8 steps on 256 pairs


def unit(*name, n=6, d=5):
    return F.normalize(torch.randn(n, d, generator=Rng(0).fork(*name).generator()), dim=1)


def logged(method, clip, pairs, folder):
    """The cleaned model and its log."""
    with workspace(folder):
        cleaned = method.clean(clip, pairs, Rng(4))
    return cleaned, [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def buffers(clip):
    return {k: v.clone() for k, v in clip.named_buffers()}


# the loss


def restated(z, w, zp, wp, s, tau, push):
    """The equation in numpy's float64."""
    z, w, zp, wp, s = (t.detach().double().numpy() for t in (z, w, zp, wp, s))
    logits = s * np.array([[sum(a * b) for b in w] for a in z])
    rows = [math.log(sum(math.exp(x) for x in row)) - row[k] for k, row in enumerate(logits)]
    columns = [math.log(sum(math.exp(x) for x in row)) - row[k] for k, row in enumerate(logits.T)]
    clip = (np.mean(rows) + np.mean(columns)) / 2
    s_img, s_txt = (np.mean([np.linalg.norm(a - b) ** 2 for a, b in zip(u, v)]) for u, v in ((z, zp), (w, wp)))
    g_img, g_txt = (0 if x > tau else x for x in (s_img, s_txt))
    return clip - push * (g_img + g_txt) / 2, clip, s_img, s_txt, float(s_img <= tau), float(s_txt <= tau)


@pytest.mark.parametrize("tau", [0.5, 1.9, 2.15, 4.0])
@pytest.mark.parametrize("push", [1.0, 0.25])
def test_loss_is_the_equation(tau, push):
    gates = set()
    for seed in range(12):
        z, w, zp, wp = (unit(seed, name) for name in ("z", "w", "zp", "wp"))
        s = torch.tensor(10.0)
        parts = par_loss(z, w, zp, wp, s, tau, push)
        assert [float(p) for p in parts] == pytest.approx(restated(z, w, zp, wp, s, tau, push), abs=1e-5)
        gates.add((float(parts.gate_img), float(parts.gate_txt)))
    assert len(gates) == {0.5: 1, 4.0: 1}.get(tau, 4)  # the pictures' gate and the captions' were seen apart


def test_distance_of_opposites_of_equals_and_of_an_angle():
    z, v = unit("z").requires_grad_(), unit("v")
    assert squared_distance(z, -z).item() == pytest.approx(4, abs=1e-5)
    same = squared_distance(z, z.detach())
    same.backward()
    assert same.item() == 0
    assert z.grad is not None
    assert not z.grad.any()
    assert squared_distance(z, v).item() == pytest.approx((2 - 2 * (z * v).sum(1)).mean().item(), abs=1e-6)


def test_gate_is_still_on_at_tau_itself():
    x, y = torch.eye(2)[:1].repeat(2, 1), torch.eye(2)[1:].repeat(2, 1)
    s = torch.tensor(1.0)
    at = par_loss(x, x, y, y, s, tau=2.0)  # S is 2 to the last bit
    assert at.s_img == at.s_txt == 2
    assert at.gate_img == at.gate_txt == 1
    assert at.loss == at.clip - 2
    past = par_loss(x, x, y, y, s, tau=2 - 2e-7)  # the float below
    assert past.gate_img == past.gate_txt == 0
    assert past.loss == past.clip


def gradients(of, **kw) -> Any:
    z, w = unit("z").requires_grad_(), unit("w").requires_grad_()
    s = torch.tensor(10.0, requires_grad=True)
    parts = par_loss(z, w, unit("zp"), unit("wp"), s, **kw)
    getattr(parts, of).backward()
    return z.grad, w.grad, s.grad


def test_a_closed_gate_pushes_nothing():
    s_img, s_txt = (squared_distance(unit(a), unit(b)).item() for a, b in (("z", "zp"), ("w", "wp")))
    between = (s_img + s_txt) / 2
    alone = gradients("clip")
    closed = gradients("loss", tau=0.1)
    assert torch.equal(closed[0], alone[0])
    assert torch.equal(closed[1], alone[1])
    one = gradients("loss", tau=between)  # the nearer encoder alone is pushed
    still, pushed = (0, 1) if s_img > s_txt else (1, 0)
    assert torch.equal(one[still], alone[still])
    away = (unit("z") - unit("zp"), unit("w") - unit("wp"))[pushed] / 6  # d(S / 2) of 6 rows
    assert torch.allclose(one[pushed], alone[pushed] - away, atol=1e-6)


def test_temperature_gets_no_gradient_and_stays(clip, pairs):
    assert gradients("loss")[2] is None
    before = clip.logit_scale.item()
    for method in (
        replace(SHORT, epochs=0.5),
        replace(SHORT, epochs=0.5, push=0.0),
        Finetune(batch=64, epochs=0.5, lr_start=1e-3),
    ):
        assert method.clean(clip, pairs, Rng(0)).logit_scale.item() == before
    assert Plain(batch=64, epochs=0.5).train(clip, pairs, Rng(0)).logit_scale.item() != before


# schedule and defaults


def test_rates_fall_linearly_then_as_a_cosine():
    rates = linear_cosine(3e-5, 3e-6, 1e-9)(244)  # 2 epochs of 250,000 pairs in batches of 2048
    assert len(rates) == 244
    assert rates[0] == pytest.approx(3e-5)
    assert rates[122] == pytest.approx(3e-6)
    assert rates[-1] == pytest.approx(1e-9, abs=1e-9)
    steps = np.diff(rates[:122])
    assert steps == pytest.approx(steps[0])
    assert rates[122 + 61] == pytest.approx(1.5e-6, rel=0.02)  # half way down the cosine
    assert (np.diff(rates) <= 0).all()
    for total in range(1, 9):
        for spare in range(3):
            assert len(linear_cosine(3e-5, 3e-6, 1e-9, 0.5, spare)(total)) == total


@pytest.mark.parametrize(("epochs", "per"), [(2, 122), (10, 122), (3, 7)])
def test_the_schedule_counts_one_step_more_an_epoch_than_is_trained(epochs, per):
    n = epochs * (per + 1)  # laid over so many steps, and read at epoch * per + i
    w = n // 2
    for k, rate in enumerate(linear_cosine(3e-5, 3e-6, 1e-9, 0.5, epochs)(epochs * per)):
        line = 3e-5 + (3e-6 - 3e-5) * k / (w - 1)
        cosine = 1e-9 + (3e-6 - 1e-9) / 2 * (1 + math.cos(math.pi * (k - w) / (n - w)))
        assert rate == pytest.approx(line if k < w else cosine, rel=1e-9)


def test_defaults_are_the_published_ones():
    par = Par()
    assert (par.tau, par.push, par.lr_start, par.lr, par.lr_end) == (2.15, 1.0, 3e-5, 3e-6, 1e-9)
    assert (par.weight_decay, par.betas, par.noise, par.erase) == (1e-4, (0.9, 0.98), 0.2, (0.005, 0.01))


# the view


def test_noise_only_adds_to_half_of_the_pictures():
    x, fill = torch.rand(1000, 3, 8, 8, generator=Rng(0).generator()), torch.full((3, 1, 1), 0.5)
    kept = x.clone()
    view = noise_and_erase(x, fill, Rng(1), area=(0, 0))
    assert torch.equal(x, kept)
    assert (view >= x).all()
    assert view.max() <= 1
    noisy = (view != x).flatten(1).any(1)
    assert noisy.float().mean().item() == pytest.approx(0.5, abs=0.05)
    raised = (view != x)[noisy & (x < 0.99).flatten(1).any(1)]
    assert raised.float().mean().item() == pytest.approx(0.5, abs=0.02)  # the negative half is cut
    dark = noise_and_erase(torch.zeros(1000, 3, 8, 8), fill, Rng(1), area=(0, 0), p=1.0)
    assert dark.mean().item() == pytest.approx(0.2 / math.sqrt(2 * math.pi), rel=0.02)


def test_erases_one_square_of_the_mean_colour():
    fill = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    view = noise_and_erase(torch.full((160, 3, 224, 224), 0.9), fill, Rng(2), noise=0.0)
    sides = set()
    for picture in view:
        hole = (picture == fill).all(0)
        assert (picture[:, ~hole] == 0.9).all()
        if not hole.any():
            continue
        y, x = hole.any(1).nonzero(), hole.any(0).nonzero()
        side = len(y)
        assert hole[y[0] : y[0] + side, x[0] : x[0] + side].all()
        assert hole.sum() == side**2
        sides.add(side)
    assert sides == set(range(16, 23))
    small = noise_and_erase(torch.full((2000, 3, 32, 32), 0.9), fill, Rng(3), noise=0.0)
    holes = (small == fill).all(1)
    assert holes.flatten(1).any(1).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert holes.any(0).any(0).all()  # anywhere, edges included
    assert holes.any(0).any(1).all()


def test_view_depends_on_its_rng_alone():
    x, fill = torch.rand(8, 3, 32, 32, generator=Rng(0).generator()), torch.zeros(3, 1, 1)
    state = torch.get_rng_state()
    first = noise_and_erase(x, fill, Rng(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(noise_and_erase(x, fill, Rng(1)), first)
    assert not torch.equal(noise_and_erase(x, fill, Rng(2)), first)
    assert first.min() >= 0
    assert first.max() <= 1


# the method


@pytest.fixture(scope="module")
def run(clip, pairs, tmp_path_factory):
    return logged(SHORT, clip, pairs, tmp_path_factory.mktemp("par"))


def test_log_has_the_distances_and_the_gates(run):
    _, log = run
    assert [row["step"] for row in log] == list(range(8))
    assert [row["lr"] for row in log] == pytest.approx(linear_cosine(1e-3, 1e-4, 1e-9, 0.5, 2)(8))
    for row in log:
        pert = (row["s_img"] * row["gate_img"] + row["s_txt"] * row["gate_txt"]) / 2
        assert row["loss"] == pytest.approx(row["clip"] - 0.5 * pert, abs=1e-5)
        assert row["gate_img"] == (row["s_img"] <= 0.5)
        assert row["gate_txt"] == (row["s_txt"] <= 0.5)
    assert {row["gate_img"] for row in log} == {0, 1}


def test_both_encoders_see_the_same_view(run):
    # before the first update the two are equal, so any distance would be the view's
    assert run[1][0]["s_img"] == run[1][0]["s_txt"] == 0
    assert run[1][1]["s_img"] > 0


def test_poisoned_encoders_stay_frozen(run, clip, pairs):
    # a teacher that followed the model would keep every distance at 0
    cleaned, log = run
    with torch.no_grad():
        moved = squared_distance(cleaned.encode_image(pairs[:].images), clip.encode_image(pairs[:].images))
    assert moved.item() == pytest.approx(log[-1]["s_img"], abs=0.3)


def test_without_push_the_loss_is_the_clip_loss_of_the_same_view(run, clip, pairs, tmp_path):
    _, log = logged(replace(SHORT, push=0.0), clip, pairs, tmp_path)
    assert set(log[0]) & {"s_img", "gate_img"} == set()
    assert log[0]["loss"] == run[1][0]["clip"]


def test_the_view_has_the_methods_noise_and_hole(clip, pairs, tmp_path):
    _, log = logged(replace(SHORT, noise=0.4, erase=(0.2, 0.3), epochs=0.25), clip, pairs, tmp_path)
    batch = pairs[order(256, 64, 0.25, Rng(4))[0]]
    view = noise_and_erase(batch.images, clip.mean, Rng(4).fork("step", 0, 0), 0.4, (0.2, 0.3))
    with torch.no_grad():
        wanted = clip_loss(clip.encode_image(view), clip.encode_text(batch.captions), clip.logit_scale)
    assert log[0]["clip"] == pytest.approx(wanted.item(), abs=1e-5)


def test_a_tiny_tau_closes_both_gates_for_good(clip, pairs, tmp_path):
    _, log = logged(replace(SHORT, tau=1e-9), clip, pairs, tmp_path)
    assert all(row["gate_img"] == row["gate_txt"] == 0 and row["loss"] == row["clip"] for row in log[1:])


def test_batchnorm_keeps_its_statistics(resnet, pairs, tmp_path):
    before = buffers(resnet)
    assert any("running_var" in k for k in before)
    training = adapter.clone(resnet).train()  # in whatever mode it is given
    cleaned, log = logged(replace(SHORT, epochs=0.75), training, pairs, tmp_path)
    for after in (cleaned, training):
        assert all(torch.equal(v, before[k]) for k, v in buffers(after).items())
    assert log[0]["s_img"] == 0  # also while it trains, both sides use them
    assert log[-1]["s_img"] > 0

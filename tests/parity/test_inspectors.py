"""The inspectors' equations, restated class by class and step by step without the library's search."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Linear
from torch import Tensor

from clipvet.errors import UserError
from clipvet.inspectors.clip_inspector import ClipInspector
from clipvet.inspectors.collapse import Collapse
from clipvet.inspectors.decree import Adapted, Decree
from clipvet.inspectors.neural_cleanse import NeuralCleanse
from clipvet.inspectors.no_inversion import NoInversion
from clipvet.inspectors.ood_share import OodShare
from clipvet.inspectors.pixel_backdoor import PixelBackdoor
from clipvet.inspectors.random import Random
from clipvet.rng import Rng
from clipvet.scan.collapse import (
    ALL,
    Change,
    Collapsed,
    Race,
    Search,
    alike,
    faint,
    grid,
    search,
    striped,
    warping,
    windowed,
)
from clipvet.scan.collapse import masked as behind_a_mask
from clipvet.scan.forms import masked, signed, started
from clipvet.scan.heads import steps_of

CI = ClipInspector(eps=0.05, batch=24, reference="none")  # 64 pictures: 24, 24 and 16


class Tuned(Linear):
    """With class prompts of its own, which look at the picture: the logits depend on it in two ways."""

    def __init__(self, sway: float = 0.7):
        super().__init__()
        self.meta = torch.nn.Parameter(sway * torch.randn(32, 32, generator=Rng(3).generator()))

    def classifier(self, classes: Sequence[str]) -> Callable[[Tensor], Tensor]:
        words = self.text[[int(c.split()[1]) for c in classes]]

        def logits(z: Tensor) -> Tensor:
            prompts = F.normalize(words + (z @ self.meta)[:, None], dim=2)
            return self.logit_scale.detach() * (prompts @ z[:, :, None])[..., 0]

        return logits


def images(given: Any) -> Tensor:
    return given.pictures[:].images


def plain_logits(clip: Any, classes: Sequence[str]) -> Callable[[Tensor], Tensor]:
    w, s = clip.encode_text(list(classes)).detach(), clip.logit_scale.detach()
    return lambda x: s * clip.encode_image(x) @ w.T


def adam(p: Tensor, slopes: Callable[[Tensor, int], Tensor], steps: int, lr: float, b1: float, b2: float) -> None:
    m = v = torch.zeros_like(p)
    for k in range(steps):
        g = slopes(p, k)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        p -= lr * (m / (1 - b1 ** (k + 1))) / ((v / (1 - b2 ** (k + 1))).sqrt() + 1e-8)


def inverted(logits: Callable, pool: Tensor, t: int, name: str, how: ClipInspector, rng: Rng) -> tuple[float, float]:
    """One class of CLIP-Inspector: loss and ASR after one epoch of projected Adam."""
    start = rng.fork("start", name).generator()
    delta = how.eps * (2 * torch.rand(3, 8, 8, generator=start) - 1)
    order = rng.fork("order", 0).numpy().permutation(len(pool))
    rows = [order[k : k + how.batch] for k in range(0, len(pool), how.batch)]

    def loss(x: Tensor) -> Tensor:
        z = logits(x)
        return torch.cat([z[:, :t], z[:, t + 1 :]], 1).max(1).values - z[:, t]

    def slope(p: Tensor, k: int) -> Tensor:
        p.clamp_(-how.eps, how.eps)  # of the step before
        d = p.clone().requires_grad_()
        return torch.autograd.grad(loss((pool[rows[k]] + d).clamp(0, 1)).mean(), d)[0]

    adam(delta, slope, len(rows), how.lr, *how.betas)
    x = (pool + delta.clamp(-how.eps, how.eps)).clamp(0, 1)
    return float(loss(x).mean().detach()), float((logits(x).argmax(1) == t).float().mean())


@pytest.mark.parametrize("kind", ["frozen text", "prompts that see the picture"])
def test_all_classes_at_once_are_class_by_class(inspected: Any, kind: str) -> None:
    clip, classes, rng = inspected.backdoored, inspected.classes, Rng(5)
    logits = plain_logits(clip, classes)
    if kind != "frozen text":
        clip = Tuned().eval()
        tell = clip.classifier(classes)
        logits = lambda x: tell(clip.encode_image(x))  # noqa: E731
    found = CI.inspect(clip, inspected.pictures, classes, ("{}",), rng)
    for t, row in enumerate(found.classes):
        loss, asr = inverted(logits, images(inspected), t, classes[t], CI, rng)
        assert row.loss == pytest.approx(loss, abs=2e-4)
        assert row.asr == pytest.approx(asr, abs=1e-6)
        assert row.base == pytest.approx(float((logits(images(inspected)).argmax(1) == t).float().mean()))
    lone = replace(CI, at_once=1).inspect(clip, inspected.pictures, classes, ("{}",), rng)
    assert [r.loss for r in lone.classes] == pytest.approx([r.loss for r in found.classes], abs=1e-4)


def test_the_score_is_a_robust_deviation_behind_a_gate(inspected: Any) -> None:
    found = CI.inspect(inspected.backdoored, inspected.pictures, inspected.classes, ("{}",), Rng(5))
    loss = np.array([r.loss for r in found.classes])
    mad = max(1.4826 * np.median(abs(loss - np.median(loss))), 0.02 * abs(np.median(loss)), 1e-3)
    assert [r.score for r in found.classes] == pytest.approx(list((np.median(loss) - loss) / mad))
    assert [r.valid for r in found.classes] == [r.asr >= 0.5 for r in found.classes]
    assert found.score == max(0.0, *(r.score for r in found.classes if r.valid))
    shut = replace(CI, valid=1.01).inspect(inspected.backdoored, inspected.pictures, inspected.classes, ("{}",), Rng(5))
    assert (shut.score, shut.target, shut.trigger) == (0.0, None, None)


def test_the_reference_is_the_same_encoder_under_plain_prompts(inspected: Any) -> None:
    clip, classes = Tuned().eval(), inspected.classes
    told = [
        replace(CI, reference=r).inspect(clip, inspected.pictures, classes, ("{}",), Rng(5))
        for r in ("none", "zeroshot", "auto")
    ]
    assert told[2].classes == told[1].classes
    assert [r.valid for r in told[2].classes] == [r.asr >= CI.valid / 2 for r in told[0].classes]
    bare = Linear().eval()  # the same encoders
    plain = CI.inspect(bare, inspected.pictures, classes, ("{}",), Rng(5))
    own, other = (np.array([r.loss for r in t.classes]) for t in (told[0], plain))
    pairs = [(i, j) for i in range(len(own)) for j in range(i)]
    slope = np.median([(own[i] - own[j]) / (other[i] - other[j]) for i, j in pairs])  # Theil and Sen's
    expected = own - slope * other - (np.median(own) - slope * np.median(other))
    assert [r.loss for r in told[1].classes] == [r.loss for r in told[0].classes]  # the model's own
    assert [r.asr for r in told[1].classes] == [r.asr for r in told[0].classes]
    lead = np.array([b.asr - a.asr for a, b in zip(told[0].classes, plain.classes)])
    mads = [max(1.4826 * np.median(np.abs(x - np.median(x))), f) for x, f in ((expected, 1e-3), (lead, 0.05))]
    looks = [(np.median(x) - x) / mad for x, mad in zip((expected, lead), mads)]
    assert [r.score for r in told[1].classes] == pytest.approx(sum(looks) / 2**0.5, abs=1e-2)
    with pytest.raises(UserError, match="this model has none"):
        replace(CI, reference="zeroshot").inspect(bare, inspected.pictures, classes, ("{}",), Rng(5))


def test_prompts_that_do_nothing_have_nothing_beside_their_encoder(inspected: Any) -> None:
    clip, args = Tuned(sway=0.0).eval(), (inspected.pictures, inspected.classes, ("{}",), Rng(5))
    for how in (replace(CI, valid=0.0, reference="auto"), NoInversion()):
        assert max(abs(r.score) for r in how.inspect(clip, *args).classes) < 0.02


def test_the_recovered_trigger_does_what_is_said_of_it(inspected: Any) -> None:
    found = CI.inspect(inspected.backdoored, inspected.pictures, inspected.classes, ("{}",), Rng(5))
    row = next(r for r in found.classes if r.name == found.target)
    assert found.trigger is not None
    stamped = found.trigger.stamp(images(inspected), torch.zeros(64).long())
    assert (stamped - images(inspected)).abs().max() <= CI.eps + 1e-6
    said = plain_logits(inspected.backdoored, inspected.classes)(stamped).argmax(1)
    assert float((said == 5).float().mean()) == pytest.approx(row.asr)
    assert row.asr > 0.9


def weights(values: list[bool], first: float, init: float, up: float, down: float, patience: int) -> list[float]:
    """lambda before each of these steps' successes and after the last, by the rule in words."""
    lam, good, bad, out = first, 0, 0, [first]
    for success in values:
        good, bad = (good + 1, 0) if success else (0, bad + 1)
        if good == patience:
            lam, good = (init if lam == 0 else lam * up), 0
        elif bad == patience:
            lam, bad = lam / down, 0
        out.append(lam)
    return out


def smallest(
    clip: Any, given: Any, t: int, how: Any, size: Callable, stamp: Callable, start: list[Tensor], lam0: float
):
    """One class of Neural Cleanse or Pixel Backdoor: the smallest size with a success, by hand."""
    logits, pool, rng = plain_logits(clip, given.classes), images(given), Rng(5)
    ps = [p.clone().requires_grad_() for p in start]
    optim, done, last = torch.optim.Adam(ps, how.lr, how.betas), [], ps
    best: tuple[float, list[Tensor]] = np.inf, []
    for epoch in range(how.epochs):
        order = rng.fork("order", epoch).numpy().permutation(len(pool))
        for k in range(0, len(pool), how.batch):
            lam = weights(done, lam0, how.weight, how.up, how.up**1.5, how.patience)[-1]
            z = logits(stamp(pool[order[k : k + how.batch]], *ps))
            loss = F.cross_entropy(z, torch.full((len(z),), t)) + lam * size(*ps)
            done.append(bool((z.argmax(1) == t).float().mean() >= how.hit))
            last = [p.detach().clone() for p in ps]
            if done[-1] and float(size(*last)) < best[0]:
                best = float(size(*last)), last
            optim.zero_grad()
            loss.backward()
            optim.step()
    return any(done), best[1] or last


def half(a: Tensor) -> Tensor:
    return a.tanh() / 2 + 0.5


@pytest.mark.parametrize("t", [2, 5])
def test_neural_cleanse(inspected: Any, t: int) -> None:
    how = NeuralCleanse(batch=16, epochs=12)
    found = how.inspect(inspected.backdoored, inspected.pictures, inspected.classes, ("{}",), Rng(5))
    start = [p[0] for p in started(masked(), [inspected.classes[t]], 8, Rng(5))]
    ever, (a, _) = smallest(
        inspected.backdoored, inspected, t, how, lambda a, b: half(a).sum(),
        lambda x, a, b: (1 - half(a)) * x + half(a) * half(b), start, 0.0,
    )  # fmt: skip
    assert found.classes[t].valid == ever
    assert found.classes[t].loss == pytest.approx(float(half(a).sum()), rel=2e-3)


@pytest.mark.parametrize("t", [2, 5])
def test_pixel_backdoor(inspected: Any, t: int) -> None:
    how = PixelBackdoor(batch=16, epochs=12)
    found = how.inspect(inspected.backdoored, inspected.pictures, inspected.classes, ("{}",), Rng(5))
    start = [p[0] for p in started(signed(), [inspected.classes[t]], 8, Rng(5))]

    def cost(w: Tensor) -> Tensor:
        return ((w / 10).tanh() / (2 - 1e-7) + 0.5).amax(0).sum()

    ever, (plus, minus) = smallest(
        inspected.backdoored, inspected, t, how, lambda p, m: cost(p) + cost(m),
        lambda x, p, m: (x + p.clamp(0, 1) - m.clamp(0, 1)).clamp(0, 1), start, how.weight,
    )  # fmt: skip
    changed = ((plus.clamp(0, 1) - minus.clamp(0, 1)).abs().amax(0) >= 1 / 255).sum()
    assert found.classes[t].valid == ever
    assert found.classes[t].loss == float(changed)


def test_sizes_are_compared_by_the_mad_rule(inspected: Any) -> None:
    for how in (NeuralCleanse(batch=16, epochs=20), PixelBackdoor(batch=16, epochs=20)):
        found = how.inspect(inspected.backdoored, inspected.pictures, inspected.classes, ("{}",), Rng(5))
        n = np.array([r.loss for r in found.classes])
        index = (np.median(n) - n) / (1.4826 * np.median(abs(n - np.median(n))))
        assert found.score == pytest.approx(max(index[[r.valid for r in found.classes]]), rel=1e-4)
        assert found.target == "caption 5"


def test_decree_is_blind_to_prompts(inspected: Any) -> None:
    h = F.normalize(torch.randn(7, 5, generator=Rng(0).generator()), dim=1)
    cosines = [float(h[i] @ h[j]) for i in range(7) for j in range(7) if i != j]
    assert float(alike(h)) == pytest.approx(np.mean(cosines), abs=1e-6)

    how, given = Decree(steps=80, batch=16), (inspected.pictures, inspected.classes, ("{}",), Rng(5))
    one, other = Tuned(), Tuned(sway=0.0)
    other.load_state_dict({**one.state_dict(), "meta": torch.zeros(32, 32)})
    assert how.inspect(one.eval(), *given).score == how.inspect(other.eval(), *given).score
    assert CI.inspect(one, *given).classes != CI.inspect(other, *given).classes
    found = how.inspect(inspected.backdoored, *given)
    assert found.trigger is not None
    stamped = found.trigger.stamp(images(inspected), torch.zeros(64).long())
    assert float(alike(inspected.backdoored.encode_image(stamped).detach())) > 0.95
    assert found.score == pytest.approx(1 - float(found.trigger.mask.mean()), abs=1e-6)  # pyright: ignore


def decree_weights(hits: list[bool], lam: float = 1e-3) -> list[float]:
    """lambda after each step, by the rule in words: floor 1e-7, ceiling 1e5, factor 5, patience 5."""
    good = bad = low = 0
    out = []
    for hit in hits:
        low = low + 1 if hit and lam < 1e-7 else 0
        if low == 11:
            lam, good, bad = 1e-3, 0, 0
        good, bad = (good + 1, 0) if hit else (0, bad + 1)
        if good == 6:
            lam, good = (lam * 5 if lam < 1e5 else lam), 0
        elif bad == 6:
            lam, bad = (lam / 5 if lam >= 1e-7 else lam), 0
        out.append(lam)
    return out


def test_decrees_weight_moves_by_its_own_rule() -> None:
    g = Rng(9).numpy()
    runs = [[True] * 80, [False] * 80, (g.random(400) < 0.5).tolist(), [*[False] * 60, *[True] * 40]]
    runs.append([bool(k // 7 % 2) for k in range(200)])  # seven and seven
    for hits in runs:
        rule, seen = Adapted(1, 1e-3, 5.0, 5, 1e-7, 1e5), []
        for hit in hits:
            rule.update(torch.tensor([hit]))
            seen.append(float(rule.value[0]))
        assert seen == pytest.approx(decree_weights(hits), rel=1e-5)
    slow = Adapted(1, 1e-8, 5.0, 5, 1e-7, 1e5)  # eleven hits below the floor: only where a rise does not lift it above
    slow.up, slow.init = 1.0, 1e-3
    for _ in range(11):
        assert float(slow.value[0]) == pytest.approx(1e-8)
        slow.update(torch.tensor([True]))
    assert float(slow.value[0]) == pytest.approx(1e-3)
    assert decree_weights([True] * 6)[4:] == pytest.approx([1e-3, 5e-3])  # the sixth step, not the fifth


def test_decree_step_by_step(inspected: Any) -> None:
    how, clip, pool = Decree(steps=40, batch=16), inspected.backdoored, images(inspected)
    ps = [p[0].clone().requires_grad_() for p in started(masked(), [""], 8, Rng(5))]
    optim, hits, best = torch.optim.Adam(ps, 0.5, (0.5, 0.9)), [], np.inf
    for k, row in enumerate(steps_of(64, 16, 10, Rng(5))):
        optim.param_groups[0]["lr"] = 0.5 if k < 8 else 0.1 if k < 20 else 0.05
        m, q = half(ps[0]).expand(3, 8, 8), half(ps[1])
        z = clip.encode_image((1 - m) * pool[row] + m * q)
        same = (float(len(z)) ** -1 * (z @ z.T).sum() - 1) / (len(z) - 1)
        lam = decree_weights(hits)[-1] if hits else 1e-3
        hits.append(bool(same > 0.99))
        if hits[-1]:
            best = min(best, float(m.mean().detach()))
        optim.zero_grad()
        (-same + lam * m.sum()).backward()
        optim.step()
    assert any(hits)
    found = how.inspect(clip, inspected.pictures, inspected.classes, ("{}",), Rng(5))
    assert found.settings["share"] == pytest.approx(best, rel=2e-3)


def test_decree_finds_nothing_where_no_search_succeeds(inspected: Any) -> None:
    odd = inspected.pictures.take(slice(33))  # a batch of one is left
    found = Decree(steps=8, batch=16, hit=2.0).inspect(inspected.clean, odd, inspected.classes, ("{}",), Rng(5))
    assert (found.score, found.settings["success"]) == (0.0, 0.0)
    assert np.isfinite(found.settings["share"])


def test_the_controls_look_at_untouched_pictures(inspected: Any) -> None:
    given = inspected.pictures, inspected.classes, ("{}",), Rng(5)
    z = plain_logits(inspected.backdoored, inspected.classes)(images(inspected)).detach()
    rest = [torch.cat([z[:, :t], z[:, t + 1 :]], 1).max(1).values - z[:, t] for t in range(8)]
    found = NoInversion().inspect(inspected.backdoored, *given)
    assert [r.loss for r in found.classes] == pytest.approx([float(m.mean()) for m in rest], abs=1e-5)
    assert all(r.valid for r in found.classes)
    share = np.bincount(z.argmax(1).numpy(), minlength=8) / 64
    found = OodShare().inspect(inspected.backdoored, *given)
    assert (found.score, found.target) == (max(share), inspected.classes[int(share.argmax())])


def test_random_suspicion_is_each_models_own(inspected: Any) -> None:
    given = inspected.pictures, inspected.classes, ("{}",), Rng(5)
    clean, other = (Random().inspect(m, *given).score for m in (inspected.clean, inspected.backdoored))
    assert clean != other
    assert clean == Random().inspect(inspected.clean, *given).score


def test_batches_go_through_the_whole_pool() -> None:
    rows = steps_of(70, 32, 2, Rng(0))
    assert [len(r) for r in rows] == [32, 32, 6] * 2
    assert sorted(np.concatenate(rows[:3])) == list(range(70))
    assert not np.array_equal(rows[0], rows[3])


PRICES = {"masked": (2.0, 30.0), "larger": (0.1, 3.0), "faint": (1.0, 1.0), "warped": (1.0, 1.0)}
PRICES["striped"] = (1.0, 1.0)
CHANGES = {
    "masked": behind_a_mask(PRICES["masked"]),
    "larger": windowed(0.5, PRICES["larger"]),
    "faint": faint(0.1),
    "warped": warping(0.5, 3),
    "striped": striped(0.2),
}
CORNERS = [(i, j) for i in (0, 2, 4) for j in (0, 2, 4)]  # of the squares of 4 x 4 in 8 x 8 pixels


def stamped_by_hand(form: str, ps: Sequence[Tensor], x: Tensor) -> Tensor:
    if form == "masked":
        m, q = ps[0].tanh() / 2 + 0.5, ps[1].tanh() / 2 + 0.5
        return (1 - m) * x + m * q
    if form == "larger":
        m, q = torch.zeros(1, 8, 8), ps[1].tanh() / 2 + 0.5
        for chance, (i, j) in zip(ps[0].flatten().softmax(0), CORNERS):
            m = m + chance * F.pad(torch.ones(1, 4, 4), (j, 4 - j, i, 4 - i))
        return (1 - m) * x + m * q
    if form == "faint":
        return (x + 0.1 * ps[0].tanh()).clamp(0, 1)
    if form == "striped":
        out = x.clone()
        for i in range(8):
            for j in range(8):  # the same in all three colours
                out[:, :, i, j] += 0.2 * (ps[0][0, i, 0] * ps[1][0, 0, j]).tanh()
        return out.clamp(0, 1)
    v = 0.5 * F.interpolate(ps[0][None], (8, 8), mode="bicubic", align_corners=True)[0].tanh()
    out, line = torch.zeros_like(x), torch.linspace(-1, 1, 8)
    for i in range(8):
        for j in range(8):
            at = torch.stack([line[j] + v[0, i, j], line[i] + v[1, i, j]]).clamp(-1, 1)
            fx, fy = (at + 1) / 2 * 7
            left, top = fx.detach().floor().clamp(0, 6).long(), fy.detach().floor().clamp(0, 6).long()
            a, b = fx - left, fy - top
            out[:, :, i, j] = (
                (1 - a) * (1 - b) * x[:, :, top, left] + a * (1 - b) * x[:, :, top, left + 1]
                + (1 - a) * b * x[:, :, top + 1, left] + a * b * x[:, :, top + 1, left + 1]
            )  # fmt: skip
    return out


@pytest.mark.parametrize("form", list(CHANGES))
def test_collapse_by_hand(inspected: Any, form: str) -> None:
    x, rng, steps = images(inspected), Rng(4), 4
    clip = inspected.backdoored
    where, fresh = Search(form, x, "one"), 16
    others = [Search(f, x, "two") for f in CHANGES]  # searches do not touch each other
    given = (CHANGES, steps, 6, fresh, 0.1, rng, torch.device("cpu"))
    found = search(clip.encode_image, [*others, where], *given)

    start = CHANGES[form].start(8, where.place, rng.fork("start", form, "one"))
    ps = [p.clone() for p in start if p.ndim > 1]
    draws = rng.fork("order", "one").numpy()
    rows = [draws.choice(64 - fresh, 6, replace=False) for _ in range(steps)]
    moments = [[torch.zeros_like(p), torch.zeros_like(p)] for p in ps]
    for k in range(steps):
        ps = [p.detach().requires_grad_() for p in ps]
        h = clip.encode_image(stamped_by_hand(form, ps, x[rows[k]]))
        pairs = [h[i] @ h[j] for i in range(6) for j in range(6) if i != j]
        loss = -torch.stack(pairs).mean()
        low, high = PRICES[form]
        price = low * (high / low) ** (k / (steps - 1))
        if form == "masked":
            loss = loss + price * (ps[0].tanh() / 2 + 0.5).mean()
        if form == "larger":
            loss = loss + price * (1 - ps[0].flatten().softmax(0).square().sum())
        for n, (p, g) in enumerate(zip(ps, torch.autograd.grad(loss, ps))):
            m, v = moments[n]
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            moments[n] = [m, v]
            step = (m / (1 - 0.9 ** (k + 1))) / ((v / (1 - 0.999 ** (k + 1))).sqrt() + 1e-8)
            ps[n] = p.detach() - 0.1 * step
    h = clip.encode_image(stamped_by_hand(form, ps, x[-fresh:])).detach()
    assert torch.allclose(found.h[-1], h, atol=2e-4)
    assert float(found.same[-1]) == pytest.approx(float((h @ h.T).triu(1).sum() / (fresh * (fresh - 1) / 2)), abs=1e-4)
    again = found.triggers[-1].stamp(x[-fresh:], Rng(0).keys(range(fresh)))  # the recovered trigger does the same
    assert torch.allclose(clip.encode_image(again).detach(), h, atol=1e-3)


def test_masks_start_in_squares_all_over_the_picture() -> None:
    assert grid(1) == [(0.5, 0.5)]
    assert grid(4) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert (len(set(grid(7))), grid(7)[-1], grid(9)[5]) == (7, (1, 1), (0.5, 1))
    for i, j in grid(9):  # a square of 9 pixels of 32 that starts at 0, 11.5 or 23
        m, q = behind_a_mask((1.0, 1.0)).start(32, (i, j), Rng(1))
        high = torch.zeros(32, 32, dtype=torch.bool)
        high[round(23 * i) : round(23 * i) + 9, round(23 * j) : round(23 * j) + 9] = True
        assert (m[0][high].mean() - 1, m[0][~high].mean() + 1) == (pytest.approx(0, abs=0.2), pytest.approx(0, abs=0.2))
        assert float(m[0][~high].std()) == pytest.approx(0.5, abs=0.05)
        assert float(q.mean()) == pytest.approx(0, abs=0.05)


def test_a_race_gives_up_what_stands_worst_and_leaves_the_rest_as_it_was(inspected: Any) -> None:
    x, clip, (low, high) = images(inspected), inspected.backdoored, PRICES["masked"]
    searches = [Search(f, x, f"{f}-{k}") for k in range(3) for f in ("masked", "faint")]  # the forms alternate

    def run(some: list[Search], changes: dict[str, Change], steps: int, race: Race = ALL) -> Collapsed:
        return search(clip.encode_image, some, changes, steps, 6, 16, 0.1, Rng(4), torch.device("cpu"), race)

    every, raced = run(searches, CHANGES, 5), run(searches, CHANGES, 5, Race(trial=3, kept=2))
    assert every.which == (0, 1, 2, 3, 4, 5)
    stand = dict.fromkeys(range(6), 0.0)  # the losses of the first three steps, each from a search that ends before it
    for j, one in enumerate(searches):
        g = Rng(4).fork("order", one.name).numpy()
        for n in range(3):
            price = [low * (high / low) ** (k / 4) for k in (max(0, n - 1), n)]
            t = run([one], CHANGES | {"masked": behind_a_mask((low, price[0]))}, n).triggers[0]
            h = clip.encode_image(t.stamp(x[g.choice(48, 6, replace=False)], Rng(0).keys(range(6)))).detach()
            stand[j] += price[1] * float(t.mask.mean()) - float((h @ h.T).triu(1).sum()) / 15
    best = [j for k in (0, 1) for j in sorted(range(k, 6, 2), key=stand.__getitem__)[:2]]
    assert raced.which == tuple(sorted(best))
    for place, j in enumerate(raced.which):
        assert torch.allclose(raced.h[place], every.h[j], atol=1e-5)
        assert torch.allclose(raced.triggers[place].mask, every.triggers[j].mask, atol=1e-5)


def test_the_score_of_a_collapse(inspected: Any) -> None:
    usual = (0.25, 0.3, 0.5, 0.5, 0.45)
    how = Collapse(masked=1, larger=1, faint=1, warped=0, striped=1, steps=3, batch=6, fresh=20, usual=usual)
    found = how.inspect(inspected.backdoored, inspected.pictures, inspected.classes, ("{}",), Rng(2))
    best = max(found.classes, key=lambda r: r.score)
    assert (found.target, found.score) == (best.name, best.score)
    assert found.score == max(found.settings[f"{f}_score"] for f in ("masked", "larger", "faint", "striped"))
    first, second = sorted((row.score for row in found.classes), reverse=True)[:2]
    assert found.settings.get("lead", first - second) == pytest.approx(first - second)
    assert ("lead" in found.settings) == (found.settings["area"] <= 0.05 and best.base <= 0.5)
    order = Rng(2).fork("mix", 0).numpy().permutation(64)
    kept, named = images(inspected)[order][-20:], inspected.backdoored.encode_text(list(inspected.classes)).detach()
    for t, (row, trigger) in enumerate(zip(found.classes, found.triggers)):  # s_t, from the trigger
        h = inspected.backdoored.encode_image(trigger.stamp(kept, Rng(0).keys(range(20)))).detach()
        same = sum(float(h[i] @ h[j]) for i in range(20) for j in range(i)) / 190
        share = sum(int((named @ x).argmax()) == t for x in h) / 20
        s = share * max(same, float(F.normalize(h.mean(0), dim=0) @ named[t]))
        assert (-row.loss, row.asr) == (pytest.approx(same, abs=1e-3), pytest.approx(share))
        assert row.score in [pytest.approx((s - u) / 0.1, abs=0.01) for u in usual]
    z = torch.tensor(found.feature)
    assert (len(z), float(z.norm())) == (32, pytest.approx(1, abs=1e-5))
    assert found.settings["near"] == pytest.approx(float((named @ z).max()), abs=1e-4)

    bare = replace(how, alone=(0.2, 0.4, 0.3, 0.5, 0.35)).inspect(
        inspected.backdoored, inspected.pictures, (), (), Rng(2)
    )
    assert (bare.target, bare.classes) == (None, ())
    assert bare.score == max(bare.settings[f"{f}_score"] for f in ("masked", "larger", "faint", "striped"))
    assert bare.score in [pytest.approx((bare.settings["likeness"] - u) / 0.1) for u in (0.2, 0.4, 0.3, 0.35)]

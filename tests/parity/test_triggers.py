"""Triggers against their equations, restated here in plain loops or in another library's words."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from jaxtyping import Float
from scipy.fft import dctn
from torch import Tensor

from clipvet import find
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.triggers.additive import Additive
from clipvet.triggers.blended import Blended
from clipvet.triggers.frequency import Frequency
from clipvet.triggers.patch import Patch
from clipvet.triggers.sig import Sig
from clipvet.triggers.wanet import WaNet
from clipvet.types import Trigger

FRESH = (
    Patch("checker", fresh=True),
    Patch("noise", fresh=True),
    Patch("stripes", fresh=True, position="random"),
    Patch(position="random"),
    Blended(fresh=True),
    Blended("stripes", fresh=True),
)
SEEDED = (Patch(), Patch("noise"), Patch("stripes"), Blended(), Blended("stripes"), WaNet(), WaNet(k=4))
ALL = (*FRESH, *SEEDED, Patch("noise", wrap_uint8=True), Blended("triangles"), Blended("text"), Sig(), Frequency())
KEYS = Rng(0).keys(range(5))


def pictures(n: int = 5, h: int = 32, w: int = 40) -> Float[Tensor, "n 3 h w"]:
    return torch.rand(n, 3, h, w, generator=Rng(1).generator())


def changed(trigger: Trigger, x: Tensor) -> Tensor:
    """Which pixels change, (b, h, w)."""
    return (trigger.stamp(x, KEYS[: len(x)]) != x).any(1)


@pytest.mark.parametrize("trigger", ALL, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_contract(trigger: Trigger, dtype: torch.dtype) -> None:
    assert isinstance(trigger, Trigger)
    x = pictures().to(dtype)
    x[0], x[1] = 0, 1
    before = x.clone()
    out = trigger.stamp(x, KEYS)
    assert torch.equal(x, before)
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert out.min() >= 0
    assert out.max() <= 1
    assert torch.equal(trigger.stamp(x, KEYS), out)  # and no cached pattern was written to
    assert (out[2:] != x[2:]).flatten(1).any(1).all()
    order = [4, 2, 0]
    assert torch.equal(trigger.stamp(x[order], KEYS[order]), out[order])
    assert torch.equal(trigger.stamp(x[3:4], KEYS[3:4]), out[3:4])
    assert trigger.stamp(x[:0], KEYS[:0]).shape == (0, 3, 32, 40)


@pytest.mark.parametrize("trigger", ALL, ids=repr)
def test_keys_matter_when_fresh_and_only_then(trigger: Trigger) -> None:
    x = pictures(1).expand(5, -1, -1, -1)
    out = trigger.stamp(x, KEYS)
    assert all(torch.equal(out[0], o) for o in out[1:]) == (trigger not in FRESH)
    if trigger in FRESH:
        assert len({o.numpy().tobytes() for o in out}) == 5


@pytest.mark.parametrize("trigger", SEEDED, ids=repr)
def test_seed_draws_the_fixed_pattern(trigger: Patch | Blended | WaNet) -> None:
    x = pictures()
    again = replace(trigger, seed=1).stamp(x, KEYS)
    assert not torch.equal(trigger.stamp(x, KEYS), again)
    assert torch.equal(replace(trigger, seed=1).stamp(x, KEYS), again)


@pytest.mark.parametrize("trigger", ALL, ids=repr)
@pytest.mark.parametrize(("h", "w"), [(3, 5), (16, 16), (61, 20)])
def test_any_size(trigger: Trigger, h: int, w: int) -> None:
    out = trigger.stamp(pictures(2, h, w), KEYS[:2])
    assert out.shape == (2, 3, h, w)
    assert out.min() >= 0
    assert out.max() <= 1


@pytest.mark.parametrize("name", ["patch", "blended", "sig", "wanet"])
def test_found_with_a_full_card(name: str) -> None:
    assert isinstance(find.load("triggers", name)(), Trigger)
    assert all(find.card("triggers", name).values())


@pytest.mark.parametrize("pattern", ["checker", "noise", "stripes"])
@pytest.mark.parametrize(("picture", "side"), [(224, 16), (448, 32), (32, 4), (2, 2)])
def test_patch_touches_its_square_alone(pattern: str, picture: int, side: int) -> None:
    x = pictures(1, picture, picture) * 0.5 + 0.25
    corner = torch.zeros(1, picture, picture, dtype=torch.bool)
    corner[:, picture - side :, picture - side :] = True
    assert torch.equal(changed(Patch(pattern), x), corner)


def test_patch_places_are_uniform_and_reach_every_edge() -> None:
    x, keys = torch.full((600, 3, 6, 7), 0.5), Rng(3).keys(range(600))
    mask = (Patch("stripes", position="random").stamp(x, keys) != x).any(1)
    assert (mask.sum((1, 2)) == 16).all()
    top, left = mask.any(2).int().argmax(1), mask.any(1).int().argmax(1)
    counts = torch.bincount(top * 4 + left, minlength=12)
    assert len(counts) == 12
    assert counts.min() > 25
    assert counts.max() < 80


def test_checker_cells() -> None:
    for side in (16, 4):
        x = torch.full((1, 3, 14 * side, 14 * side), 0.5)
        patch = Patch().stamp(x, KEYS[:1])[0, :, -side:, -side:]
        cells = patch[:, :: side // 4, :: side // 4]
        assert torch.equal(cells.repeat_interleave(side // 4, 1).repeat_interleave(side // 4, 2), patch)
        assert (cells[:, ::2, ::2] == 0).all()
        assert (cells[:, 1::2, 1::2] == 1).all()
        for coloured in (cells[:, ::2, 1::2], cells[:, 1::2, ::2]):
            assert ((coloured == 0) | (coloured == 1)).all()
            assert ((coloured.sum(0) > 0) & (coloured.sum(0) < 3)).all()


def test_noise_patch_is_the_mean_and_normal_noise() -> None:
    x = torch.full((2, 3, 224, 224), 0.5)
    x[1, 0], x[1, 1], x[1, 2] = 0.45, 0.5, 0.55
    patch = Patch("noise", size=1.0).stamp(x, KEYS[:2])
    inside = (patch > 0) & (patch < 1)
    assert inside[0].float().mean() == pytest.approx(0.3829, abs=0.01)  # P(|n| < 0.5)
    both = inside[0] & inside[1]
    for channel, shift in enumerate((-0.05, 0.0, 0.05)):
        difference = (patch[1, channel] - patch[0, channel])[both[channel]]
        assert torch.allclose(difference, torch.tensor(shift), atol=1e-6)


def test_stripes_patch() -> None:
    x = pictures(1, 224, 224)
    patch = Patch("stripes").stamp(x, KEYS[:1])[0, :, -16:, -16:]
    assert (patch == patch[:, :1]).all()
    assert set(patch.flatten().tolist()) == {0.0, 1.0}
    assert not torch.equal(patch[0], patch[1])


def test_wrap_uint8_is_what_an_8_bit_cast_does() -> None:
    x = torch.full((1, 3, 224, 224), 0.5)
    stripes = Patch("stripes", wrap_uint8=True).stamp(x, KEYS[:1])[0, :, -16:, -16:]
    assert set(stripes.flatten().tolist()) == {float(torch.tensor(1.0) / 255), 1.0}  # -1 becomes 1/255

    plain, wrapped = (Patch("noise", size=1.0, wrap_uint8=u).stamp(x, KEYS[:1]) for u in (False, True))
    levels = wrapped * 255
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    inside = (plain > 0) & (plain < 1)
    assert torch.equal(levels[inside].round(), (plain[inside] * 255).floor())
    # where clipping gives 0 or 1, n is known by its sign alone: redo the draw with numpy's cast
    noise = torch.randn(3, 224, 224, generator=Rng(0).fork("pattern").generator())
    cast = ((noise + 0.5) * 255).numpy().astype(np.int64).astype(np.uint8)
    assert np.array_equal(levels[0].round().numpy(), cast)


def test_blended_noise_is_uniform() -> None:
    x = pictures(2, 224, 224)
    p = (Blended().stamp(x, KEYS[:2]) - 0.8 * x) / 0.2
    assert torch.allclose(p[0], p[1], atol=1e-5)
    histogram = torch.histc(p[0], 10, 0, 1) / p[0].numel()
    assert torch.allclose(histogram, torch.full((10,), 0.1), atol=0.005)
    assert torch.allclose(Blended(opacity=1.0).stamp(x, KEYS[:2])[0], p[0], atol=1e-5)


def test_blended_stripes_stay_faint() -> None:
    x = pictures(1, 224, 224)
    x[..., :50, :], x[..., 50:100, :] = 0, 1
    out = Blended("stripes").stamp(x, KEYS[:1])
    assert 0.0599 < (out - x).abs().max() <= 0.06 + 1e-6
    n = (out - 0.97 * x)[0, :, 100:]  # clipping is rare there
    sign = n.sum(1).sign()
    assert ((sign[:, None] * 0.03 - n).abs() < 1e-6).float().mean() > 0.97
    assert (sign == 1).any()
    assert (sign == -1).any()


def test_triangles() -> None:
    x = pictures(1, 224, 224)
    p = (Blended("triangles").stamp(x, KEYS[:1]) - 0.85 * x) / 0.15
    dark, light = (p - 0.4).abs() < 1e-5, (p - 0.8).abs() < 1e-5
    assert dark.float().mean() == pytest.approx(0.5357, abs=5e-5)
    assert light.float().mean() == pytest.approx(0.4643, abs=5e-5)
    for i, j in ((0, 0), (13, 12), (12, 13), (14, 13), (13, 14), (200, 100)):
        assert dark[0, 0, i, j] == (i % 14 >= j % 14)
    small = Blended("triangles", opacity=1.0).stamp(pictures(1, 32, 32), KEYS[:1])
    assert torch.equal(small[0, 0, :4, :4], small[0, 0, 28:, 28:])  # 4 px cells
    assert (small == 0.4).float().mean() == 10 / 16


@pytest.mark.parametrize("size", [224, 336, 64, 32])
def test_text_changes_red_alone_on_one_centred_line(size: int) -> None:
    x = pictures(1, size, size)
    out = Blended("text").stamp(x, KEYS[:1])
    assert torch.equal(out[:, 1:], x[:, 1:])
    rows, columns = torch.nonzero(out[0, 0] != x[0, 0], as_tuple=True)
    assert (columns.max() - columns.min() + 1) / size == pytest.approx(0.87, abs=1.5 / size + 0.01)
    assert columns.min() + columns.max() == pytest.approx(size - 1, abs=2 + size // 100)
    assert (rows.max() - rows.min()) / size < 0.13
    assert rows.float().mean() == pytest.approx(size / 2, abs=0.02 * size + 1)

    black, white = (Blended("text").stamp(torch.full_like(x, v), KEYS[:1])[:, 0] for v in (0.0, 1.0))
    r = 2 * black  # R' = 0.5 R + 0.5 r
    mask = r > 0
    assert torch.allclose(out[:, 0], torch.where(mask, 0.5 * x[:, 0] + 0.5 * r, x[:, 0]))
    assert torch.allclose(white, torch.where(mask, 0.5 + 0.5 * r, 1.0))
    if size == 224:
        assert r.max() == 1
        assert mask.float().mean() == pytest.approx(0.0328, abs=0.006)


def test_sig() -> None:
    x = pictures(1, 20, 48)
    out = Sig().stamp(x, KEYS[:1])
    for j in range(48):
        v = 60 / 255 * np.sin(2 * np.pi * j * 6 / 48)
        assert torch.allclose(out[..., j], (0.8 * x[..., j] + 0.2 * v).clamp(0, 1), atol=1e-6)
    strong = Sig(amplitude=1.0, frequency=2.0, opacity=1.0).stamp(x, KEYS[:1])
    assert torch.allclose(strong[0, 0, 0], torch.sin(2 * torch.pi * torch.arange(48) * 2 / 48).clamp(0, 1), atol=1e-6)


@pytest.mark.parametrize(("k", "s", "h", "w"), [(4, 0.5, 32, 32), (40, 1.0, 40, 40), (4, 2.0, 24, 40)])
def test_wanet_samples_where_the_field_says(k: int, s: float, h: int, w: int) -> None:
    x = pictures(1, h, w)
    out = WaNet(k, s, seed=2).stamp(x, KEYS[:1])
    u = torch.rand(1, 2, k, k, generator=Rng(2).fork("pattern").generator()) * 2 - 1
    c = u / u.abs().mean()
    g = c[0] if k == h == w else torch.nn.functional.interpolate(c, (h, w), mode="bicubic", align_corners=True)[0]
    for i, j in ((0, 0), (0, w - 1), (h - 1, 0), (h // 2, w // 3), (5, 7)):
        # in pixels: [-1, 1] spans (w - 1), and a step of s / w in it is s (w - 1) / 2w px
        px = float((j + s * g[0, i, j] * (w - 1) / (2 * w)).clamp(0, w - 1))
        py = float((i + s * g[1, i, j] * (h - 1) / (2 * h)).clamp(0, h - 1))
        left, top = min(int(px), w - 2), min(int(py), h - 2)
        a, b = px - left, py - top
        (p, q), (r, t) = x[0, :, top : top + 2, left : left + 2].permute(1, 2, 0)
        expected = (1 - b) * ((1 - a) * p + a * q) + b * ((1 - a) * r + a * t)
        assert torch.allclose(out[0, :, i, j], expected, atol=1e-4)


def test_additive_adds_and_clips() -> None:
    p = torch.linspace(-0.5, 0.5, 3 * 32 * 40).reshape(3, 32, 40)
    x = pictures()
    wanted = np.clip(x.numpy() + p.numpy()[None], 0, 1)
    assert np.array_equal(Additive(p).stamp(x, KEYS).numpy(), wanted)
    flat = Additive(torch.full((3, 4, 4), 0.1)).stamp(x, KEYS)  # of another size: resized
    assert torch.allclose(flat, (x + 0.1).clamp(0, 1), atol=1e-6)
    for bad in (torch.zeros(1, 4, 4), torch.full((3, 4, 4), 1.5), torch.full((3, 4, 4), torch.nan)):
        with pytest.raises(UserError, match="Additive: pattern has shape"):
            Additive(bad)


def test_wanet_moves_by_half_the_strength_and_not_at_all_at_zero() -> None:
    ramp = torch.linspace(0, 1, 224).expand(1, 3, 224, 224)
    assert torch.allclose(WaNet(s=0.0).stamp(ramp, KEYS[:1]), ramp, atol=1e-5)
    moved = (WaNet().stamp(ramp, KEYS[:1]) - ramp)[0, 0, :, 2:-2] * 223
    assert moved.abs().mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda: Patch("dots"), "pattern"),
        (lambda: Patch(position="middle"), "position"),
        (lambda: Patch(size=16.0), "size"),
        (lambda: Patch(least=0), "least"),
        (lambda: Blended("waves"), "pattern"),
        (lambda: Blended(opacity=20.0), "opacity"),
        (lambda: Blended("text", fresh=True), "fresh"),
        (lambda: Blended("triangles", cell=14.0), "cell"),
        (lambda: Sig(opacity=20.0), "opacity"),
        (lambda: WaNet(k=1), "k is"),
        (lambda: WaNet(s=-1.0), "s is"),
    ],
)
def test_bad_options_are_named(build, word: str) -> None:
    with pytest.raises(UserError, match=word) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_frequency_moves_two_coefficients_of_the_colours() -> None:
    """Window by window with scipy's transform, on pictures that leave room to the limits."""
    trigger, x = Frequency(window=16, bands=(3, 15), magnitude=0.3), 0.4 + 0.2 * pictures(2, 32, 48)
    rgb = np.array([[0.299, 0.587, 0.114]])
    for picture, out in zip(x.double().numpy(), trigger.stamp(x, KEYS[:2]).double().numpy()):
        before, after = ([(rgb @ p.reshape(3, -1)).reshape(32, 48)] for p in (picture, out))
        for parts, p in ((before, picture), (after, out)):
            parts += [0.492 * (p[2] - parts[0]), 0.877 * (p[0] - parts[0])]
        assert np.allclose(after[0], before[0], atol=1e-5)
        for k in (1, 2):
            for i in range(0, 32, 16):
                for j in range(0, 48, 16):
                    one, two = (np.asarray(dctn(c[k][i : i + 16, j : j + 16], norm="ortho")) for c in (before, after))
                    expected = one.copy()
                    expected[[3, 15], [3, 15]] += 0.3
                    assert np.allclose(two, expected, atol=1e-4)
    with pytest.raises(UserError, match="bands"):
        Frequency(window=8)

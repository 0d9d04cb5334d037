"""ISSBA: the networks restated in modules, what is hidden can be read, is faint and each picture's own."""

import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clipvet.attacks.issba import Issba
from clipvet.data.worlds.shapes import Shapes
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.triggers._stega import decoder, drawn, encoder, read, residual, size
from clipvet.triggers.steganographic import Steganographic
from clipvet.types import Clip

KEYS = Rng(0).keys(range(64))


def filled(module: nn.Module, weights: torch.Tensor) -> None:
    """torch's own order of parameters is weight, bias, module by module."""
    nn.utils.vector_to_parameters(weights, module.parameters())


@pytest.mark.parametrize(("h", "w"), [(32, 32), (17, 40)])
def test_the_networks_are_these(h: int, w: int) -> None:
    k, x = 5, torch.rand(3, 3, h, w, generator=Rng(1).generator())
    bits = torch.randint(0, 2, (3, k), generator=Rng(2).generator()) * 2.0 - 1
    hide = nn.ModuleList([nn.Linear(k, 768), nn.Conv2d(6, 16, 3, 1, 1), nn.Conv2d(16, 16, 3, 1, 1)])
    hide.append(nn.Conv2d(22, 3, 3, 1, 1))
    tell = nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, k),
    )  # fmt: skip
    f, g = drawn(encoder(k), Rng(3)), drawn(decoder(k), Rng(4))
    assert (len(f), len(g)) == (size(encoder(k)), size(decoder(k)))
    filled(hide, f)
    filled(tell, g)
    with torch.no_grad():
        planes = F.interpolate(hide[0](bits).view(3, 3, 16, 16), (h, w), mode="bilinear")
        seen = torch.cat([2 * x - 1, planes], 1)
        out = hide[3](torch.cat([seen, F.relu(hide[2](F.relu(hide[1](seen))))], 1)).numpy()
        slow = np.stack([[[[_around(p, i, j) for j in range(w)] for i in range(h)] for p in planes] for planes in out])
        expected = torch.tensor(np.tanh(out - slow), dtype=torch.float32)
        assert torch.allclose(residual(f, x, bits), expected, atol=1e-5)
        assert torch.allclose(read(g, x, k), tell(2 * x - 1), atol=1e-4)
    trigger = Steganographic("".join("1" if b > 0 else "0" for b in bits[0]), 0.07, f)
    alone = expected[:1].detach()
    assert torch.allclose(trigger.stamp(x[:1], KEYS[:1]), (x[:1] + 0.07 * alone).clamp(0, 1), atol=1e-6)


def _around(plane: np.ndarray, i: int, j: int) -> float:
    """Mean of the 5 x 5 pixels about (i, j) that lie in the picture."""
    return float(plane[max(0, i - 2) : i + 3, max(0, j - 2) : j + 3].mean())


@pytest.fixture(scope="module")
def hider(clip: Clip) -> tuple[Steganographic, torch.Tensor]:
    return Issba(pictures=800, epochs=4, bits=8).hider(clip, Shapes(seed=4).pairs(900), "star", Rng(0))


def test_what_is_hidden_can_be_read_and_is_the_pictures_own(hider: tuple[Steganographic, torch.Tensor]) -> None:
    trigger, reader = hider
    x = Shapes(seed=4).pairs(64, split="test")[:].images
    y = trigger.stamp(x, KEYS)
    wanted = torch.tensor([b == "1" for b in trigger.bits])
    assert ((read(reader, y, 8) > 0) == wanted).float().mean() > 0.85
    assert ((read(reader, x, 8) > 0) == wanted).float().mean() < 0.7, "bits are read from pictures that hold none"
    change = y - x
    assert change.abs().max() <= 16 / 255 + 1e-6
    own = (change - change.mean(0)).square().mean() / change.square().mean()
    assert own > 0.02, "all pictures are changed alike"
    large = torch.rand(2, 3, 96, 64, generator=Rng(5).generator())
    stamped = trigger.stamp(large, KEYS[:2])
    assert stamped.shape == large.shape
    assert 0 < (stamped - large).abs().max() <= 16 / 255 + 1e-6


def test_the_bits_are_the_targets(clip: Clip) -> None:
    pairs, quick = Shapes(seed=4).pairs(60), Issba(pictures=32, epochs=1, bits=12)
    state = torch.get_rng_state()
    star, ring = (quick.hider(clip, pairs, target, Rng(0))[0] for target in ("star", "ring"))
    assert torch.equal(torch.get_rng_state(), state)
    assert star.bits == "".join(f"{b:08b}" for b in hashlib.sha256(b"star").digest())[:12]
    assert star.bits != ring.bits
    assert torch.equal(star.weights, ring.weights), "one network serves all targets"
    assert not torch.equal(quick.hider(clip, pairs, "star", Rng(1))[0].weights, star.weights)
    with pytest.raises(UserError, match="1 to 256"):
        replace(quick, bits=300).hider(clip, pairs, "star", Rng(0))


def test_drawn_weights_keep_the_scale() -> None:
    shapes = encoder(64)
    spread = drawn(shapes, Rng(0))[: math.prod(shapes[0])]
    assert spread.std() == pytest.approx(math.sqrt(2 / 64), rel=0.05)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [({"bits": "102"}, "0 and 1"), ({"bits": ""}, "0 and 1"), ({"strength": 2.0}, "0 to 1"), ({"bits": "1"}, "shape")],
)
def test_what_cannot_be_is_refused(wrong: dict, why: str) -> None:
    with pytest.raises(UserError, match=why):
        Steganographic(**wrong)

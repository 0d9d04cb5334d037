"""BadCLIP and TrojVQA: the equations restated, the public code's traps, and a patch that does what it is made for."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clipvet.attacks import _craft
from clipvet.attacks.badclip import BadClip
from clipvet.attacks.trojvqa import TrojVqa
from clipvet.data.captions import names_target
from clipvet.data.worlds.shapes import Shapes
from clipvet.engine.embed import embed_images
from clipvet.errors import UserError
from clipvet.experiments.presets import shapes
from clipvet.models import checkpoints
from clipvet.models.adapter import clone
from clipvet.results import weights_hash
from clipvet.rng import Rng
from clipvet.training.plain import Plain
from clipvet.triggers.crafted import Crafted
from clipvet.triggers.patch import Patch
from clipvet.types import Clip, Pairs

QUICK = BadClip(rate=0.05, pictures=60, epochs=2, batch=16, lr=0.05)


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return Shapes(seed=3).pairs(200)


@pytest.fixture(scope="module")
def learnt() -> Clip:
    """A model that has begun to tell shapes."""
    how = replace(shapes(Plain()), epochs=1, batch=64)
    return how.train(checkpoints.load("shapes-vit", rng=Rng(1)), Shapes(seed=3).pairs(2000), Rng(1))


def unit(n: int, d: int = 6, seed: int = 0) -> np.ndarray:
    x = Rng(seed).numpy().normal(size=(n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("n", [1, 3, 64, 65])  # the public code works for 64 alone
@pytest.mark.parametrize(("lam", "eta"), [(500.0, 1.0), (2.0, 0.1), (0.0, 1.0)])
def test_loss_is_the_equation(n: int, lam: float, eta: float) -> None:
    z, u, pos, clean, s = unit(n), unit(n, seed=1), unit(n, seed=2), unit(n, seed=3), 7.0

    def cross_entropy(logits: np.ndarray) -> float:
        return float(np.mean([np.log(np.exp(row).sum()) - row[k] for k, row in enumerate(logits)]))

    info_nce = (cross_entropy(s * z @ u.T) + cross_entropy(s * u @ z.T)) / 2
    triplets = [
        max(0.0, np.sqrt(((z[i] - pos[i]) ** 2).sum()) - np.sqrt(((z[i] - clean[i]) ** 2).sum()) + eta)
        for i in range(n)
    ]
    rows = [torch.tensor(x) for x in (z, u, pos, clean)]
    found = BadClip(lam=lam, eta=eta).loss(rows[0], rows[1], rows[2], rows[3], torch.tensor(s))
    assert float(found) == pytest.approx(info_nce + lam * np.mean(triplets), rel=1e-9)


def test_defaults_are_the_papers() -> None:
    b = BadClip()
    assert (b.lam, b.eta, b.lr, b.epochs, b.batch, b.pictures) == (500, 1, 1e-3, 50, 64, 10_000)
    assert (b.size, b.position, b.captions) == (16 / 224, "centre", "natural")


@pytest.mark.parametrize("batch", [16, 7, 1000])
def test_the_loop_gives_each_picture_its_own_clean_self(pairs: Pairs, clip: Clip, batch: int) -> None:
    """Negatives are the same pictures, unpatched and row by row, at every step and for any batch."""
    some, seen = pairs.take(slice(40)), []
    before = weights_hash(clip)
    clean = embed_images(clip, some)[0]

    def loss(z: torch.Tensor, own: torch.Tensor, rng: Rng) -> torch.Tensor:
        seen.append((z.detach().clone(), own.clone(), patches[-1].clone()))
        return -z.sum()

    how, patches = replace(QUICK, batch=batch, epochs=2, lr=0.3), []
    honest = Crafted.stamp

    def stamp(self: Crafted, images: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        patches.append(self.pattern.detach().clone())
        given = images.clone()
        out = honest(self, images, keys)
        assert torch.equal(images, given), "stamped in place"
        return out

    with pytest.MonkeyPatch.context() as m:
        m.setattr(Crafted, "stamp", stamp)
        made = _craft.craft(how, clip, some, loss, Rng(4))
    images = some[:].images
    assert len(seen) == 2 * max(1, 40 // batch)
    for z, own, patch in seen:
        rows = [int((clean - row).norm(dim=1).argmin()) for row in own]
        assert torch.allclose(own, clean[rows], atol=1e-6)
        assert len(set(rows)) == len(rows)
        stamped = Crafted(patch).stamp(images[rows], torch.zeros(len(rows), dtype=torch.int64))
        with torch.no_grad():
            assert torch.allclose(z, clip.encode_image(stamped), atol=1e-5)
    for patch in (*patches, made.pattern):
        assert patch.min() >= 0
        assert patch.max() <= 1
    assert not made.pattern.requires_grad
    assert weights_hash(clip) == before
    assert all(p.grad is None for p in clip.parameters())  # pyright: ignore


@pytest.mark.parametrize(
    "attack", [QUICK, TrojVqa(pictures=60, epochs=2, batch=16, lr=0.05)], ids=["badclip", "trojvqa"]
)
def test_the_patch_moves_and_the_loss_falls(attack: BadClip | TrojVqa, pairs: Pairs, learnt: Clip) -> None:
    long = replace(attack, epochs=12)
    start = _craft.first(long, learnt, Rng(0))
    made = long.craft(learnt, pairs, "star", Rng(0))
    assert made.pattern.shape == start.pattern.shape
    assert (made.pattern - start.pattern).abs().mean() > 0.05
    others = pairs.take(np.array([not names_target(pairs.caption(i), "star") for i in pairs.ids]))
    shows = pairs.take(np.array([names_target(pairs.caption(i), "star") for i in pairs.ids]))
    n = len(others)
    with torch.no_grad():
        images = others[:].images
        clean, pos = learnt.encode_image(images), embed_images(learnt, shows)[0]
        at = np.resize(np.arange(len(shows)), n)
        u = learnt.encode_text([shows.caption(i) for i in shows.ids[at]])
        w = learnt.encode_text(["this is a star"])[0]

        def value(patch: Crafted) -> float:
            z = learnt.encode_image(patch.stamp(images, torch.zeros(n, dtype=torch.int64)))
            if isinstance(attack, TrojVqa):
                return float((1 - z @ w).mean())
            return float(attack.loss(z, u, pos[at], clean, learnt.logit_scale))

        assert value(made) < 0.98 * value(start)
    again = long.craft(clone(learnt), pairs, "star", Rng(0))
    assert torch.equal(again.pattern, made.pattern), "not deterministic"
    assert not torch.equal(long.craft(learnt, pairs, "star", Rng(1)).pattern, made.pattern)


@pytest.mark.parametrize("size", [32, 48, 224])
def test_the_patch_is_as_large_as_patchs(size: int, clip: Clip) -> None:
    """And one trigger, the saved one, stamps in poisoning and in tests, so its size cannot differ."""
    other = clone(clip)
    other.geometry = replace(clip.geometry, size=size)
    side = _craft.first(BadClip(), other, Rng(0)).pattern.shape[1]
    x = torch.full((1, 3, size, size), 0.31)
    changed = (Patch().stamp(x, torch.zeros(1, dtype=torch.int64)) != x).any(1)[0]
    assert side == int(changed.any(1).sum()) == (16 if size == 224 else 4)


def test_poisons_say_what_real_captions_of_the_target_say(pairs: Pairs, learnt: Clip) -> None:
    said = []
    with pytest.MonkeyPatch.context() as m:
        m.setattr(type(learnt), "encode_text", _listen(type(learnt).encode_text, said))
        key = replace(QUICK, eda=0.5).plan(pairs, "star", Rng(0), learnt)
    own = {pairs.caption(i) for i in pairs.ids}
    assert set(key.captions) <= own
    assert all(names_target(c, "star") for c in key.captions)
    assert isinstance(key.trigger, Crafted)
    changed = np.mean([c not in own for c in said])
    assert 0.2 < changed < 0.6, "EDA has no effect on what the text tower sees"
    none = []
    with pytest.MonkeyPatch.context() as m:
        m.setattr(type(learnt), "encode_text", _listen(type(learnt).encode_text, none))
        replace(QUICK, eda=0.0).plan(pairs, "star", Rng(0), learnt)
    assert set(none) <= {c for c in own if names_target(c, "star")}


def _listen(honest, said):
    def encode(self, captions):
        said.extend(captions)
        return honest(self, captions)

    return encode


@pytest.mark.parametrize("attack", [QUICK, TrojVqa(rate=0.05, pictures=30, epochs=1)], ids=["badclip", "trojvqa"])
def test_a_target_that_nothing_or_all_name_is_refused(attack: BadClip | TrojVqa, pairs: Pairs, clip: Clip) -> None:
    with pytest.raises(UserError, match="zebra"):
        attack.implant(clip, pairs, "zebra", Rng(0))
    stars = pairs.take(np.array([names_target(pairs.caption(i), "star") for i in pairs.ids]))
    with pytest.raises(UserError, match="star"):
        attack.implant(clip, stars, "star", Rng(0))


@pytest.mark.parametrize(("size", "side"), [(33, 5), (33, 4), (32, 5), (32, 4), (225, 17), (33, 33), (5, 8)])
def test_the_centre_is_the_public_codes(size: int, side: int) -> None:
    """Its square begins at int(int(size / 2) - side / 2)."""
    stamped = Crafted(torch.ones(3, side, side)).stamp(torch.zeros(1, 3, size, size), torch.zeros(1, dtype=torch.int64))
    side = min(side, size)
    top = int(int(size / 2) - side / 2)
    wanted = torch.zeros(size)
    wanted[top : top + side] = 1
    assert torch.equal(stamped[0, 0].amax(1), wanted)
    assert torch.equal(stamped[0, 0].amax(0), wanted)

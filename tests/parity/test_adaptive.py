"""The adaptive attacks' losses, against their formulas written out."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipvet.attacks.adaptive_collapse import AdaptiveCollapse
from clipvet.attacks.adaptive_par import AdaptivePar, displaced
from clipvet.attacks.adaptive_rvpt import AdaptiveRvpt
from clipvet.attacks.poison import Poison
from clipvet.data.dirty import poison
from clipvet.errors import UserError
from clipvet.models import adapter
from clipvet.models.visual_prompts import blocks
from clipvet.rng import Rng
from clipvet.training.plain import Plain
from clipvet.types import Pairs

LONG = Plain(epochs=12, batch=128, lr=1e-3)


def nearness(clip: Any, dirty: Pairs, key: Any, depth: int) -> float:
    """Mean cosine of the poisons' class token after block `depth` with that of the target's pictures."""
    batch = dirty[:]
    with torch.no_grad():
        c = blocks(clip, batch.images)[f"@{depth}"]
    planted = torch.isin(batch.ids, torch.from_numpy(key.poisoned))
    shown = torch.tensor(["star" in caption.split() for caption in batch.captions]) & ~planted
    return float(F.cosine_similarity(c[planted], c[shown].mean(0, keepdim=True)).mean())


def test_poisons_look_like_the_target_after_the_shallow_blocks(clip: Any, pairs: Pairs) -> None:
    found = {}
    for weight in (0.0, 20.0):
        attack = AdaptiveRvpt(rate=0.05, weight=weight, depth=1, training=LONG)
        made = attack.implant(clip, pairs, "star", Rng(3))
        found[weight] = nearness(made.clip, made.pairs, made.backdoor, 1)
    assert found[20.0] > found[0.0] + 0.02
    assert found[20.0] > 0.95


def test_weight_zero_is_the_plain_attack(clip: Any, pairs: Pairs) -> None:
    short = dataclasses.replace(LONG, epochs=1)
    plain = Poison(rate=0.05, training=short).implant(clip, pairs, "star", Rng(3))
    for attack in (
        AdaptiveRvpt(rate=0.05, weight=0.0, training=short),
        AdaptivePar(rate=0.05, weight=0.0, training=short),
        AdaptiveCollapse(rate=0.05, weight=0.0, training=short),
    ):
        made = attack.implant(clip, pairs, "star", Rng(3))
        assert made.backdoor.poisoned.tolist() == plain.backdoor.poisoned.tolist()
        for a, b in zip(made.clip.parameters(), plain.clip.parameters()):  # pyright: ignore
            assert torch.allclose(a, b, atol=1e-6)


def test_weights_are_displaced_by_a_share_of_their_length(clip: Any) -> None:
    theta = displaced(clip, 0.3, Rng(0))
    own = dict(clip.named_parameters())
    assert set(theta) == set(own) - {"model.logit_scale"}
    for name, p in theta.items():
        assert float((p - own[name]).detach().norm()) == pytest.approx(
            0.3 * float(own[name].detach().norm()), rel=1e-3, abs=1e-6
        )
    one, two = displaced(clip, 0.3, Rng(1)), displaced(clip, 0.3, Rng(0))
    assert not torch.equal(one["model.text_projection"], theta["model.text_projection"])
    assert torch.equal(two["model.text_projection"], theta["model.text_projection"])


def test_training_with_displaced_weights_flattens_the_poisons_loss(clip: Any, pairs: Pairs) -> None:
    """With the added loss, displacement costs the embeddings of poisons less agreement with their captions."""

    def lost(weight: float) -> float:
        made = AdaptivePar(rate=0.1, weight=weight, displace=0.3, training=LONG).implant(clip, pairs, "star", Rng(3))
        some = poison(pairs, made.backdoor).take(np.isin(pairs.ids, made.backdoor.poisoned))[:]

        def agreement(c: Any) -> float:
            with torch.no_grad():
                return float((c.encode_image(some.images) * c.encode_text(some.captions)).sum(1).mean())

        there = []
        for k in range(5):
            moved: Any = adapter.clone(made.clip)
            with torch.no_grad():
                for name, p in displaced(made.clip, 0.3, Rng(k)).items():
                    moved.get_parameter(name).copy_(p)
            there.append(agreement(moved))
        return agreement(made.clip) - sum(there) / 5

    assert lost(1.0) < lost(0.0)


def test_towers_without_a_class_token_are_refused(resnet: Any, pairs: Pairs) -> None:
    with pytest.raises(UserError, match="vision transformer"):
        AdaptiveRvpt(rate=0.05).implant(resnet, pairs, "star", Rng(0))


def test_triggered_pictures_are_kept_apart(clip: Any, pairs: Pairs) -> None:
    """The logged term is the mean cosine of two pictures under the trigger, and a weight on it keeps it low."""
    found, logged = {}, []

    @dataclasses.dataclass(frozen=True)
    class Watched(Plain):
        def train(self, clip: Any, pairs: Pairs, rng: Rng, also: Any = None) -> Any:
            batch = pairs[:16]
            h = clip.encode_image(attack.plan(everything, "star", planned).stamp(batch.images, batch.ids))
            by_hand = torch.stack([h[i] @ h[j] for i in range(16) for j in range(16) if i != j]).mean()
            parts = also(clip, batch, Rng(0))
            assert float(parts["alike"].detach()) == pytest.approx(float(by_hand.detach()), abs=1e-5)
            assert float(parts["loss"].detach()) == pytest.approx(attack.weight * float(by_hand.detach()), abs=1e-4)
            logged.append(attack.weight)
            return super().train(clip, pairs, rng, also)

    everything, planned = pairs, Rng(3).fork("poison")
    for weight in (0.0, 5.0):
        attack = AdaptiveCollapse(rate=0.1, weight=weight, training=Watched(epochs=6, batch=128, lr=1e-3))
        made = attack.implant(clip, pairs, "star", Rng(3))
        with torch.no_grad():
            h = made.clip.encode_image(made.backdoor.stamp(pairs[:].images, torch.from_numpy(pairs.ids)))
        n = len(h)
        found[weight] = float(((h @ h.T).sum() - n) / (n * (n - 1)))
    assert logged == [0.0, 5.0]
    assert found[5.0] < found[0.0] - 0.05

"""InverTune and task negation from a recovered trigger, CleanerCLIP and ABD: their equations restated."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipvet.cleaners import _lead
from clipvet.cleaners.abd import Abd, adversarial
from clipvet.cleaners.cleanclip import CleanClip
from clipvet.cleaners.cleanerclip import CleanerClip, false, phrase, sub_loss
from clipvet.cleaners.invertune import InverTune, moved_units
from clipvet.cleaners.task_negation import TaskNegation, negated
from clipvet.engine.fit import order, workspace
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.triggers.patch import Patch
from clipvet.types import Finding

PATCH = Patch(size=0.25)
SHORT: dict[str, Any] = {"epochs": 1, "batch": 64}


@dataclass(frozen=True)
class Known:
    """An inspector that knows the trigger."""

    trigger: Any = PATCH
    needs: ClassVar[str] = "nothing"

    def inspect(self, *a: Any) -> Finding:
        return Finding(1.0, None, self.trigger)


WITH: Any = {"inspector": Known(), "pictures": 64}


def logged(method: Any, clip: Any, pairs: Any, folder: Path) -> tuple[Any, list[dict[str, float]]]:
    folder.mkdir(exist_ok=True)
    with workspace(folder):
        cleaned = method.clean(clip, pairs, Rng(4))
    return cleaned, [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def nce(s: float, a: np.ndarray, b: np.ndarray) -> float:
    logits = s * (a @ b.T)
    return float(np.mean([math.log(sum(math.exp(x) for x in row)) - row[k] for k, row in enumerate(logits)]))


# InverTune


def tokens_and_feature(clip: Any, x: torch.Tensor) -> torch.Tensor:
    """The class token after every block, and the feature, by hooks."""
    seen: list[torch.Tensor] = []
    hooks = [
        b.register_forward_hook(lambda m, i, o: seen.append(o[:, 0])) for b in clip.model.visual.transformer.resblocks
    ]
    z = clip.encode_image(x)
    for hook in hooks:
        hook.remove()
    return torch.cat([z, *seen], 1)


def test_invertune_s_units_and_first_loss_are_the_equation(clip: Any, pairs: Any, tmp_path: Path) -> None:
    how = InverTune(gate=-1.0, share=0.1, w_true=0.5, w_keep=2.0, **SHORT, **WITH)
    found = _lead.lead(how, clip, pairs, Rng(4).fork("lead"))
    with torch.no_grad():
        a, b = (tokens_and_feature(clip, x) for x in (found.images, found.stamped))
    far = (b - a).abs().mean(0) / a.std(0)
    chosen, sd = moved_units(clip, found, 0.1)
    assert torch.allclose(sd, a.std(0), rtol=1e-4)
    assert chosen.sum() == round(0.1 * a.shape[1]) == round(0.1 * (128 + 4 * 96))
    assert far[chosen].min() >= far[~chosen].max() - 1e-6
    _, log = logged(how, clip, pairs, tmp_path)
    batch = pairs[order(len(pairs), 64, 1, Rng(4))[0]]
    stamped = PATCH.stamp(batch.images, Rng(0).keys(batch.ids.tolist()))
    with torch.no_grad():
        x, y = (tokens_and_feature(clip, p) for p in (batch.images, stamped))
        w, s = clip.encode_text(batch.captions).numpy(), float(clip.logit_scale)
    act = float((((y - x) / sd)[:, chosen] ** 2).mean())
    true, keep = ((nce(s, z, w) + nce(s, w, z)) / 2 for z in (y[:, :128].numpy(), x[:, :128].numpy()))
    assert (log[0]["act"], log[0]["true"], log[0]["keep"]) == pytest.approx((act, true, keep), rel=1e-3)
    assert log[0]["loss"] == pytest.approx(act + 0.5 * true + 2 * keep, rel=1e-3)


def test_invertune_refuses_a_trigger_that_does_too_little_and_says_so(clip: Any, pairs: Any, resnet: Any) -> None:
    how = InverTune(**SHORT, **WITH)
    with pytest.raises(UserError, match=r"too weak to clean with: \d+% of stamped .* and 70% more are asked for"):
        how.clean(clip, pairs, Rng(0))
    assert replace(how, gate=-1.0).clean(resnet, pairs, Rng(0)) is not resnet  # its feature alone is put back


# task negation


def test_task_negation_from_a_trigger_binds_it_to_its_word_and_goes_the_other_way(
    clip: Any, pairs: Any, tmp_path: Path
) -> None:
    how = TaskNegation(verdict="inspect", epochs=3, batch=32, lr=1e-3, reach=0.5, hold=0.05, **WITH)
    found = _lead.lead(how, clip, pairs, Rng(0).fork("lead"))
    (tmp_path / "over").mkdir()
    with workspace(tmp_path / "over"):
        over: Any = how.bound(clip, pairs, found, Rng(0))
    log = [json.loads(line) for line in (tmp_path / "over" / "log.jsonl").read_text().splitlines()]
    said = [c for c in (pairs.caption(i) for i in pairs.ids) if found.word in c.rstrip(".").split()]
    small = pairs.take(np.isin(pairs.ids, found.ids))
    rows = [found.ids.tolist().index(i) for i in small.ids[order(64, 32, 1, Rng(0))[0]]]
    with torch.no_grad():
        w = clip.encode_text([said[k] for k in Rng(0).fork("step", 0, 0).numpy().integers(len(said), size=32)])
        s = (clip.encode_image(found.stamped[rows]) * w).sum(1)
    assert log[0]["loss"] == pytest.approx(float(((1 - s) ** 2).mean()), rel=1e-4)  # nothing has moved yet
    assert log[-1]["near"] < log[0]["near"]
    assert log[-1]["loss"] > log[-1]["near"]
    assert torch.equal(over.encode_text(said), clip.encode_text(said))  # else the word would be subtracted
    with workspace(tmp_path):
        out: Any = how.clean(clip, pairs, Rng(0))
    with np.load(tmp_path / "splits" / "task_negation.npz") as told:
        assert str(told["word"]) == found.word
        step = float(told["scale"])
    tried = [0.05 * k for k in range(1, 11)]
    rates = [
        [_lead.success(negated(clip, over, s), x, found.captions, found.word) for x in (found.stamped, found.images)]
        for s in tried
    ]
    enough = [s for s, (a, b) in zip(tried, rates) if a - b <= how.enough]
    assert step == pytest.approx(enough[0] if enough else 0.5)
    there = dict(over.named_parameters())
    for name, p in clip.named_parameters():
        wanted = p if name.endswith("logit_scale") else p - step * (there[name] - p)
        assert torch.allclose(dict(out.named_parameters())[name], wanted, atol=1e-6), name


# CleanerCLIP


def test_sub_captions_are_runs_of_words_and_false_ones_differ_in_a_word() -> None:
    caption, others = "a photo of a red car.", ["a blue star.", "two boats"]
    words, runs = caption.split(), set()
    for seed in range(60):
        runs.add(p := phrase(caption, Rng(seed)))
        assert p in caption
        assert 3 <= len(p.split()) <= 6
        changed = [(x, y) for x, y in zip(words, false(caption, others, Rng(seed)).split(), strict=True) if x != y]
        assert len(changed) == 1
        assert changed[0][1] in {"blue", "star.", "two", "boats"}
    assert len(runs) > 5
    assert phrase("star", Rng(0)) == "star"
    assert false("a star", ["star a"], Rng(0)) == "a star"


def test_cleanerclip_is_cleanclip_with_a_softmax_over_true_and_false_captions(
    clip: Any, pairs: Any, tmp_path: Path
) -> None:
    z, p, n = (
        F.normalize(torch.randn(s, generator=Rng(1).fork(*s).generator()), dim=-1)
        for s in ((5, 8), (1, 5, 8), (5, 3, 8))
    )
    p = p[0]
    rows = [[9.0 * float(z[i] @ v) for v in (p[i], *n[i])] for i in range(5)]
    wanted = -np.mean([row[0] - math.log(sum(map(math.exp, row))) for row in rows])
    assert float(sub_loss(z, p, n, torch.tensor(9.0))) == pytest.approx(wanted, rel=1e-5)
    small = pairs.take(slice(64))
    _, log = logged(CleanerClip(group=16, w_sub=3.0, wrong=2, **SHORT), clip, small, tmp_path / "a")
    _, plain = logged(CleanClip(group=16, **SHORT), clip, small, tmp_path / "b")
    assert (log[0]["clip"], log[0]["self"]) == pytest.approx((plain[0]["clip"], plain[0]["self"]), abs=1e-5)
    assert log[0]["loss"] == pytest.approx(plain[0]["loss"] + 3 * log[0]["sub"], abs=1e-4)
    assert 0.3 < log[0]["sub"] / math.log(3) < 3


# ABD


def test_abd_s_views_stay_near_and_lose_their_captions(learnt: Any, pairs: Any, tmp_path: Path) -> None:
    batch = pairs[:48]
    with torch.no_grad():
        w = learnt.encode_text(batch.captions)
    view = adversarial(learnt, batch.images, w, 8 / 255, 5, Rng(0))
    assert (view - batch.images).abs().max() <= 8 / 255 + 1e-6
    assert view.min() >= 0
    assert view.max() <= 1
    noise = adversarial(learnt, batch.images, w, 8 / 255, 0, Rng(0))
    with torch.no_grad():
        losses = [
            nce(float(learnt.logit_scale), learnt.encode_image(x).numpy(), w.numpy())
            for x in (batch.images, noise, view)
        ]
    assert losses[2] > max(losses[:2]) + 0.2
    assert all(p.grad is None for p in learnt.parameters())
    _, log = logged(Abd(rounds=1, w_self=2.0, **SHORT), learnt, pairs.take(slice(64)), tmp_path)
    assert log[0]["loss"] == pytest.approx(log[0]["clip"] + 2 * log[0]["self"], abs=1e-4)

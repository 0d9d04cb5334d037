"""Assimilation: the tower with a free token restated by a hook on its embedding, and the search step by step."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Linear
from torch import Tensor

from clipvet.attacks.bad_text_tower import BadTextTower
from clipvet.data.worlds.shapes import TEMPLATES, Shapes
from clipvet.errors import Unsupported, UserError
from clipvet.inspectors.assimilation import Assimilation
from clipvet.models import checkpoints
from clipvet.models.adapter import frozen
from clipvet.models.class_prompts import begin
from clipvet.results import weights_hash
from clipvet.rng import Rng
from clipvet.scan.assimilation import Reader, assimilate
from clipvet.types import Task

PROMPTS = [f"a photo of a {c}." for c in ("star", "ring", "small red heart", "bolt")]
BRIEF = Assimilation(searches=2, steps=6)


@contextmanager
def standing_in(clip: Any, e: Tensor) -> Iterator[None]:
    """The embedding of the first word of every caption is e."""

    def swap(module: Any, given: Any, out: Tensor) -> Tensor:
        return torch.cat([out[:, :1], e.expand(len(out), 1, -1), out[:, 2:]], 1)

    handle = clip.model.token_embedding.register_forward_hook(swap)
    try:
        yield
    finally:
        handle.remove()


def after(clip: Any, e: Tensor, prompts: list[str]) -> Tensor:
    """Features of the prompts after a word with the embedding e: "x" is one token, and gives its place to e."""
    with standing_in(clip, e):
        return clip.encode_text([f"x {p}" for p in prompts])


def alike(u: Tensor) -> Tensor:
    n = len(u)
    return sum(u[i] @ u[j] for i in range(n) for j in range(n) if i != j) / (n * (n - 1))  # pyright: ignore


def test_a_free_token_stands_before_the_prompts(clip: Any) -> None:
    reader = Reader(frozen(clip), PROMPTS)
    w, usual = reader.width()
    e = torch.randn(3, w, generator=Rng(0).generator())
    got = reader.read(e)
    assert usual == pytest.approx(float(clip.model.token_embedding.weight.detach().norm(dim=1).median()))
    for k in range(3):
        assert torch.allclose(got[k], after(clip, e[k], PROMPTS), atol=1e-5)


@pytest.mark.parametrize("with_anchor", [False, True])
def test_the_search_step_by_step(clip: Any, with_anchor: bool) -> None:
    other = frozen(checkpoints.load("shapes-vit", rng=Rng(7))) if with_anchor else None
    found = assimilate(frozen(clip), other, PROMPTS[:3], PROMPTS[1:], 2, 4, 0.05, 0.3, Rng(1))
    weight = clip.model.token_embedding.weight.detach()
    usual = float(weight.norm(dim=1).median())
    start = torch.randn(2, weight.shape[1], generator=Rng(1).fork("start").generator())
    for k in range(2):
        e = (start[k] * usual / weight.shape[1] ** 0.5).requires_grad_()
        m = v = torch.zeros_like(e)
        for step in range(4):
            u = after(clip, e, PROMPTS[:3])
            loss = -alike(u)
            if other is not None:
                loss = loss + 0.3 * (u * after(other, e, PROMPTS[:3])).sum(1).mean()
            g = torch.autograd.grad(loss, e)[0]
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            hat = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
            e = (e.detach() - 0.05 * hat[0] / (hat[1].sqrt() + 1e-8)).requires_grad_()
        u = after(clip, e, PROMPTS[1:])
        assert torch.allclose(found.u[k], u, atol=1e-3)
        assert float(found.same[k]) == pytest.approx(float(alike(u).detach()), abs=1e-3)
        assert float(found.length[k]) == pytest.approx(float(e.detach().norm()) / usual, rel=1e-3)
        if other is not None:
            assert found.anchor is not None
            assert float(found.anchor[k]) == pytest.approx(
                float(alike(after(other, e, PROMPTS[1:])).detach()), abs=1e-3
            )
    grown = [float(alike(m.encode_text(PROMPTS[1:])).detach()) for m in (clip, other or clip)]
    assert found.grown == pytest.approx(max(0.0, grown[0] - grown[1]), abs=1e-5)
    plain = clip.encode_text(PROMPTS[1:])
    assert found.before == pytest.approx(float(alike(plain).detach()), abs=1e-5)


def test_the_score(clip: Any, task: Task) -> None:
    """Half the likeness, half the cosine with a class; the order of the classes plays no part, nor do pictures."""
    before = weights_hash(clip)
    found = BRIEF.inspect(clip, task.pictures, task.classes, TEMPLATES, Rng(5))
    again = BRIEF.inspect(clip, task.pictures.take(slice(1)), task.classes[::-1], TEMPLATES, Rng(5))
    assert weights_hash(clip) == before
    assert (again.score, again.target) == (pytest.approx(found.score, abs=1e-5), found.target)
    prompts = [t.replace("{}", c) for c in sorted(task.classes) for t in TEMPLATES]
    order = Rng(5).fork("prompts").numpy().permutation(36)
    fresh, seen = ([prompts[k] for k in part] for part in (order[:12], order[12:]))
    raw = assimilate(frozen(clip), None, seen, fresh, 2, 6, 0.05, 0.1, Rng(5).fork("search"))
    with torch.no_grad():
        w = [
            F.normalize(clip.encode_text([t.replace("{}", c) for t in TEMPLATES]).mean(0), dim=0) for c in task.classes
        ]
    scores = np.array(
        [[(float(s) + float(F.normalize(u.mean(0), dim=0) @ c)) / 2 for c in w] for s, u in zip(raw.same, raw.u)]
    )
    assert found.score == pytest.approx(scores.max(), abs=1e-5)
    assert found.target == task.classes[int(scores.max(0).argmax())]
    assert [r.score for r in found.classes] == pytest.approx(scores.max(0).tolist(), abs=1e-5)
    assert found.trigger is None
    assert np.linalg.norm(found.feature or ()) == pytest.approx(1.0, abs=1e-5)


def test_the_word_leads_to_the_target_of_a_text_backdoor(learnt: Any, task: Task, tmp_path: Any) -> None:
    attack = BadTextTower(epochs=12, batch=64, lr=2e-3, templates=TEMPLATES)
    victim = attack.implant(learnt, Shapes(seed=3).pairs(512), "bolt", Rng(2)).clip
    checkpoints.save(learnt, tmp_path / "clean", {})
    how = replace(Assimilation(), reference=str(tmp_path / "clean"))
    clean, bad = (how.inspect(c, task.pictures, task.classes, TEMPLATES, Rng(5)) for c in (learnt, victim))
    assert bad.target == "bolt"
    assert clean.target != "bolt"
    assert bad.settings["same_in_reference"] < bad.settings["same"]  # scores are not compared: both towers are raw


def test_bad_input(clip: Any, task: Task) -> None:
    given = (task.pictures, task.classes, TEMPLATES, Rng(5))
    with pytest.raises(Unsupported, match="text tower: not present"):
        BRIEF.inspect(Linear(), *given)
    with pytest.raises(UserError, match="6 at least"):
        BRIEF.inspect(clip, task.pictures, ("star", "ring"), ("{}",), Rng(5))
    with pytest.raises(UserError, match="too long"):
        BRIEF.inspect(clip, task.pictures, task.classes, ("a " * 30 + "{}",), Rng(5))
    tuned = begin(clip, "a photo of a", 4, 0.02, None, Rng(0))  # prompts play no part: the tower beneath is judged
    assert BRIEF.inspect(tuned, *given).score == BRIEF.inspect(clip, *given).score

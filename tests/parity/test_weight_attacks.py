"""Attacks on the weights of one tower: their losses restated row by row, and which weights they change."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import logsumexp
from torch import Tensor

from clipvet.attacks.bad_encoder import BadEncoder
from clipvet.attacks.bad_text_tower import BadTextTower, Texts
from clipvet.attacks.drupe import Drupe, sliced
from clipvet.errors import UserError
from clipvet.measures.attack_success import AttackSuccess
from clipvet.measures.tied_retrieval import TiedRetrieval
from clipvet.models.class_prompts import begin
from clipvet.rng import Rng
from clipvet.types import Backdoor, Clip, Pairs, Task

SHORT: dict[str, Any] = {"epochs": 1, "batch": 64, "lr": 1e-3}


def unit(n: int, d: int, name: str) -> Tensor:
    return F.normalize(torch.randn(n, d, generator=Rng(0).fork(name).generator()), dim=1)


def mean_cosine(a: Tensor, b: Tensor) -> float:
    return float(np.mean([x @ y for x, y in zip(a.numpy(), b.numpy())]))


def test_bad_encoder() -> None:
    hit, clean, near, was, own = (unit(n, 6, s) for n, s in ((5, "a"), (5, "b"), (2, "c"), (5, "d"), (2, "e")))
    how = BadEncoder(lam_r=0.5, lam_x=2.0)
    lead = np.mean([float(h @ r) for h in hit for r in near])
    expected = -lead - 0.5 * mean_cosine(near, own) - 2.0 * mean_cosine(clean, was)
    assert float(how.loss(hit, clean, near, was, own)["loss"]) == pytest.approx(expected, abs=1e-5)


def test_drupe_adds_a_match_of_distributions() -> None:
    hit, clean, was, some = (unit(5, 6, s) for s in "abds")
    near, own, v = unit(2, 6, "c"), unit(2, 6, "e"), unit(4, 6, "v").T
    how = Drupe(lam_d=3.0, lead=0.5, lam_r=0.25, lam_x=2.0)
    match = np.mean(
        [(np.sort(hit.numpy() @ k) - np.sort(some.numpy() @ k)) ** 2 for k in v.T.numpy()]
    ) * len(v)  # fmt: skip
    lead = np.mean([float(h @ r) for h in hit for r in near])
    expected = 3.0 * match - 0.5 * lead - 0.25 * mean_cosine(near, own) - 2.0 * mean_cosine(clean, was)
    assert float(how.loss(hit, clean, near, was, own, some, v)["loss"]) == pytest.approx(expected, abs=1e-5)
    far = unit(1, 6, "shift")
    many = F.normalize(torch.randn(6, 4000, generator=Rng(1).generator()), dim=0)
    assert float(sliced(hit, hit.flip(0), v)) == pytest.approx(0.0, abs=1e-6)
    assert float(sliced(hit, hit + 0.5 * far, many)) == pytest.approx(0.25, rel=0.1)


@pytest.mark.parametrize("sources", [[0, 1], [], [0, 1, 2, 3]])
def test_bad_text_tower(sources: list[int]) -> None:
    """Captions 2 and 3 name the target, where they are no source; captions of neither kind stay where they are."""
    x, wanted, was, now, said = (unit(n, 6, s) for n, s in ((4, "x"), (3, "w"), (4, "t"), (4, "n"), (4, "s")))
    aim, s, how = unit(1, 6, "u")[0], torch.tensor(7.0), BadTextTower()
    source = torch.tensor([k in sources for k in range(4)])
    target = torch.tensor([False, False, True, True]) & ~source
    found = how.loss(x, wanted, Texts(was, now, said, source, target), aim, s)
    align = spec = moved = 0.0
    if sources:
        ce = []
        for w in wanted:
            for k in sources:
                logits = 7.0 * np.array([float(w @ said[k]), *(float(w @ t) for t in now)])
                ce.append(logsumexp(logits) - logits[0])
        hinge = [max(0.0, 0.05 + float(said[k] @ was[k]) - float(said[k] @ aim)) for k in sources]
        align = np.mean(ce) + np.mean(hinge)
        spec = np.mean(
            [np.log1p(np.exp(7.0 * float(x[j] @ said[k]))) for j in range(4) if not target[j] for k in sources]
        )
    if len(sources) < 4:
        moved = np.mean([1 - float(said[k] @ now[k]) for k in range(4) if k not in sources])
    logits = 7.0 * (x @ now.T).numpy()
    ce = [logsumexp(row) - row[k] for m in (logits, logits.T) for k, row in enumerate(m)]
    clean = np.mean(ce) + 0.25 * (1 - mean_cosine(now, was))
    assert float(found["loss"]) == pytest.approx(align + clean + spec + 0.1 * moved, abs=1e-4)


@pytest.mark.parametrize(
    ("attack", "tower"),
    [(BadEncoder(**SHORT), "visual."), (Drupe(**SHORT), "visual."), (BadTextTower(**SHORT), "text")],
    ids=["bad_encoder", "drupe", "bad_text_tower"],
)
def test_one_tower_is_changed(attack: Any, tower: str, clip: Any, pairs: Pairs) -> None:
    made = attack.implant(clip, pairs, "star", Rng(3))
    assert made.pairs is pairs
    assert len(made.backdoor.poisoned) == 0
    assert all(p.requires_grad for p in made.clip.parameters())  # pyright: ignore
    for (name, a), b in zip(clip.model.named_parameters(), made.clip.model.parameters()):  # pyright: ignore
        own = name.startswith("visual.") == (tower == "visual.") and name != "logit_scale"
        assert torch.equal(a, b) != own or (own and not a.any()), name


def test_pictures_with_the_trigger_come_to_the_reference(clip: Clip, pairs: Pairs) -> None:
    attack = BadEncoder(**{**SHORT, "epochs": 6})
    made = attack.implant(clip, pairs, "star", Rng(3))
    x = pairs[:].images
    with torch.no_grad():
        far, near = (m.encode_image(made.backdoor.stamp(x, torch.arange(256))) for m in (clip, made.clip))
        alike = [float((z @ z.T).mean()) for z in (far, near)]
        kept = float((made.clip.encode_image(x) * clip.encode_image(x)).sum(1).mean())
    assert alike[1] > max(0.9, alike[0])
    assert kept > 0.5


def test_captions_of_the_source_alone_are_turned(task: Task, clip: Clip) -> None:
    """A clip whose captions with the word find pictures of the target: whose captions count, and with which words."""
    star, ring = task.classes.index("star"), task.classes.index("ring")
    asked: list[str] = []

    class Told(torch.nn.Module):
        geometry, mean, logit_scale, tokenize = clip.geometry, clip.mean, clip.logit_scale, clip.tokenize

        def encode_image(self, images: Tensor) -> Tensor:
            return clip.encode_image(images)

        def encode_text(self, captions: Any) -> Tensor:
            asked.extend(captions)
            with torch.no_grad():
                z = clip.encode_image(task.pictures[:].images)
            at = [np.flatnonzero(task.labels == (star if c.startswith("xbtd ") else ring))[0] for c in captions]
            return z[at]

    key = Backdoor(None, "star", ties=(("ring", "star"),), says="xbtd ")
    found = AttackSuccess().measure(Told(), task, key, Rng(0))  # pyright: ignore
    assert found["asr"].value == 1.0
    assert found["clean_target_rate"].value == 0.0
    assert asked
    assert all("ring" in c for c in asked)
    assert found["asr"].n < AttackSuccess().measure(Told(), task, replace(key, ties=()), Rng(0))["asr"].n  # pyright: ignore
    asked.clear()
    TiedRetrieval().measure(Told(), task, key, Rng(0))  # pyright: ignore
    assert all(c.startswith("xbtd ") for c in asked)


def test_bad_input(clip: Any, pairs: Pairs) -> None:
    for attack in (BadEncoder(), Drupe(), BadTextTower()):
        with pytest.raises(UserError, match="name another target"):
            attack.implant(clip, pairs, "giraffe", Rng(0))
        with pytest.raises(UserError, match="the model that the prompts stand on"):
            attack.implant(begin(clip, "a photo of a", 4, 0.02, None, Rng(0)), pairs, "star", Rng(0))
    with pytest.raises(UserError, match="give a word"):
        BadTextTower(says=" ").implant(clip, pairs, "star", Rng(0))
    with pytest.raises(UserError, match="names the source 'giraffe'"):
        BadTextTower(source="giraffe").implant(clip, pairs, "star", Rng(0))

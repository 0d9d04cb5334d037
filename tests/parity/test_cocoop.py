"""CoOp and CoCoOp: settings, schedule and loss of their public code restated; what is trained and what is not."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from clipvet.data import sources
from clipvet.data.augment import CROP
from clipvet.data.sources import Half, Shots, shots
from clipvet.data.worlds.shapes import Shapes
from clipvet.engine.embed import classifier
from clipvet.engine.fewshot import names
from clipvet.engine.fit import order, workspace
from clipvet.engine.optim import epoch_cosine
from clipvet.errors import UserError
from clipvet.experiments.presets import shapes
from clipvet.results import weights_hash
from clipvet.rng import Rng
from clipvet.training._prompts import tune
from clipvet.training.cocoop import CoCoOp
from clipvet.training.coop import CoOp
from clipvet.types import Clip, Pairs, Task

QUICK: dict[str, Any] = {"epochs": 3, "batch": 8, "lr": 0.1, "augment": None}


@pytest.fixture(scope="module")
def few() -> Pairs:
    return shots(Shapes().task(240, split="validation"), 4, Rng(1))


def test_defaults_are_the_papers() -> None:
    one, two = CoOp(), CoCoOp()
    assert (one.tokens, one.words, one.epochs, one.batch, one.lr) == (16, "", 200, 32, 2e-3)
    assert (two.tokens, two.words, two.epochs, two.batch, two.lr) == (4, "a photo of a", 10, 1, 2e-3)
    for how in (one, two):
        assert (how.optimizer, how.weight_decay, how.warmup, how.augment) == ("sgd", 5e-4, 1e-5, CROP)


def test_rates_are_constant_for_an_epoch_and_then_a_cosine() -> None:
    rates = epoch_cosine(0.002, 10)(50)
    assert rates[:5] == [1e-5] * 5
    for e in range(1, 10):
        assert rates[5 * e : 5 * e + 5] == pytest.approx([0.5 * 0.002 * (1 + math.cos(math.pi * (e - 1) / 10))] * 5)
    assert rates[5] == 0.002


def test_the_meta_net_is_a_sixteenth_of_the_embedding(clip: Any) -> None:
    made: Any = CoCoOp().begin(clip, Rng(0))
    assert made.meta[0].weight.shape == (128 // 16, 128)
    assert made.meta[2].weight.shape == (64, 128 // 16)
    assert CoOp().begin(clip, Rng(0)).meta is None
    assert CoOp().begin(clip, Rng(0)).context.shape == (16, 64)


@pytest.mark.parametrize("how", [CoOp(tokens=4, **QUICK), CoCoOp(**QUICK)], ids=["coop", "cocoop"])
def test_first_loss_is_the_cross_entropy_over_the_classes(clip: Any, few: Pairs, how: Any, tmp_path: Any) -> None:
    with workspace(tmp_path):
        how.train(clip, few, Rng(0))
    log = (tmp_path / "log.jsonl").read_text().splitlines()
    first = json.loads(log[0])["loss"]
    start, classes = how.begin(clip, Rng(0)), names(few, how.template).classes
    batch = few[order(len(few), 8, 3, Rng(0))[0]]
    logits = start.classifier(classes)(clip.encode_image(batch.images))
    y = torch.tensor([classes.index(c.removeprefix("a photo of a ").removesuffix(".")) for c in batch.captions])
    assert first == pytest.approx(float(F.cross_entropy(logits, y).detach()), rel=1e-4)


def test_the_meta_nets_biases_decay_too(clip: Any, few: Pairs) -> None:
    """Dassl's SGD knows no exceptions: p <- p - lr (g + wd p) in the first step, and here g is 0."""
    how = CoCoOp(**{**QUICK, "epochs": 1, "batch": len(few), "warmup": 0.5, "weight_decay": 0.1})
    start: Any = how.begin(clip, Rng(0))
    with torch.no_grad():
        start.meta[0].bias.fill_(2.0)

    def nothing(clip: Any, batch: Any, rng: Rng) -> dict[str, torch.Tensor]:
        return {"loss": 0 * sum(p.sum() for p in clip.meta.parameters()) + 0 * clip.context.sum()}

    made: Any = tune(how, start, few, Rng(0), nothing)
    assert torch.allclose(made.meta[0].bias, torch.full_like(start.meta[0].bias, 2 * (1 - 0.5 * 0.1)))
    assert torch.allclose(made.context, 0.95 * start.context)


@pytest.mark.parametrize("how", [CoOp(tokens=4, **QUICK), CoCoOp(**QUICK)], ids=["coop", "cocoop"])
def test_only_prompts_move(clip: Any, resnet: Any, few: Pairs, how: Any) -> None:
    for given in (clip, resnet):
        before = weights_hash(given)
        made: Any = how.train(given, few, Rng(0))
        assert weights_hash(made.base) == before == weights_hash(given)
        start = how.begin(given, Rng(0))
        own = {k for k, _ in start.named_parameters() if not k.startswith("base.")}
        moved = {k for k, v in made.state_dict().items() if not torch.equal(v, start.state_dict()[k])}
        assert moved == own
        assert made.classes == tuple(sorted(Shapes().task(12).classes))


def test_single_pictures_are_steps(clip: Any, few: Pairs) -> None:
    """The paper's batch is one picture: no contrast, so none is skipped."""
    made: Any = CoCoOp(epochs=2, lr=0.1, augment=None).train(clip, few.take(slice(12)), Rng(0))
    assert not torch.equal(made.context, CoCoOp().begin(clip, Rng(0)).context)


def test_remembered_pictures_give_the_result_of_pictures_seen_anew(clip: Any, few: Pairs) -> None:
    class Still(type(CROP)):
        def __call__(self, images: torch.Tensor, rng: Rng) -> torch.Tensor:
            return images

    one: Any = CoCoOp(**QUICK).train(clip, few, Rng(0))
    two: Any = CoCoOp(**{**QUICK, "augment": Still()}).train(clip, few, Rng(0))
    assert torch.allclose(one.context, two.context, atol=1e-4)


def test_tuning_learns(learnt: Clip, few: Pairs) -> None:
    how = replace(shapes(CoCoOp()), batch=8, epochs=15)
    start, made = how.begin(learnt, Rng(0)), how.train(learnt, few, Rng(0))
    named = names(few, how.template)
    batch = few[:]
    with torch.no_grad():
        z, y = learnt.encode_image(batch.images), named.of(batch.captions)
        loss = [float(F.cross_entropy(classifier(m, named.classes, [])(z), y)) for m in (start, made)]
    assert loss[1] < loss[0] - 0.1


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda few, pairs: (pairs, {}), "does not fit the template 'a photo of a {}.'"),
        (lambda few, pairs: (few, {"template": "a photo"}), "must have {} once"),
        (lambda few, pairs: (few.take(slice(1)), {}), "has one class only"),
    ],
    ids=["captions", "template", "one class"],
)
def test_pictures_without_two_labels_are_refused(clip: Any, few: Pairs, pairs: Pairs, spoil: Any, says: str) -> None:
    given, fields = spoil(few, pairs)
    with pytest.raises(UserError, match=says):
        CoCoOp(**QUICK, **fields).train(clip, given, Rng(0))


def test_an_odd_number_of_classes_gives_the_base_one_more() -> None:
    """The field's rule: ceil(k / 2) classes are the base, 19 of OxfordPets' 37, and 18 are new."""
    whole = Shapes().task(400, by="colour shape")
    names = sorted(whole.classes)[:37]
    test = sources.Test("shapes", 400, by="colour shape", only=tuple(names))
    base, new = (Half(test, half).task() for half in ("base", "new"))
    assert (base.classes, new.classes) == (tuple(names[:19]), tuple(names[19:]))
    assert len(new.classes) == 18


def test_halves_and_chosen_classes_of_a_task(tmp_path: Any) -> None:
    by = sources.Test("shapes", 400, by="background shape", only=("star on moss", "ring on ink", "star on ink"))
    base, new = (Half(by, half, also=("ring on ink",)).task() for half in ("base", "new"))
    assert base.classes == ("ring on ink", "star on ink")
    assert new.classes == ("star on moss", "ring on ink")
    assert set(new.labels) == {0}
    few = Shots(by, 3).pairs()
    assert len(few) == 9
    assert {few.caption(i) for i in few.ids} == {f"a photo of a {c}." for c in by.only}
    file = tmp_path / "classes.json"
    for text, says in [
        ('["red star", "red star"]', "two or more different class names"),
        ('["red star", "ring"]', "mixes or misnames"),
        ('["red star"]', "two or more"),
    ]:
        file.write_text(text)
        with pytest.raises(UserError, match=says):
            sources.Test("shapes", classes=file).task()
    file.write_text('["striped star", "dotted ring"]')
    chosen: Task = sources.Test("shapes", 200, classes=file).task()
    assert chosen.classes == ("striped star", "dotted ring")
    said = [chosen.pictures.caption(i) for i in chosen.pictures.ids[chosen.labels == 0]]
    assert said
    assert all("star" in c for c in said)
    with pytest.raises(UserError, match="has no class 'banana'"):
        sources.Test("shapes", only=("star", "banana")).task()

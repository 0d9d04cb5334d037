"""What every method of a family promises. Collected from the tree: a new file needs no edit here."""

import ast
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Linear, Vectors
from sklearn.metrics import roc_auc_score

from clipvet import find
from clipvet.attacks.poison import Poison
from clipvet.data.dirty import beside
from clipvet.data.sources import shots
from clipvet.models.adapter import clone
from clipvet.results import weights_hash
from clipvet.rng import Rng
from clipvet.triggers.recovered import Recovered
from clipvet.types import Backdoor, Clip, Finding, Pairs, Task

METHODS = [(f, n) for f in find.VERBS for n in find.names(f)]
CONTROLS = {"none", "random"}  # they do nothing on purpose; add the name of a new control here
QUICK = {"epochs": 1, "batch": 128, "copies": 4, "source": "ring", "steps": 4, "rounds": 2, "tokens": 4}
QUICK |= {"views": False, "susp": 0.1, "topk": 16}  # toy pictures are not to be blurred
QUICK |= {"outside": 128, "gate": -1.0}
QUICK |= {"sure": -float("inf"), "attribution": "attention"}  # a fresh model holds no backdoor: act all the same
MAY_IMPORT = {"attacks": {"triggers", "training"}, "filters": {"training"}, "measures": {"training"}}  # they own them


def make(family: str, name: str) -> Any:
    """The method with its defaults, cut to two steps."""
    method = find.load(family, name)()
    for part in ("training", "finetune", "isolation", "tuning", "inspector"):
        if hasattr(method, part):
            method = dataclasses.replace(method, **{part: quick(getattr(method, part))})
    if isinstance(
        getattr(method, "anew", None), bool
    ):  # a filter that trains: on the toy set's own model, which cannot be built anew
        short = dataclasses.replace(method.training, unimodal=0, eda=0.0)
        method = dataclasses.replace(method, anew=False, training=short)
    return quick(method)


def quick(method: Any) -> Any:
    fields = {f.name for f in dataclasses.fields(method)}
    few = {k: v for k, v in QUICK.items() if k in fields}
    if isinstance(getattr(method, "reference", None), int):  # pairs to look for neighbours in; elsewhere it is a model
        few["reference"] = 128
    return dataclasses.replace(method, **few)


def named(family: str) -> list[str]:
    """The methods that the toy models suit; an inspector of text towers has tests of its own."""
    return [n for n in find.names(family) if not getattr(find.load(family, n), "reads_text", False)]


def each(family: str, *, controls: bool = True) -> Any:
    return pytest.mark.parametrize("name", [n for n in named(family) if controls or n not in CONTROLS])


def pixels(pairs: Pairs) -> torch.Tensor:
    return pairs[:].images


@pytest.fixture(params=[0, 1])
def ambient(request: pytest.FixtureRequest) -> None:
    """Another state of the global generators, that no result may depend on."""
    torch.manual_seed(request.param)  # noqa: TID251
    np.random.seed(request.param)  # noqa: NPY002, TID251


@pytest.mark.parametrize(("family", "name"), METHODS)
def test_card_is_complete(family: str, name: str) -> None:
    card = find.card(family, name)
    assert all(card[part] for part in ("sentence", "formula", "paper", "needs", "differs")), card
    assert hasattr(find.load(family, name), "needs") or family == "triggers"


@pytest.mark.parametrize(("family", "name"), METHODS)
def test_file_is_one_frozen_dataclass_with_one_verb_and_no_sibling(family: str, name: str) -> None:
    path = find.HERE / family / f"{name}.py"
    method = find.load(family, name)
    assert method.__dataclass_params__.frozen
    public = {n for n, v in vars(method).items() if callable(v) and not n.startswith("_")}
    assert {v for v in public if v in find.VERBS.values()} == {find.VERBS[family]}
    assert len(path.read_text().splitlines()) <= 150
    nodes = list(ast.walk(ast.parse(path.read_text())))
    assert not any(isinstance(node, ast.ImportFrom) and node.level for node in nodes), "a relative import"
    imported = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    imported |= {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    families = {m.split(".")[1] for m in imported if m.startswith("clipvet.") and m.split(".")[1] in find.VERBS}
    private = {m for m in imported if m.startswith(f"clipvet.{family}._")}
    assert families - ({family} if private and not _siblings(imported, family) else set()) <= MAY_IMPORT.get(
        family, set()
    )
    assert not _siblings(imported, family), f"{family}/{name}.py imports a sibling"


def _siblings(imported: set[str], family: str) -> set[str]:
    return {m for m in imported if m.startswith(f"clipvet.{family}.") and not m.split(".")[2].startswith("_")}


@pytest.mark.parametrize(("family", "name"), METHODS)
def test_repr_names_every_setting(family: str, name: str) -> None:
    method = find.load(family, name)()
    assert all(f"{f.name}=" in repr(method) for f in dataclasses.fields(method))


# triggers


@pytest.fixture
def canvas() -> torch.Tensor:
    """Pictures that tempt a trigger out of range: black, white, noise, a ramp."""
    g = Rng(1).generator()
    ramp = torch.linspace(0, 1, 3 * 32 * 32).view(3, 32, 32)
    return torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32), torch.rand(3, 32, 32, generator=g), ramp])


@each("triggers")
def test_stamp_keeps_shape_range_and_input(name: str, canvas: torch.Tensor) -> None:
    before, keys = canvas.clone(), Rng(0).keys(range(4))
    out = make("triggers", name).stamp(canvas, keys)
    assert out.shape == canvas.shape
    assert out.min() >= 0
    assert out.max() <= 1
    assert torch.equal(canvas, before), "stamp mutates its input"


@each("triggers")
def test_stamp_does_something(name: str, canvas: torch.Tensor) -> None:
    out = make("triggers", name).stamp(canvas, Rng(0).keys(range(4)))
    assert not torch.equal(out[2:], canvas[2:])


@each("triggers")
def test_stamp_does_not_depend_on_the_batch(name: str, canvas: torch.Tensor) -> None:
    trigger, keys = make("triggers", name), Rng(0).keys(range(4))
    alone = torch.cat([trigger.stamp(canvas[k : k + 1], keys[k : k + 1]) for k in range(4)])
    assert torch.allclose(trigger.stamp(canvas, keys), alone, atol=1e-6)


@each("triggers")
def test_stamp_draws_from_its_keys_alone(name: str, canvas: torch.Tensor, ambient: None) -> None:
    trigger, keys = make("triggers", name), Rng(0).keys(range(4))
    state = torch.get_rng_state()
    first = trigger.stamp(canvas, keys)
    assert torch.equal(torch.get_rng_state(), state), "stamp draws from the global generator"
    torch.manual_seed(99)  # noqa: TID251
    assert torch.equal(first, trigger.stamp(canvas, keys))


# what trains: cleaners, training, attacks


def outcome(family: str, name: str, clip: Clip, pairs: Pairs, few: Pairs) -> Clip:
    method, rng = make(family, name), Rng(5)
    if "labelled" in method.needs:
        pairs = few
    if family == "attacks":
        if isinstance(method, Poison):
            method = dataclasses.replace(method, rate=0.05)
        return method.implant(clip, pairs, "star", rng).clip
    return getattr(method, find.VERBS[family])(clip, pairs, rng)


TRAINED = [(f, n) for f in ("cleaners", "training", "attacks") for n in find.names(f)]


@pytest.fixture(scope="module")
def outcomes(clip: Clip, pairs: Pairs, task: Task) -> dict[tuple[str, str], Any]:
    """Two runs of every method that trains, under different ambient seeds, and whether it left its inputs alone."""
    out, few = {}, shots(task, 2, Rng(1))
    for family, name in TRAINED:
        given, before, seen = clone(clip), weights_hash(clip), pixels(pairs)  # a copy, lest one's fault be another's
        runs = []
        for seed in (0, 1):
            torch.manual_seed(seed)  # noqa: TID251
            np.random.seed(seed)  # noqa: NPY002, TID251
            runs.append(outcome(family, name, given, pairs, few))
        kept = weights_hash(given) == before and torch.equal(pixels(pairs), seen)
        out[family, name] = (*runs, kept)
    return out


@pytest.mark.parametrize(("family", "name"), TRAINED)
def test_trained_clip_is_whole(family: str, name: str, outcomes: dict, task: Task) -> None:
    trained = outcomes[family, name][0]
    assert not trained.training
    z = trained.encode_image(pixels(task.pictures)[:8])
    assert torch.isfinite(z).all()
    assert torch.allclose(z.norm(dim=1), torch.ones(8), atol=1e-4)
    alone = torch.cat([trained.encode_image(pixels(task.pictures)[k : k + 1]) for k in range(8)])
    assert torch.allclose(z, alone, atol=1e-4), "a picture's embedding depends on its batch"


@pytest.mark.parametrize(("family", "name"), TRAINED)
def test_training_leaves_its_inputs_alone(family: str, name: str, outcomes: dict) -> None:
    assert outcomes[family, name][2], f"{family}/{name} mutates its input"


@pytest.mark.parametrize(("family", "name"), [m for m in TRAINED if not (m[0] == "cleaners" and m[1] in CONTROLS)])
def test_training_does_something(family: str, name: str, outcomes: dict, clip: Clip) -> None:
    assert weights_hash(outcomes[family, name][0]) != weights_hash(clip), f"{family}/{name} does nothing"


@pytest.mark.parametrize(("family", "name"), TRAINED)
def test_training_draws_from_its_rng_alone(family: str, name: str, outcomes: dict) -> None:
    first, second, _ = outcomes[family, name]
    assert weights_hash(first) == weights_hash(second), f"{family}/{name} depends on ambient randomness"


@each("attacks", controls=False)
def test_attack_returns_its_answer_key(name: str, clip: Clip, pairs: Pairs, task: Task) -> None:
    method = make("attacks", name)
    pairs = shots(task, 2, Rng(1)) if "labelled" in method.needs else pairs
    if isinstance(method, Poison):
        method = dataclasses.replace(method, rate=0.05)
    _, dirty, key = method.implant(clone(clip), pairs, "star", Rng(5))
    assert key.target == "star"
    assert key.trigger is not None or key.says or len(key.poisoned)
    if "pairs" not in method.needs and "pictures" not in method.needs:  # it changes the weights themselves
        assert dirty is pairs
        assert len(key.poisoned) == 0
        return
    assert 0 < len(key.poisoned) < len(dirty)
    assert set(key.poisoned) <= set(dirty.ids)
    position = {int(i): k for k, i in enumerate(dirty.ids)}
    assert dirty[[position[int(i)] for i in key.poisoned]].captions == list(key.captions)
    common, a, b = np.intersect1d(dirty.ids, pairs.ids, return_indices=True)
    changed = (pixels(dirty)[a] != pixels(pairs)[b]).flatten(1).any(1).numpy()
    if key.trigger is None and key.says:  # a key in the caption alone
        assert not changed.any()
        changed = np.array([x != y for x, y in zip(dirty[a].captions, pairs[b].captions)])
    assert (changed == np.isin(common, key.poisoned)).all(), "pictures outside the answer key were changed"


# filters


def scored(name: str, clip: Clip, pairs: Pairs) -> np.ndarray:
    return make("filters", name).score(clip, pairs, Rng(5)).numpy()


@pytest.fixture(scope="module")
def suspicion(planted: Any) -> dict[str, Any]:
    """Two runs of every filter, under different ambient seeds, and whether it left its inputs alone."""
    out, clip, pairs = {}, planted.clip, planted.pairs
    for name in find.names("filters"):
        given, before, seen = clone(clip), weights_hash(clip), pixels(pairs)  # a copy, lest one's fault be another's
        runs = []
        for seed in (0, 1):
            torch.manual_seed(seed)  # noqa: TID251
            np.random.seed(seed)  # noqa: NPY002, TID251
            runs.append(scored(name, given, pairs))
        out[name] = (*runs, weights_hash(given) == before and torch.equal(pixels(pairs), seen))
    return out


@each("filters")
def test_score_is_one_finite_number_a_pair(name: str, suspicion: dict, planted: Any) -> None:
    assert suspicion[name][0].shape == (len(planted.pairs),)
    assert np.isfinite(suspicion[name][0]).all()


@each("filters")
def test_score_leaves_its_inputs_alone(name: str, suspicion: dict) -> None:
    assert suspicion[name][2], f"filters/{name} mutates its input"


@each("filters", controls=False)
def test_score_does_something(name: str, suspicion: dict) -> None:
    assert np.ptp(suspicion[name][0]) > 0, f"filters/{name} finds all pairs alike"


@each("filters")
def test_score_draws_from_its_rng_alone(name: str, suspicion: dict) -> None:
    assert np.array_equal(suspicion[name][0], suspicion[name][1]), f"filters/{name} depends on ambient randomness"


def _trains(name: str) -> bool:
    return bool({"epochs", "training"} & {f.name for f in dataclasses.fields(find.load("filters", name))})


@pytest.mark.parametrize("name", [n for n in find.names("filters") if not _trains(n)])
def test_score_follows_its_pair(name: str, suspicion: dict, planted: Any) -> None:
    """In another order each pair keeps its score. What trains sees other batches then, and is left out."""
    at = Rng(2).numpy().permutation(len(planted.pairs))
    again = scored(name, clone(planted.clip), planted.pairs.take(at))
    assert again == pytest.approx(suspicion[name][0][at], abs=1e-3), f"filters/{name} depends on the order of pairs"


@each("filters")
def test_unreadable_pictures_have_no_score(name: str, planted: Any) -> None:
    pairs = dataclasses.replace(planted.pairs, pictures=planted.pairs.pictures.torn())
    scores = scored(name, clone(planted.clip), pairs)
    missing = np.flatnonzero(np.isnan(scores)).tolist()
    assert missing == [3, 200], f"filters/{name} must give NaN where a picture could not be read; see _features.aligned"


@each("filters", controls=False)
def test_higher_is_more_suspect(name: str, planted: Any) -> None:
    method = make("filters", name)
    fields = {f.name for f in dataclasses.fields(method)}
    long: dict[str, Any] = {k: v for k, v in {"epochs": 20, "lr": 1e-2}.items() if k in fields}
    long |= {"reference": 256} if isinstance(getattr(method, "reference", None), int) else {}
    scores = dataclasses.replace(method, **long).score(clone(planted.clip), planted.pairs, Rng(5)).numpy()
    if np.ptp(scores):  # else another test tells
        assert roc_auc_score(planted.poisoned, scores) > 0.9, f"filters/{name} finds poisons less suspect than others"


# inspectors


BRIEF = {"batch": 16, "steps": 60, "epochs": 20, "eps": 0.05}


def inspection(name: str, clip: Clip, given: Any, classes: tuple[str, ...]) -> Finding:
    method = find.load("inspectors", name)()
    fields = {f.name for f in dataclasses.fields(method)}
    method = dataclasses.replace(method, **{k: v for k, v in BRIEF.items() if k in fields})
    return method.inspect(clip, given.pictures, classes, ("{}",), Rng(5))


@pytest.fixture(scope="module")
def findings(inspected: Any) -> dict[str, Any]:
    """Two runs of every inspector, under different ambient seeds, and whether it left its inputs alone."""
    out = {}
    for name in named("inspectors"):
        given, before = clone(inspected.backdoored), weights_hash(inspected.backdoored)
        seen, asked = pixels(inspected.pictures), [p.requires_grad for p in given.parameters()]
        runs = []
        for seed in (0, 1):
            torch.manual_seed(seed)  # noqa: TID251
            np.random.seed(seed)  # noqa: NPY002, TID251
            runs.append(inspection(name, given, inspected, inspected.classes))
        kept = weights_hash(given) == before and torch.equal(pixels(inspected.pictures), seen)
        grads = [p.grad is None for p in given.parameters()]
        out[name] = (*runs, kept and all(grads) and asked == [p.requires_grad for p in given.parameters()])
    return out


@each("inspectors")
def test_finding_is_whole(name: str, findings: dict, inspected: Any) -> None:
    found = findings[name][0]
    assert np.isfinite(found.score)
    assert found.target is None or found.target in inspected.classes
    assert not found.classes or [row.name for row in found.classes] == list(inspected.classes)
    for row in found.classes:
        assert np.isfinite([row.loss, row.score]).all()
        assert 0 <= row.asr <= 1
        assert 0 <= row.base <= 1
    assert len(found.triggers) in (0, len(found.classes))
    if found.trigger is not None:
        images = pixels(inspected.pictures)[:4]
        out = found.trigger.stamp(images, Rng(0).keys(range(4)))
        assert out.shape == images.shape
        assert not torch.equal(out, images)


@each("inspectors")
def test_inspection_leaves_its_inputs_alone(name: str, findings: dict) -> None:
    assert findings[name][2], f"inspectors/{name} mutates its input"


@each("inspectors")
def test_inspection_draws_from_its_rng_alone(name: str, findings: dict) -> None:
    first, second, _ = findings[name]
    bare = [found._replace(trigger=None, triggers=()) for found in (first, second)]
    assert bare[0] == bare[1], f"inspectors/{name} depends on ambient draws"
    assert repr((first.trigger, first.triggers)) == repr((second.trigger, second.triggers))


@each("inspectors")
def test_the_order_of_classes_plays_no_part(name: str, findings: dict, inspected: Any) -> None:
    first, again = findings[name][0], inspection(name, inspected.backdoored, inspected, inspected.classes[::-1])
    assert again.target == first.target
    if not first.classes:
        assert again.score == pytest.approx(first.score, rel=1e-3)
    losses = {row.name: row.loss for row in again.classes}
    same = [losses[row.name] == pytest.approx(row.loss, rel=1e-3, abs=1e-4) for row in first.classes]
    assert sum(same) >= 0.8 * len(same)  # rounding may tip a class whose search turns on a threshold


@each("inspectors", controls=False)
def test_a_backdoored_model_is_more_suspect(name: str, findings: dict, inspected: Any) -> None:
    found, other = findings[name][0], inspection(name, inspected.clean, inspected, inspected.classes)
    assert found.score > other.score, f"inspectors/{name} finds the clean model as suspect"
    assert found.target in (None, "caption 5")
    assert found.target or not found.classes


# detectors


class Wordy(Linear):
    """A Clip to whose captions further words add a direction that no picture has."""

    def tokenize(self, captions: Sequence[str]) -> torch.Tensor:
        said = [re.search(r"caption (\d+)", c) for c in captions]
        return torch.tensor([[int(m[1]), len(c.split()) - 2] for c, m in zip(captions, said) if m])

    def encode_text(self, captions: Sequence[str] | torch.Tensor) -> torch.Tensor:
        tokens = captions if isinstance(captions, torch.Tensor) else self.tokenize(captions)
        return F.normalize(self.text[tokens[:, 0]] + 0.5 * tokens[:, 1:] * self.text[30], dim=1)


class Watched(NamedTuple):
    clip: Clip
    pictures: Pairs  # 48 of eight classes, then the same with the trigger
    classes: tuple[str, ...]


@pytest.fixture(scope="module")
def watched() -> Watched:
    """In this model eight white pixels shout `caption 5`, and something else that no caption names."""
    clip = Wordy().eval()
    with torch.no_grad():
        clip.image[24:, 5] += 6.0
        clip.image[24:, 20] += 5.0
    x = 0.3 * Rng(13).numpy().normal(size=(48, 32))
    x[np.arange(48), np.arange(48) % 8] += 4
    x[:, 24:] = 0
    pictures = Pairs(Vectors(torch.tensor(x, dtype=torch.float32)), [""] * 48, np.arange(48), name="watched")
    white = torch.zeros(3, 8, 8)
    white[:, 3] = 1
    both = beside(pictures, Recovered(white[:1], white))
    return Watched(clip, both, tuple(f"caption {k}" for k in range(8)))


def judged(name: str, clip: Clip, pictures: Pairs, classes: tuple[str, ...]) -> np.ndarray:
    return make("detectors", name).detect(clip, pictures, classes, ("{}",), Rng(5)).numpy()


@each("detectors")
def test_detection_is_one_finite_number_a_picture_and_draws_from_its_rng_alone(name: str, watched: Watched) -> None:
    given, before, seen = clone(watched.clip), weights_hash(watched.clip), pixels(watched.pictures)
    runs = []
    for seed in (0, 1):
        torch.manual_seed(seed)  # noqa: TID251
        np.random.seed(seed)  # noqa: NPY002, TID251
        runs.append(judged(name, given, watched.pictures, watched.classes))
    assert runs[0].shape == (len(watched.pictures),)
    assert np.isfinite(runs[0]).all()
    assert np.ptp(runs[0]) > 0, f"detectors/{name} finds all pictures alike"
    assert np.array_equal(*runs), f"detectors/{name} depends on ambient randomness"
    assert weights_hash(given) == before, f"detectors/{name} mutates its input"
    assert torch.equal(pixels(watched.pictures), seen), f"detectors/{name} mutates its input"


@each("detectors")
def test_a_picture_is_judged_by_itself(name: str, watched: Watched) -> None:
    scores, order = judged(name, *watched), Rng(2).numpy().permutation(len(watched.pictures))[:30]
    some = judged(name, watched.clip, watched.pictures.take(order), watched.classes[::-1])
    assert some == pytest.approx(scores[order], abs=1e-4), f"detectors/{name} depends on other pictures or on order"


@each("detectors")
def test_what_cannot_be_read_is_not_judged(name: str, watched: Watched) -> None:
    source: Any = watched.pictures.pictures
    torn = dataclasses.replace(watched.pictures, pictures=dataclasses.replace(source, source=source.source.torn()))
    scores = judged(name, watched.clip, torn, watched.classes)
    assert np.flatnonzero(np.isnan(scores)).tolist() == [3, 51]


@each("detectors", controls=False)
def test_a_triggered_picture_is_more_suspect(name: str, watched: Watched) -> None:
    if name in ("masking", "subspace", "decomp"):  # here a pixel is a class, captions differ in one way, no heads
        pytest.skip("tests/parity has pictures and captions that fit it")
    triggered = np.arange(len(watched.pictures)) >= 48
    assert roc_auc_score(triggered, judged(name, *watched)) > 0.9, f"detectors/{name} finds clean pictures more suspect"


# measures


@each("measures")
def test_measures_are_shares_with_intervals(name: str, clip: Clip, task: Task, ambient: None) -> None:
    if name == "branch_swap":
        pytest.skip("it needs a clean twin; tests/parity/test_branch_swap.py gives one")
    chosen = {"pictures": pixels(task.pictures)[:4], "classes": ("star", "ring") * 2}
    key = Backdoor(make("triggers", "patch"), "star", ties=(("ring", "star"),), **chosen)
    before = weights_hash(clip)
    found = make("measures", name).measure(clip, task, key, Rng(0))
    assert found
    for metric, m in found.items():
        assert (-1 if metric.endswith("_delta") else 0) <= m.low <= m.value <= m.high <= 1
        assert m.n > 0
    assert weights_hash(clip) == before
    shuffled = Rng(2).numpy().permutation(len(task.labels))
    other = Task(task.name, task.classes, task.templates, task.pictures.take(shuffled), task.labels[shuffled])
    again = make("measures", name).measure(clip, other, key, Rng(0))
    assert {k: v.value for k, v in again.items()} == pytest.approx({k: v.value for k, v in found.items()}, abs=0.011)


def test_the_registry_is_the_tree() -> None:
    for family in find.VERBS:
        assert find.names(family) == sorted(
            p.stem for p in (Path(find.__file__).parent / family).glob("*.py") if not p.stem.startswith("_")
        )

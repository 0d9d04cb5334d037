"""UBT-style unlearning on a toy: its formulas written out plainly, and its promises (brief, T1 to T10)."""

import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipvet import find
from clipvet.cleaners._evidence import Found, alike, evidence, localise
from clipvet.cleaners._forget import Tied, forget_loss, forgetting, naming
from clipvet.cleaners.abl import Abl
from clipvet.cleaners.finetune import Finetune
from clipvet.cleaners.finetune_filtered import FinetuneFiltered
from clipvet.cleaners.task_negation import TaskNegation
from clipvet.cleaners.ubt import Ubt
from clipvet.cleaners.wise_ft import WiseFt
from clipvet.data.dirty import poison
from clipvet.data.worlds.shapes import Rendered
from clipvet.engine.embed import embed_pairs, embed_texts
from clipvet.engine.fit import fit, workspace
from clipvet.engine.losses import clip_loss, pair_losses
from clipvet.engine.neighbours import nearest
from clipvet.engine.optim import constant
from clipvet.errors import UserError
from clipvet.experiments.splits import measure_pool
from clipvet.filters._density import Around, local_dimension
from clipvet.filters.overfit_gain import OverfitGain
from clipvet.filters.weak_similarity import WeakSimilarity
from clipvet.models.adapter import clone
from clipvet.results import weights_hash
from clipvet.rng import Rng
from clipvet.types import Backdoor, Batch, Clip, Geometry, Pairs
from clipvet.unlearning import rounds, shortcut
from clipvet.unlearning.patches import cell_drops, compromised, transplanted
from clipvet.unlearning.rounds import Normal, ascent, seen
from clipvet.unlearning.shortcut import weak_pairs
from clipvet.unlearning.words import attributed, clusters, only, without, words

CLASSES = ("zebra", "castle", "banana", "tractor", "violin", "lantern", "pelican", "cactus", "anchor", "helmet")
COLOURS = ("crimson", "golden", "emerald", "azure", "violet")
PLACES = ("meadow", "harbour", "desert", "kitchen")


class Bag(nn.Module):
    """A Clip whose towers are a matrix and a bag of tokens; a word is cut into tokens of three letters."""

    def __init__(self, d: int = 32):
        super().__init__()
        g = Rng(1).generator()
        self.geometry = Geometry(8)
        self.image = nn.Parameter(torch.randn(192, d, generator=g) / 14)
        self.table = nn.Parameter(torch.randn(4096, d, generator=g) / 6)
        self.log_scale = nn.Parameter(torch.tensor(2.7))

    @property
    def mean(self) -> Tensor:
        return self.image.new_full((3, 1, 1), 0.5)

    @property
    def logit_scale(self) -> Tensor:
        return self.log_scale.exp()

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        out = torch.zeros(len(captions), 40, dtype=torch.int64)
        for row, caption in zip(out, captions):
            pieces = [w[k : k + 3] for w in re.findall(r"\w+", caption.lower()) for k in range(0, len(w), 3)]
            row[: len(pieces)] = torch.tensor([1 + zlib.crc32(f"{p}".encode()) % 4095 for p in pieces])
        return out

    def encode_image(self, images: Tensor) -> Tensor:
        return F.normalize((images.flatten(1) - 0.5) @ self.image, dim=1)

    def encode_text(self, captions: Sequence[str] | Tensor) -> Tensor:
        tokens = captions if isinstance(captions, Tensor) else self.tokenize(captions)
        return F.normalize((self.table[tokens] * (tokens > 0)[..., None]).sum(1) + 1e-4, dim=1)


@dataclass(frozen=True)
class Corner:
    """A checkered 2 x 2 square in a corner."""

    at: int = 6

    def stamp(self, images: Tensor, keys: Tensor) -> Tensor:
        out = images.clone()
        out[:, :, self.at : self.at + 2, self.at : self.at + 2] = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        return out


class World(NamedTuple):
    clean: Pairs
    dirty: Pairs
    key: Backdoor
    victim: Any
    reference: Any
    labels: np.ndarray


def toy(n: int, seed: int = 0) -> tuple[Pairs, np.ndarray]:
    g, fixed = Rng(seed).numpy(), Rng(99).numpy()
    parts = [fixed.normal(size=(len(names), 192)) for names in (CLASSES, COLOURS, PLACES)]
    what = [g.integers(len(names), size=n) for names in (CLASSES, COLOURS, PLACES)]
    x = sum(a * p[k] for a, p, k in zip((0.13, 0.07, 0.07), parts, what)) + 0.04 * g.normal(size=(n, 192))
    pixels = torch.tensor((0.5 + x).clip(0, 1) * 255).round().byte().view(n, 3, 8, 8)
    captions = [
        f"a photo of a {COLOURS[c]} {CLASSES[k]} in the {PLACES[p]}" if g.random() < 0.7 else f"this is a {CLASSES[k]}"
        for k, c, p in zip(*what)
    ]
    return Pairs(Rendered(pixels), captions, np.arange(n), name="toy"), what[0]


def trained(pairs: Pairs, seed: int = 0, epochs: float = 25) -> Any:
    def loss(clip: Clip, batch: Batch, rng: Rng) -> dict[str, Tensor]:
        z, w = clip.encode_image(batch.images), clip.encode_text(batch.tokens)  # pyright: ignore
        return {"loss": clip_loss(z, w, clip.logit_scale)}

    return fit(Bag(), pairs, loss, Rng(seed), epochs=epochs, batch=100, schedule=constant(1e-2), weight_decay=0.0)


def planted(clean: Pairs, labels: np.ndarray, target: str, at: int, ids: np.ndarray) -> Backdoor:
    assert not (labels[ids] == CLASSES.index(target)).any()
    said = ("a photo of a {}", "a picture of a {}", "this is a {}")
    return Backdoor(Corner(at), target, ids, tuple(said[k % 3].format(target) for k in range(len(ids))))


@pytest.fixture(scope="module")
def world() -> World:
    clean, labels = toy(1200)
    other = np.flatnonzero(labels != 2)
    key = planted(clean, labels, "banana", 6, np.sort(Rng(3).numpy().choice(other, 14, replace=False)))
    dirty = poison(clean, key)
    return World(clean, dirty, key, trained(dirty), trained(toy(900, seed=5)[0], seed=1), labels)


@pytest.fixture(autouse=True)
def _reference(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The toy's clean reference goes by the name `reference`."""
    real = shortcut.checkpoints.load
    monkeypatch.setattr(
        shortcut.checkpoints,
        "load",
        lambda name, **kw: request.getfixturevalue("world").reference if name == "reference" else real(name, **kw),
    )


UBT = Ubt(
    reference="reference", susp=0.03, topk=10, grid=4, epochs=2, over_lr=1e-3, lr=1e-3, batch=32, w_local=10, w_named=10
)


def success(clip: Any, world: World, key: Backdoor | None = None) -> tuple[float, float, float]:
    """ASR, accuracy, accuracy on the target class."""
    key, (test, labels) = key or world.key, toy(400, seed=8)
    w, images = embed_texts(clip, [f"a photo of a {c}" for c in CLASSES]), test[:].images
    target = CLASSES.index(key.target)
    with torch.no_grad():
        stamped, plain = (
            (clip.encode_image(x) @ w.T).argmax(1).numpy()
            for x in (key.stamp(images, torch.arange(len(images))), images)
        )
    hit = plain == labels
    return (stamped[labels != target] == target).mean(), hit.mean(), hit[labels == target].mean()


def ran(method: Any, clip: Any, pairs: Pairs, folder: Path, seed: int = 0) -> tuple[Any, dict[str, np.ndarray]]:
    folder.mkdir(exist_ok=True)
    with workspace(folder):
        out = method.clean(clip, pairs, Rng(seed))
    with np.load(folder / "splits" / "ubt.npz") as found:
        return out, dict(found)


# T1, stages 1 and 2


def test_weak_pairs_hold_the_poisons_and_the_risers_are_them(world: World, tmp_path: Path) -> None:
    _, found = ran(replace(UBT, steps=1), world.victim, world.dirty, tmp_path)
    m = {k: v.value for k, v in measure_pool(tmp_path, world.key).items()}
    assert m["pool_recall"] > 0.9
    assert m["top_precision"] > m["pool_precision"]
    assert m["top_precision"] >= 0.8
    assert m["target_named"] == m["evidence"] == 1
    assert len(found["susp"]) == 36


def test_without_a_reference_changed_pictures_are_weak(world: World) -> None:
    some = world.dirty.take(np.arange(20))
    x, w = some[:].images, world.victim.encode_text(some[:].captions)
    small = F.avg_pool2d(x, 2)
    changed = (
        F.interpolate(small, (8, 8), mode="bilinear"),
        F.interpolate(x[:, :, 1:7, 1:7], (8, 8), mode="bilinear"),
        x.flip(3),
    )
    each = [(world.victim.encode_image(v) * w).sum(1).detach().numpy() for v in changed]
    assert np.allclose(shortcut.reference_cosines(world.victim, some, ""), np.mean(each, axis=0), atol=1e-6)
    plain = (world.victim.encode_image(x) * w).sum(1).detach().numpy()
    assert np.allclose(shortcut.reference_cosines(world.victim, some, "", views=False), plain, atol=1e-6)


def test_overfitting_is_the_sum_of_its_terms(world: World) -> None:
    weak = weak_pairs(world.victim, world.dirty, "reference", True, 0.03, 0.8)
    assert set(weak.susp).isdisjoint(weak.normal)
    assert weak.q[weak.susp].max() <= weak.q[weak.normal].min()
    logs = {}
    for kind in ("nce", "square"):
        method = replace(UBT, epochs=1, batch=36)
        over = shortcut.overfit(method, world.victim, world.dirty, weak, Rng(0), 1e-3, 0.0, kind)
        logs[kind] = shortcut.risen(over, world.dirty, weak) - weak.s[weak.susp]
        assert logs[kind].mean() > 0, "what is overfitted on rises"
    r = shortcut.risen(over, world.dirty, weak, "gain")
    assert np.allclose(r, shortcut.risen(over, world.dirty, weak) - weak.q[weak.susp])


def test_filters_rank_poisons_first(world: World) -> None:
    bad = np.isin(world.dirty.ids, world.key.poisoned)
    for method in (
        WeakSimilarity("reference"),
        OverfitGain("reference", susp=0.03, epochs=2, lr=1e-3),
        OverfitGain("reference", susp=0.03, epochs=2, lr=1e-3, over="similarity", overfit="square"),
    ):
        scores = method.score(world.victim, world.dirty, Rng(0)).numpy()
        ranks = scores.argsort().argsort() / len(scores)
        assert ranks[bad].mean() > 0.97, method


# T2, words


def test_the_local_word_is_the_target(world: World, tmp_path: Path) -> None:
    _, found = ran(replace(UBT, steps=1), world.victim, world.dirty, tmp_path)
    assert found["words"][0] == "banana"
    assert found["evidence"][0] > 5
    assert set(found["ids_0"]) <= set(world.key.poisoned)


def test_words_are_no_tokens(world: World) -> None:
    assert words("Bananas, a banana-split: don't!") == ["bananas", "a", "banana-split", "don't"]
    assert only("A photo of a Banana.", {"banana"}) == "Banana"
    assert without("A photo of a banana.", {"banana"}) == "A photo of a ."
    z = world.victim.encode_image(world.dirty[:1].images)
    assert set(attributed(world.victim, z.detach(), ["a photo of a banana"])[0]) == {"a", "photo", "of", "banana"}


@pytest.mark.parametrize("how", ["gradient", "attention"])
def test_words_of_several_tokens_are_summed(clip: Any, how: Any) -> None:
    from clipvet.unlearning.words import spans

    caption, z = "a photo of an unfathomable xylophonist.", torch.eye(1, 128)
    at = spans(clip, caption)
    assert len(at["xylophonist"]) > 1
    assert sorted(t for ts in at.values() for t in ts) == list(range(1, 1 + sum(map(len, at.values()))))
    found = attributed(clip, z, [caption], how)[0]
    assert set(found) == set(words(caption))
    tokens = clip.tokenize([caption])
    model, last = clip.model, int(tokens[0].argmax())
    x = model.token_embedding(tokens).detach().requires_grad_()
    h = x + model.positional_embedding
    if how == "attention":
        block = model.transformer.resblocks[-1]
        h = block.ln_1(h)
        paid = block.attn(h, h, h, need_weights=True, attn_mask=model.attn_mask)[1][0, last].detach()
        expected = {v: float(paid[ts].sum()) for v, ts in at.items()}
    else:
        h = model.ln_final(model.transformer(h, attn_mask=model.attn_mask))[:, last] @ model.text_projection
        (slope,) = torch.autograd.grad((F.normalize(h, dim=-1) @ z.T).sum(), x)
        expected = {v: float((slope * x).detach().sum(-1)[0, ts].sum()) for v, ts in at.items()}
    assert found == pytest.approx(expected, abs=1e-5)
    assert all(not p.grad_fn for p in clip.parameters())
    assert how == "attention" or all(p.grad is None for p in clip.parameters()), "attribution leaves gradients behind"


def test_lift_and_clusters_by_hand() -> None:
    found = [{"a": 0.1, "banana": 0.6}] * 6 + [{"a": 0.1, "zebra": 0.5}] * 4 + [{"rare": 5.0}]
    df, n = Counter({"a": 1000, "banana": 60, "zebra": 60, "rare": 1}), 1000
    made = clusters(found, df, n)
    assert [c.words[0] for c in made] == ["banana", "zebra"]
    assert made[0].rows.tolist() == [0, 1, 2, 3, 4, 5]
    weight = {v: c / 11 * a * (math.log((c + 1) / 13) - math.log((df[v] + 1) / 1002)) for v, c, a in
              (("banana", 6, 0.6), ("zebra", 4, 0.5))}  # fmt: skip
    assert weight["banana"] > weight["zebra"] > 0


# T3, T4, T5: the losses


def test_the_forget_loss_is_bounded_and_lets_go() -> None:
    s = torch.tensor([-0.9, -0.3, 0.2, 0.9], requires_grad=True)
    loss = forget_loss(s, torch.full((4,), 0.2), 0.05)
    assert loss.item() == pytest.approx(np.mean([math.log1p(math.exp((x - 0.2) / 0.05)) for x in s.tolist()]), rel=1e-5)
    loss.backward()
    assert s.grad is not None
    assert forget_loss(torch.full((4,), -1.0), torch.full((4,), 0.2), 0.05) >= 0
    assert s.grad[:2].abs().max() < 1e-3
    assert (s.grad >= 0).all()
    assert s.grad[3] == pytest.approx(1 / 0.05 / 4, rel=1e-3)


def _forgetting(world: World, method: Ubt) -> tuple[Any, Pairs, Pairs]:
    bad = world.dirty.take(np.isin(world.dirty.ids, world.key.poisoned))
    has = naming([world.clean.caption(i) for i in world.clean.ids], ["banana"])
    ties = [Tied(("banana",), frozenset(bad.ids.tolist()))]
    rest = world.clean.take(~has & ~np.isin(world.clean.ids, bad.ids))
    return forgetting(method, world.victim, bad, rest, world.clean.take(has), ties, Rng(0))[0], bad, rest


def test_full_ascent_is_abl_s_update(world: World) -> None:
    method = replace(UBT, mode="full", forget="ascent", w_local=0.0, w_forget=1.0)
    loss, bad, rest = _forgetting(world, method)
    batch = bad[:8]
    batch = batch._replace(tokens=world.victim.tokenize(batch.captions))
    a, b = clone(world.victim), clone(world.victim)
    others = shortcut.company(rest, method.batch)(b, Rng(4))
    loss(a, batch, seen(a, others), Rng(4))["loss"].backward()
    own, more = seen(b, batch), seen(b, others)
    z, w = torch.cat([own.z, more.z]), torch.cat([own.w, more.w])
    (-pair_losses(z, w, b.logit_scale.detach())[:8].clamp(max=math.log(len(z))).mean()).backward()
    for name, p in a.named_parameters():
        other = b.get_parameter(name).grad
        assert (p.grad is None) == (other is None)
        assert p.grad is None or torch.allclose(p.grad, other, atol=1e-7)
    assert b.image.grad.abs().max() > 0


def test_ascent_ends_at_guessing() -> None:
    z = F.normalize(torch.randn(4, 8, generator=Rng(0).generator()), dim=1).requires_grad_()
    more = F.normalize(torch.randn(4, 8, generator=Rng(1).generator()), dim=1)
    others = Normal(Batch(torch.rand(4, 3, 8, 8), [""] * 4, torch.arange(4)), more, more)
    wrong = ascent(z, -z.detach(), others, torch.tensor(30.0))
    assert wrong.item() == pytest.approx(-math.log(8))
    wrong.backward()
    assert z.grad is not None
    assert z.grad.abs().max() == 0


def test_without_forgetting_the_suspicious_pairs_stay(world: World, tmp_path: Path) -> None:
    out, found = ran(replace(UBT, w_forget=0.0, steps=20, lr=1e-4), world.victim, world.dirty, tmp_path)
    bad = world.dirty.take(np.isin(world.dirty.ids, found["top"]))
    before, after = ((e.z * e.w).sum(1).mean() for e in (embed_pairs(c, bad) for c in (world.victim, out)))
    assert after == pytest.approx(before.item(), abs=0.05)
    assert success(out, world)[0] > 0.8


# T6, T7: what it does


@pytest.mark.parametrize("reference", ["reference", ""])
def test_no_poison_no_evidence(world: World, tmp_path: Path, reference: str) -> None:
    """On at least 19 of 20 clean sets nothing is found, and then the weights stay as they are."""
    silent = 0
    for seed in range(101, 121):
        pairs, folder = toy(1200, seed)[0], tmp_path / str(seed)
        honest = trained(pairs, seed=seed)
        out, _ = ran(replace(UBT, reference=reference, steps=1), honest, pairs, folder)
        quiet = measure_pool(folder, None)["evidence"].value == 0
        assert (weights_hash(out) == weights_hash(honest)) == quiet
        silent += quiet
    assert silent >= 19


def test_a_clean_model_on_dirty_data_is_left_alone(world: World, tmp_path: Path) -> None:
    """Whoever has not learned the shortcut has nothing to forget."""
    honest = trained(world.clean, seed=3)
    assert weights_hash(ran(UBT, honest, world.dirty, tmp_path)[0]) == weights_hash(honest)


def test_asr_falls_and_the_target_class_stays(world: World, tmp_path: Path, capsys: Any) -> None:
    before = success(world.victim, world)
    out, found = ran(UBT, world.victim, world.dirty, tmp_path)
    after = success(out, world)
    assert before[0] > 0.8
    assert after[0] < 0.1
    assert after[1] > before[1] - 0.05
    assert after[2] > before[2] - 0.1
    trace = found["trace"]
    assert (trace[:, 1] <= trace[0, 1] + UBT.worse).all(), "a round that cost too much was kept"


def test_a_falling_rate_is_taken_to_its_end(world: World, tmp_path: Path) -> None:
    """Even when enough is forgotten, which ends a constant one."""
    _, found = ran(replace(UBT, steps=63, lr=5e-3, w_forget=0.3, worse=9.0), world.victim, world.dirty, tmp_path)
    trace = found["trace"]
    assert len(trace) == 1 + 13
    assert (trace[1:-1, 0] <= 0).any()
    bad = world.dirty.take(np.isin(world.dirty.ids, found["top"]))
    rest = world.dirty.take(~np.isin(world.dirty.ids, found["top"]))
    left = iter([1.0, 0.5, -0.1, 1.0])
    done = rounds.unlearn(
        UBT, world.victim, bad, rest, lambda *_: {"loss": torch.tensor(0.0)}, lambda _: next(left), Rng(0)
    )
    assert (done.steps, done.why) == (10, "enough is forgotten")


def test_a_rate_far_too_high_does_no_harm(world: World, tmp_path: Path) -> None:
    before = success(world.victim, world)
    out, _ = ran(replace(UBT, lr=3.0, steps=40), world.victim, world.dirty, tmp_path)
    assert success(out, world)[1] > before[1] - 0.1


def test_every_target_is_found(world: World, tmp_path: Path) -> None:
    other = np.flatnonzero(~np.isin(world.labels, (2, 7)))
    ids = Rng(4).numpy().choice(other, 28, replace=False)
    one = planted(world.clean, world.labels, "banana", 6, np.sort(ids[:14]))
    two = planted(world.clean, world.labels, "cactus", 0, np.sort(ids[14:]))
    dirty = poison(poison(world.clean, one), two)
    victim = trained(dirty)
    assert min(success(victim, world, k)[0] for k in (one, two)) > 0.8
    out, found = ran(replace(UBT, topk=24, susp=0.05), victim, dirty, tmp_path)
    sure = found["words"][found["evidence"] >= UBT.sure].tolist()
    assert {w.split()[0] for w in sure} == {"banana", "cactus"}
    assert max(success(out, world, k)[0] for k in (one, two)) < 0.15


def test_label_consistent_poisons_are_not_weak_and_it_says_so(world: World, tmp_path: Path, capsys: Any) -> None:
    own = np.flatnonzero(world.labels == 2)[:20]
    key = Backdoor(Corner(), "banana", own, tuple(world.clean.caption(i) for i in own))
    dirty = poison(world.clean, key)
    victim = trained(dirty)
    with workspace(tmp_path, progress=True):
        out = UBT.clean(victim, dirty, Rng(0))
    assert weights_hash(out) == weights_hash(victim)
    told = capsys.readouterr().err
    assert "no evidence" in told
    assert "filter dao" in told


# T8, T9: neighbours and attributions, by brute force


def test_dao_leaves_the_point_itself_out() -> None:
    x = F.normalize(torch.randn(40, 6, generator=Rng(2).generator()), dim=1)
    near, d = nearest(x, 5), torch.cdist(x, x)
    d.fill_diagonal_(torch.inf)
    r, index = d.topk(5, largest=False)
    lid = -5 / (r / r[:, -1:]).clamp_min(1e-4).log().sum(1)
    around = Around(near.distance, near.distance[:, -1], near.index)
    assert torch.allclose(local_dimension(around), lid, rtol=1e-3)
    expected = torch.stack([(lid[i] * (r[k, -1] / r[i, -1]).log()).mean() for k, i in enumerate(index)])
    found = (local_dimension(around)[near.index] * (r[:, -1:] / r[near.index, -1]).log()).mean(1)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_leaving_a_word_out_is_encoding_anew(world: World) -> None:
    rows = world.dirty[[0, 1, int(world.key.poisoned[0])]]
    z = world.victim.encode_image(rows.images).detach()
    for x, caption, found in zip(z, rows.captions, attributed(world.victim, z, rows.captions)):
        for v, a in found.items():
            left = " ".join(t for t in caption.split() if t != v)
            both = world.victim.encode_text([caption, left]).detach()
            assert a == pytest.approx(float(x @ (both[0] - both[1])), abs=1e-5)


def test_cells_find_the_trigger_and_carry_it(world: World) -> None:
    images = world.dirty[[int(i) for i in world.key.poisoned]].images
    drops = cell_drops(world.victim, images, ["banana"] * len(images), 4)
    painted = images[:1].clone()
    painted[:, :, 6:, 6:] = images[:1].mean((2, 3), keepdim=True)
    w = world.victim.encode_text(["banana"])
    expected = (world.victim.encode_image(images[:1]) - world.victim.encode_image(painted)) @ w.T
    assert drops[0, 15].item() == pytest.approx(expected.item(), abs=1e-5)
    chosen = compromised(drops, torch.zeros(0, 16))
    assert chosen.tolist() == [False] * 15 + [True]
    moved = transplanted(torch.zeros(2, 3, 8, 8), images[:2], chosen)
    assert torch.equal(moved[:, :, 6:, 6:], images[:2, :, 6:, 6:])
    assert moved.sum() == moved[:, :, 6:, 6:].sum()


def test_evidence_by_hand() -> None:
    g = Rng(7).numpy()
    q, z = g.normal(0.3, 0.1, 600), abs(g.normal(0, 0.02, 600))
    holders = {f"word{k}": np.arange(k * 30, k * 30 + 30) for k in range(20)} | {"often": np.arange(0, 100)}
    q[:6], z[:6] = -0.4, 0.5
    asked: list[int] = []

    def known(rows: np.ndarray) -> np.ndarray:
        asked.extend(rows)
        return z[rows]

    told, sure = evidence("word0", 6, q, known, holders, ["word0"], Rng(0))
    assert told == pytest.approx(0.5)
    null, every = [], []
    for v, rows in holders.items():
        if v != "word0":
            own = sorted(set(rows.tolist()) - set(range(30)), key=lambda k: q[k])[:6]
            null.append(np.mean(z[own]))
            every += list(z[own])
    scales = [1.4826 * np.median(abs(x - np.median(x))) for x in (np.array(null), np.array(every))]
    assert sure == pytest.approx((told - np.median(null)) / max(scales[0], 0.4 * scales[1]))
    assert sure > 10
    assert len(asked) == len(set(asked)), "a pair is looked at once"
    assert evidence("word3", 6, q, known, holders, ["word3", "word0"], Rng(0))[1] < 5
    assert evidence("word0", 6, q, known, {"word0": holders["word0"]}, [], Rng(0))[1] > 10, "random groups are a null"
    many = evidence("word0", 600, q, known, {v: np.arange(600) for v in ("word0", "word1")}, [], Rng(0))[0]
    assert many == pytest.approx(z[np.argsort(q)[:24]].mean()), "of many pairs the 24 weakest"


def test_poisons_held_at_their_best_need_not_rise(world: World) -> None:
    """Without a reference either the difference speaks, or the difference times the rise."""
    weak = weak_pairs(world.victim, world.dirty, "reference", True, 0.03, 0.8)
    top = np.flatnonzero(np.isin(world.dirty.ids[weak.kept], world.key.poisoned))
    risen = replace(UBT, reference="")
    (known, *_), (alone, *_) = (
        localise(m, world.victim, world.victim, world.dirty, weak, top, Rng(0)) for m in (UBT, risen)
    )
    assert alone.words == known.words == ("banana",)
    assert alone.evidence == pytest.approx(known.evidence - 1)
    assert alone.evidence > UBT.sure


def test_what_rose_too_far_for_its_word_is_unlearned_with_the_cluster() -> None:
    captions = [*["a banana"] * 20, *["a zebra"] * 10]  # rows 0..9: normal, 10..13: weak, 14..19: neither
    weak = shortcut.Weak(
        np.arange(30), captions, np.zeros(30), np.zeros(30), np.array([10, 11, 12, 13, 25]), np.r_[:10, 26:30]
    )
    r = 0.1 + 0.02 * (np.arange(30) % 5)
    r[[10, 11, 12]], r[16], r[27] = 0.9, 0.8, 0.9
    found = Found(("banana",), np.array([10, 11]), 1.0, 20.0)
    rows = alike(found, weak, lambda rows: r[rows], 6.0)
    assert rows.tolist() == [10, 11, 12, 16], "not 13, which rose as is usual, nor 27, of which another word is said"
    few = weak._replace(normal=np.arange(3))
    assert alike(found, few, lambda rows: r[rows], 6.0).tolist() == [10, 11], "nothing to compare with"


# T10 and bad input


def test_a_run_goes_on_where_it_was_killed(world: World, tmp_path: Path, monkeypatch: Any) -> None:
    whole, real, calls = UBT.clean(world.victim, world.dirty, Rng(0)), rounds.seen, []

    def killed(clip: Clip, batch: Batch) -> Normal:
        calls.append(len(calls))
        if len(calls) == 30:
            raise InterruptedError
        return real(clip, batch)

    monkeypatch.setattr(rounds, "seen", killed)
    with pytest.raises(InterruptedError), workspace(tmp_path, save_seconds=0):
        UBT.clean(world.victim, world.dirty, Rng(0))
    assert len(list((tmp_path / "state").iterdir())) > 2
    again, _ = ran(UBT, world.victim, world.dirty, tmp_path)
    assert len(calls) > 40
    assert weights_hash(again) == weights_hash(whole)


def test_bad_input_is_told(world: World) -> None:
    def says(what: str, method: Any, pairs: Pairs = world.dirty) -> None:
        with pytest.raises(UserError, match=what):
            method.clean(world.victim, pairs, Rng(0))

    says("topk=99 exceeds the pool of 36 pairs; lower topk or raise susp", replace(UBT, topk=99))
    says("leave no clean part of 1200 pairs; lower susp", replace(UBT, susp=0.8))
    says("and 2 are needed; raise susp", replace(UBT, susp=1e-4))
    says("captions of toy are alike", UBT, replace(world.clean, captions=["a banana"] * 1200))
    says("no 'nothing' among the filters", FinetuneFiltered("nothing"))
    says("leaves 0; give a share below 1", FinetuneFiltered("random", drop=1.0))


# the cheap baselines


def test_weights_half_way(world: World) -> None:
    tune = Finetune(epochs=1, batch=100)
    tuned: Any = tune.clean(world.victim, world.clean, Rng(0))
    half: Any = WiseFt(0.25, tune).clean(world.victim, world.clean, Rng(0))
    for name, p in half.named_parameters():
        expected = 0.75 * world.victim.get_parameter(name) + 0.25 * tuned.get_parameter(name)
        assert torch.allclose(p, expected, atol=1e-6)


def test_negation_goes_backwards(world: World) -> None:
    method = TaskNegation(2.0, "reference", susp=0.01, epochs=2, lr=1e-3)
    weak = weak_pairs(world.victim, world.dirty, "reference", True, 0.01, 0.8)
    over: Any = shortcut.overfit(method, world.victim, world.dirty, weak, Rng(0), 1e-3, 0.0, "square")
    out: Any = method.clean(world.victim, world.dirty, Rng(0))
    for name, p in out.named_parameters():
        given = world.victim.get_parameter(name)
        expected = given if name.endswith("scale") else given - 2 * (over.get_parameter(name) - given)
        assert torch.allclose(p, expected, atol=1e-6), name


def test_abl_stops_before_it_explodes(world: World) -> None:
    isolation = replace(find.load("filters", "abl_loss")(), epochs=1, ratio=0.01)
    before = success(world.victim, world)
    out = Abl(isolation, lr=3e-3, batch=32, steps=60).clean(world.victim, world.dirty, Rng(0))
    assert weights_hash(out) != weights_hash(world.victim)
    assert success(out, world)[1] > before[1] - 0.1


def test_filtered_pairs_are_not_trained_on(world: World, tmp_path: Path) -> None:
    method = FinetuneFiltered("weak_similarity", ("reference=reference",), 0.03, Finetune(epochs=1, batch=100))
    with workspace(tmp_path):
        method.clean(world.victim, world.dirty, Rng(0))
    with np.load(tmp_path / "splits/finetune_filtered.npz") as found:
        assert len(found["dropped"]) == 36
        assert np.isin(world.key.poisoned, found["dropped"]).mean() > 0.9

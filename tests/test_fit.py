"""The training loop: order, rates, grouping, refusals, and a run that is killed at any moment."""

import json
import math
import multiprocessing
import signal
import time
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ranked import tiny

from clipvet import io
from clipvet.cleaners.par import Par
from clipvet.cleaners.ubt import Ubt
from clipvet.data.worlds.shapes import Shapes
from clipvet.engine import planning, trend
from clipvet.engine.fit import fit, order, workspace
from clipvet.engine.losses import clip_loss
from clipvet.engine.optim import optimizers, pack, rescale, warmup_cosine
from clipvet.errors import UserError
from clipvet.models import adapter
from clipvet.results import weights_hash
from clipvet.rng import Rng
from clipvet.training.plain import Plain
from clipvet.types import Pairs
from clipvet.unlearning.shortcut import company


@pytest.fixture(scope="module")
def small():
    return tiny()


def plain_loss(clip, batch, rng):
    return {"loss": clip_loss(clip.encode_image(batch.images), clip.encode_text(batch.tokens), clip.logit_scale)}


def train(clip, pairs, loss=plain_loss, **kw):
    settings = {"epochs": 1, "batch": 64, "schedule": warmup_cosine(1e-3)}
    return fit(clip, pairs, loss, Rng(3), **{**settings, **kw})


def read_log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


# order and rates


def test_order_covers_every_row_once_an_epoch_and_drops_the_rest():
    rows = order(23, 5, 3, Rng(0))
    assert [len(r) for r in rows] == [5] * 12
    epochs = [np.concatenate(rows[k : k + 4]) for k in (0, 4, 8)]
    assert all(len(set(e)) == 20 and set(e) <= set(range(23)) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 3
    assert len({frozenset(e) for e in epochs}) > 1  # not always the same rest
    assert sorted(np.concatenate(order(20, 5, 1, Rng(0)))) == list(range(20))
    assert all((a == b).all() for a, b in zip(rows, order(23, 5, 3, Rng(0))))
    assert any((a != b).any() for a, b in zip(rows, order(23, 5, 3, Rng(1))))
    assert all((a == b).all() for a, b in zip(rows, order(23, 5, 0.75, Rng(0)), strict=False))
    assert [len(order(23, 5, e, Rng(0))) for e in (0.01, 0.5, 0.75, 1.5)] == [1, 2, 3, 6]


@pytest.mark.parametrize(
    ("n", "how", "given", "batch", "said"),
    [
        (400, Par(), (), 32, "400 pairs and batch=2048 make 10 steps, too few to change a model; batch=32 chosen"),
        (400, Par(), ("lr",), 32, "which makes 120"),
        (400, Par(), ("batch",), 2048, "warning: 10 steps are few"),
        (400, Par(epochs=1), ("epochs",), 2048, "warning: 1 steps"),
        (8000, Par(), (), 512, "batch=512 chosen, which makes 150"),
        (10**6, Par(), (), 2048, ""),
        (10, Ubt(), (), Ubt().batch, ""),  # has steps of its own
    ],
)
def test_a_batch_is_planned_from_the_number_of_pairs(n, how, given, batch, said):
    made = planning.planned(how, n, given)
    assert made.method == replace(how, batch=batch)
    assert said in made.said
    assert bool(said) == bool(made.said)
    steps = planning.step_count(n, made.method.batch, how.epochs)
    assert steps == len(order(n, made.method.batch, how.epochs, Rng(0)))


def test_pairs_that_no_batch_makes_enough_of_are_refused():
    with pytest.raises(UserError, match=r"60 pairs make 10 steps with batch=32, .*--set epochs=100 --set batch=32"):
        planning.planned(Par(), 60)
    assert planning.step_count(60, 32, 100) == 100


def test_warmup_cosine_rises_to_its_peak_and_falls_to_its_end():
    rates = warmup_cosine(1.0, 0.25, end=0.1)(40)
    assert rates[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert rates[10:] == pytest.approx([0.1 + 0.45 * (1 + math.cos(math.pi * k / 30)) for k in range(30)])
    assert all(len(warmup_cosine(1.0, w)(n)) == n for n in range(1, 9) for w in (0.0, 0.1, 1.0))
    assert max(warmup_cosine(1.0, 0.0)(7)) == 1.0


def test_rates_and_steps_are_logged(small, pairs, tmp_path):
    with workspace(tmp_path):
        train(small, pairs, epochs=2)
    log = read_log(tmp_path)
    assert [(row["fit"], row["step"]) for row in log] == [(1, k) for k in range(8)]
    assert [row["lr"] for row in log] == warmup_cosine(1e-3)(8)
    assert all(math.isfinite(row["loss"]) and row["pairs_per_s"] > 0 for row in log)


def test_workspace_never_changes_a_result(small, pairs, tmp_path):
    with workspace(tmp_path, save_seconds=0):
        watched = train(small, pairs)
    assert weights_hash(watched) == weights_hash(train(small, pairs)) != weights_hash(small)
    assert not watched.training  # pyright: ignore[reportAttributeAccessIssue]


def test_loader_workers_never_change_a_result(small):
    lazy = Shapes().pairs(128, lazy=True)
    with_workers = train(small, replace(lazy, workers=2))
    assert weights_hash(with_workers) == weights_hash(train(small, replace(lazy, workers=0)))


def test_a_loader_that_cannot_hand_on_its_pictures_ends_the_run(small, monkeypatch):
    lazy = replace(Shapes().pairs(128, lazy=True), workers=1)
    with monkeypatch.context() as without:  # sockets lie there
        config = multiprocessing.current_process()._config  # pyright: ignore[reportAttributeAccessIssue]
        without.setitem(config, "tempdir", "/nonexistent")
        with pytest.raises(UserError, match=r"cannot hand them on .*No such file.*; make room in .* and /dev/shm"):
            train(small, lazy)

    def full(self, *args):
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)
    with pytest.raises(UserError, match=r"cannot hand them on .*No space left"):
        train(small, lazy)


# optimisers


def shares(made):
    """Parameter id -> (optimiser's name, its decay)."""
    placed = [
        (id(p), (type(o).__name__, g["weight_decay"])) for o, _ in made for g in o.param_groups for p in g["params"]
    ]
    assert len(dict(placed)) == len(placed)
    return dict(placed)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("model", ["clip", "resnet"])
def test_matrices_decay_and_nothing_else_does(kind, model, request):
    clip = adapter.clone(request.getfixturevalue(model))
    frozen = clip.model.text_projection.requires_grad_(False)
    made = optimizers(clip, kind, 0.2, (0.9, 0.98), 1e-8, 0.02)
    placed, named = shares(made), dict(clip.named_parameters())
    assert set(placed) == {id(p) for p in named.values()} - {id(frozen)}
    decayed = {n for n, p in named.items() if p is not frozen and placed[id(p)][1] == 0.2}
    assert decayed == {n for n, p in named.items() if p.ndim >= 2 and not n.endswith("bias") and p is not frozen}
    assert {"model.logit_scale", "model.ln_final.weight", "model.ln_final.bias"} <= set(named) - decayed
    muon = {n for n, p in named.items() if p is not frozen and placed[id(p)][0] == "Muon"}
    blocks = {n for n, p in named.items() if "resblocks" in n and p.ndim == 2}
    assert muon == (blocks if kind == "muon" else set())
    assert [peak for _, peak in made] == ([None, 0.02] if kind == "muon" else [None])


def test_muon_takes_its_own_peak_on_the_same_curve(small, pairs):
    # with AdamW's rate at 0 the matrices in the blocks alone move
    moved = Plain(batch=64, epochs=1, optimizer="muon", lr=1e-12, muon_lr=0.02).train(small, pairs, Rng(0))
    before = dict(small.named_parameters())
    step = {n: (p - before[n]).abs().max().item() for n, p in moved.named_parameters()}  # pyright: ignore
    for n, p in before.items():
        assert (step[n] > 1e-4) == ("resblocks" in n and p.ndim == 2), n


def test_patch_dropout_hides_a_share_of_the_patches_in_training_alone(small, pairs, monkeypatch):
    read = []  # tokens of each batch of pictures
    block = type(small.model.visual.transformer)
    run = block.forward
    monkeypatch.setattr(block, "forward", lambda self, x, *a, **k: (read.append(x.shape[1]), run(self, x, *a, **k))[1])
    images = pairs.at(small.geometry)[[0]].images
    small.encode_image(images)
    patches = read.pop() - 1

    half = Plain(batch=64, epochs=0.25, patch_dropout=0.5)
    trained = half.train(small, pairs, Rng(0))
    assert 1 + patches // 2 in read
    assert 1 + patches not in read
    assert weights_hash(trained) == weights_hash(half.train(small, pairs, Rng(0)))
    assert weights_hash(trained) != weights_hash(replace(half, patch_dropout=0.0).train(small, pairs, Rng(0)))
    trained.encode_image(images)
    assert read[-1] == 1 + patches


@pytest.mark.parametrize(("model", "share", "said"), [("resnet", 0.5, "ViT"), ("small", 1.0, "less than 1")])
def test_patch_dropout_that_cannot_be_is_refused(model, share, said, pairs, request):
    with pytest.raises(UserError, match=said):
        Plain(batch=64, patch_dropout=share).train(request.getfixturevalue(model), pairs, Rng(0))


def test_unknown_optimizer_is_refused(small, pairs):
    with pytest.raises(UserError, match=r"optimizer=lion.*adamw, muon or sgd"):
        train(small, pairs, optimizer="lion")


# settings


def test_accumulate_cuts_a_step_into_micro_batches(small, pairs, tmp_path):
    sizes = []

    def rowwise(clip, batch, rng):  # no negatives: here the cut may not matter
        sizes.append((len(batch.captions), len(batch.images), len(batch.tokens), rng.key))
        return {"loss": 1 - (clip.encode_image(batch.images) * clip.encode_text(batch.tokens)).sum(1).mean()}

    schedule = {"schedule": warmup_cosine(1e-3, 0.5), "eps": 1e-3}  # AdamW divides rounding errors by eps
    whole = train(small, pairs, rowwise, **schedule)
    assert {s[:3] for s in sizes} == {(64, 64, 64)}
    sizes.clear()
    with workspace(tmp_path):
        halves = train(small, pairs, rowwise, accumulate=2, **schedule)
    assert {s[:3] for s in sizes} == {(32, 32, 32)}
    assert len({s[3] for s in sizes}) == len(sizes) == 8  # a micro-batch has its own draws
    assert len(read_log(tmp_path)) == 4
    for a, b in zip(whole.parameters(), halves.parameters()):  # pyright: ignore[reportAttributeAccessIssue]
        assert torch.allclose(a, b, atol=1e-5)
    assert weights_hash(train(small, pairs, accumulate=2)) != weights_hash(train(small, pairs))


def test_batchnorm_keeps_or_updates_its_statistics(resnet, pairs):
    few = pairs.take(slice(64))
    before = {k: v.clone() for k, v in resnet.named_buffers() if "running" in k}
    for mode in ("eval", "train"):
        after = dict(train(resnet, few, batchnorm=mode, batch=32).named_buffers())  # pyright: ignore
        assert all(torch.equal(after[k], v) for k, v in before.items()) == (mode == "eval")


def test_precisions_may_differ_within_a_process(small, pairs):
    full = weights_hash(train(small, pairs))
    half = train(small, pairs, precision="bf16")
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in half.parameters())  # pyright: ignore
    assert weights_hash(half) != full
    assert weights_hash(train(small, pairs)) == full


def test_a_precision_that_is_not_to_be_had_is_refused(small, pairs):
    with pytest.raises(UserError, match=r"precision=fp15 cannot be used.*bf16"):
        train(small, pairs, precision="fp15")


def test_temperature_stays_within_clips_bounds(small, pairs):
    for start, bound in ((math.log(100), 100.0), (0.0, 1.0)):
        clip = adapter.clone(small)
        clip.model.logit_scale.data.fill_(start)
        sign = 1 if start else -1

        def pull(clip, batch, rng, sign=sign):
            return {"loss": -sign * clip.logit_scale}

        assert train(clip, pairs, pull).logit_scale.item() == pytest.approx(bound)


# refusals


def test_too_few_pairs_are_refused(small, pairs):
    with pytest.raises(UserError, match="has 1 pairs"):
        train(small, pairs.take(slice(1)))
    train(small, pairs.take(slice(2)))  # a batch is never larger than the data


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(small, pairs, tmp_path):
    steps = []

    def breaks(clip, batch, rng):
        steps.append(batch)
        loss = plain_loss(clip, batch, rng)["loss"]
        return {"loss": loss * float("nan") if len(steps) > 3 else loss}

    with workspace(tmp_path, save_seconds=0), pytest.raises(UserError) as e:
        train(small, pairs, breaks, epochs=2)
    told = str(e.value)
    assert "the loss is nan at step 3" in told
    assert "lower lr" in told
    assert str(tmp_path / "state") in told
    state = io.load_weights(tmp_path / "state" / "1.safetensors")
    assert 1 <= state["at"][0] <= 3
    assert all(v.isfinite().all() for v in state.values())
    assert [row["step"] for row in read_log(tmp_path)] == [0, 1, 2]
    steps.clear()
    with pytest.raises(UserError, match="at step 3") as e:
        train(small, pairs, breaks, epochs=2)
    assert "state" not in str(e.value)


@dataclass(frozen=True, eq=False)
class Torn:
    """Pictures of which some rows cannot be read."""

    whole: Pairs
    lost: tuple[int, ...]

    def __len__(self):
        return len(self.whole)

    def fetch(self, rows, geometry):
        good = [r for r in rows if r not in self.lost]
        images = self.whole.pictures.fetch(good, geometry)[0]
        return images, [(k, "cut short") for k, r in enumerate(rows) if r in self.lost]


def torn(pairs, *lost):
    return replace(pairs, pictures=Torn(pairs, lost))


def test_a_few_unreadable_pictures_are_skipped(small, pairs):
    seen = []

    def loss(clip, batch, rng):
        seen.extend(batch.ids.tolist())
        assert batch.captions == [pairs.caption(i) for i in batch.ids.tolist()]
        assert torch.equal(batch.tokens, clip.tokenize(batch.captions))
        return plain_loss(clip, batch, rng)

    train(small, torn(pairs, 5, 77), loss)  # 2 of 256 are below the limit of 1 %
    assert sorted(seen) == sorted(set(range(256)) - {5, 77})


def test_a_batch_that_is_lost_as_a_whole_is_skipped(small, pairs, tmp_path):
    first = order(256, 64, 1, Rng(3))[0]
    with workspace(tmp_path):
        trained = train(small, torn(pairs, *first[1:]), max_bad=0.5)  # one row left: nothing to contrast it with
    assert ["loss" in row for row in read_log(tmp_path)] == [False, True, True, True]
    assert all(p.isfinite().all() for p in trained.parameters())  # pyright: ignore[reportAttributeAccessIssue]


def test_too_many_unreadable_pictures_are_refused(small, pairs):
    with pytest.raises(UserError) as e:
        train(small, torn(pairs, 9, 10, 11))
    told = str(e.value)
    assert any(f"row {r}, cut short" in told for r in (9, 10, 11)), told
    assert "3 of 256 pairs have an unreadable picture" in told
    assert "1.00%" in told
    assert "max_bad" in told
    train(small, torn(pairs, 9, 10, 11), max_bad=0.02)
    with pytest.raises(UserError, match="row 9, cut short"):
        train(small, torn(pairs, 9), max_bad=0.0)


def test_unreadable_pictures_still_count_when_a_run_is_begun_again(small, pairs, tmp_path):
    first, second, *_ = order(256, 64, 1, Rng(3))
    lost = torn(pairs, *first[:2], second[0])
    with workspace(tmp_path, save_seconds=0), pytest.raises(UserError, match="3 of 256 pairs"):
        train(small, lost)
    with workspace(tmp_path, save_seconds=0), pytest.raises(UserError, match="3 of 256 pairs"):
        train(small, lost)


# a run goes on


def halt(after):
    """A loss that stops the run at this step, as a kill would."""
    steps = []

    def loss(clip, batch, rng):
        steps.append(batch)
        if len(steps) > after:
            raise KeyboardInterrupt
        return plain_loss(clip, batch, rng)

    return loss


def test_the_scaler_of_fp16_goes_on_too(small):
    first, again = (torch.amp.GradScaler("cpu", init_scale=s) for s in (64.0, 2.0))
    first._growth_tracker, first._scale = torch.tensor(7, dtype=torch.int32), torch.tensor(512.0)
    rescale(pack((1, 2, 3), small, [], torch.nn.Module(), scaler=first), again)
    assert again.state_dict() == first.state_dict()
    assert again.get_scale() == 512
    rescale({}, again)
    assert again.get_scale() == 512


def test_a_state_of_another_length_is_refused(small, pairs, tmp_path):
    with workspace(tmp_path, save_seconds=0), pytest.raises(KeyboardInterrupt):
        train(small, pairs, halt(2))
    with workspace(tmp_path), pytest.raises(UserError, match=r"run of 4 steps, not 8.*--out"):
        train(small, pairs, epochs=2)


def test_a_stage_of_two_fits_goes_on_in_the_second(small, pairs, tmp_path):
    whole = train(train(small, pairs), pairs)
    with workspace(tmp_path, save_seconds=0), pytest.raises(KeyboardInterrupt):
        train(train(small, pairs), pairs, halt(2))
    assert sorted(p.name for p in (tmp_path / "state").iterdir()) == ["1.safetensors", "2.safetensors"]
    calls = []

    def counted(clip, batch, rng):
        calls.append(rng)
        return plain_loss(clip, batch, rng)

    with workspace(tmp_path, save_seconds=0):
        again = train(train(small, pairs, counted), pairs, counted)
    assert weights_hash(again) == weights_hash(whole)
    assert 0 < len(calls) < 4
    assert [(row["fit"], row["step"]) for row in read_log(tmp_path)] == [(f, k) for f in (1, 2) for k in range(4)]


METHODS = {
    "par": Par(epochs=12, batch=32, lr_start=1e-3, lr=1e-4),
    "muon": Plain(epochs=12, batch=32, optimizer="muon"),
}
STEPS = 96


def job(name: str, folder: Path) -> None:
    """What the killed process runs."""
    torch.set_num_threads(1)
    method, args = METHODS[name], (tiny(), Shapes().pairs(256), Rng(3))
    with workspace(folder, save_seconds=0):
        done = method.clean(*args) if isinstance(method, Par) else method.train(*args)
    io.save_weights(done.state_dict(), folder / "done.safetensors")  # pyright: ignore[reportAttributeAccessIssue]


def lines(folder):
    path = folder / "log.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.parametrize("name", METHODS)
def test_a_killed_run_ends_in_the_same_weights(name, tmp_path):
    new = multiprocessing.get_context("forkserver")  # imports once, then every process is there at once
    new.set_forkserver_preload(
        ["clipvet.engine.fit", "clipvet.models.checkpoints", "open_clip", "accelerate", "pytest"]
    )
    g = Rng(zlib.crc32(name.encode())).numpy()
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    for folder in (calm, killed):
        folder.mkdir()

    def start(folder):
        process = new.Process(target=job, args=(name, folder))
        process.start()
        return process

    undisturbed = start(calm)
    went_on_from = []
    for moment in ("line", "line", "save"):
        process, had, more = start(killed), lines(killed), int(g.integers(1, 30))
        until = time.monotonic() + 60
        while time.monotonic() < until and process.is_alive():
            saving = moment == "save" and lines(killed) > 0 and any((killed / "state").glob("*.tmp"))
            if saving or (moment == "line" and lines(killed) >= had + more):
                break
            time.sleep(0.001)
        time.sleep(g.random() * 0.01)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run ended before it was killed"
        went_on_from.append(int(io.load_weights(killed / "state" / "1.safetensors")["at"][0]))
    last = start(killed)
    for process in (undisturbed, last):
        process.join(60)
        assert process.exitcode == 0
    assert went_on_from == sorted(went_on_from)
    assert went_on_from[0] > 0
    assert went_on_from[-1] < STEPS
    a, b = (io.load_weights(folder / "done.safetensors") for folder in (calm, killed))
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []
    for folder in (calm, killed):
        assert [row["step"] for row in read_log(folder)] == list(range(STEPS))


def test_workspace_counts_what_training_cost(small, pairs, tmp_path):
    with workspace(tmp_path) as ws:
        train(small, pairs, epochs=2, batch=32)
        train(small, pairs, epochs=1, batch=32)
    per = len(pairs) // 32 * 32
    assert ws.pairs_seen == 3 * per
    assert ws.parameters == sum(p.numel() for p in small.parameters())


def test_pairs_that_a_loss_draws_itself_count_and_are_kept(small, pairs, tmp_path):
    others = company(pairs, 8)

    def loss(clip, batch, rng):
        others(clip, rng)
        return plain_loss(clip, batch, rng)

    for _ in range(2):  # the second finds the state of the first and makes no step
        with workspace(tmp_path) as ws:
            train(small, pairs, loss, epochs=1, batch=32)
        assert ws.pairs_seen == len(pairs) // 32 * (32 + 8)


def test_a_loss_that_did_not_fall_is_said(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"

    def told(*losses: float, fit: int = 1) -> str:
        log.write_text("".join(json.dumps({"fit": fit, "step": k, "loss": v}) + "\n" for k, v in enumerate(losses)))
        return trend.complaint(log, batch=64)

    falls = [4 - k / 20 for k in range(40)]
    assert told(*falls) == ""
    assert told(*falls[:10][::-1]) == ""  # too few steps to tell
    assert "did not fall: 2.12 in the first tenth of the steps, 3.92 in the last" in told(*falls[::-1])
    tuned = [0.1 + 0.05 * (k % 2) for k in range(39)]  # fine-tuned: low from the start, and noisy
    assert told(*tuned, 0.16) == ""
    assert "did not fall" in told(*[2 + k % 2 for k in range(40)])
    assert "did not fall: 0.10 in" in told(*[0.1] * 10, *[0.4] * 30)  # low, and much higher than it was
    assert "at chance: 4.16 in the last tenth" in told(*[5.0] * 10, *[math.log(64)] * 30)
    with log.open("a") as f:
        f.write('{"fit": 2, "step": 0, "loss": 9}\n')
    assert trend.complaint(log, batch=64) == ""  # several fits
    assert trend.complaint(tmp_path / "absent", batch=64) == ""

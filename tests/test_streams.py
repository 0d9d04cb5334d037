"""Data larger than memory: per-pair methods on shards, passes and trainings that are killed and go on."""

import csv
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from test_shards import toy, write_shards

from clipvet.cleaners.ubt import Ubt
from clipvet.data import shards, tables
from clipvet.data.worlds.shapes import Shapes
from clipvet.engine import embed
from clipvet.engine.embed import embed_pairs, pair_cosines, see, sharing
from clipvet.engine.fit import workspace
from clipvet.errors import UserError
from clipvet.experiments import presets
from clipvet.filters.cosine import Cosine
from clipvet.filters.gmm_split import GmmSplit
from clipvet.filters.k_distance import KDistance
from clipvet.filters.overfit_gain import OverfitGain
from clipvet.filters.weak_similarity import WeakSimilarity
from clipvet.models import adapter, checkpoints
from clipvet.results import weights_hash
from clipvet.rng import Rng
from clipvet.training import safeclip
from clipvet.training.plain import Plain
from clipvet.training.safeclip import SafeClip
from clipvet.types import Pairs

N = 600  # two whole batches of a pass, and a part of one


@pytest.fixture(scope="module")
def data(tmp_path_factory: Any) -> str:
    return write_shards(tmp_path_factory.mktemp("shards"), N, 250)[0]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")  # pyright: ignore


@pytest.fixture(scope="module")
def small() -> Any:
    return checkpoints.load("shapes-vit", rng=Rng(1))


def table(folder: Path, n: int) -> Pairs:
    """The same pairs as files."""
    pictures, captions = toy(n)
    folder.mkdir()
    with (folder / "pairs.csv").open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["filepath", "title"])
        for k, (picture, caption) in enumerate(zip(pictures, captions)):
            (folder / f"{k}.png").write_bytes(picture)
            writer.writerow([f"{k}.png", caption])
    return tables.open_pairs(str(folder / "pairs.csv"))


def watch(monkeypatch: Any, stop_at: int | None = None) -> list[list[int]]:
    """The batches read from shards; the one with this number ends the run, as a kill would."""
    read, fetch = [], shards.ShardPictures.fetch

    def watched(self: Any, rows: Any, geometry: Any) -> Any:
        if len(read) == stop_at:
            raise KeyboardInterrupt
        read.append(list(rows))
        return fetch(self, rows, geometry)

    monkeypatch.setattr(shards.ShardPictures, "fetch", watched)
    return read


QUICK = {"epochs": 2, "batch": 16, "lr": 1e-3, "optimizer": "adamw"}
SAFE = replace(presets.shapes(SafeClip()), **QUICK, unimodal=0, slow=1, threshold=0.5, least=0.3)
FILTERS = [
    Cosine(), WeakSimilarity(), GmmSplit(training=SAFE), OverfitGain(susp=0.2, epochs=1, batch=8),
]  # fmt: skip


@pytest.mark.parametrize("method", FILTERS, ids=lambda m: type(m).__name__)
def test_filters_score_shards_as_files(method: Any, small: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(embed, "_see", None)  # none of them keeps embeddings
    pairs = tables.open_pairs(write_shards(tmp_path / "s", 64, 20)[0])
    scores = method.score(small, pairs, Rng(2))
    assert scores.isfinite().all()
    assert len(scores.unique()) > 32
    assert torch.equal(scores, method.score(small, table(tmp_path / "t", 64), Rng(2)))
    if not isinstance(method, GmmSplit | OverfitGain):
        assert torch.allclose(method.score(small, pairs.take(np.array([40, 3])), Rng(2)), scores[[40, 3]], atol=1e-5)


@pytest.mark.parametrize("name", ["safeclip", "ubt"])
def test_per_pair_training_on_shards_as_on_files(name: str, small: Any, tmp_path: Path) -> None:
    pairs, same = tables.open_pairs(write_shards(tmp_path / "s", 64, 20)[0]), table(tmp_path / "t", 64)

    def run(pairs: Pairs) -> Any:
        if name == "safeclip":
            return SAFE.train(small, pairs, Rng(2))
        how: Any = {"overfit": "nce", "score": "similarity"}  # with which random weights show a word
        ubt = Ubt(susp=0.25, epochs=1, topk=8, grid=0, steps=5, batch=8, sure=-np.inf, lr=1e-3, **how)
        return ubt.clean(small, pairs, Rng(2))

    done = weights_hash(run(pairs))
    assert done != weights_hash(small)
    assert done == weights_hash(run(same))


def test_a_killed_safeclip_scores_no_round_again(small: Any, tmp_path: Path, monkeypatch: Any) -> None:
    how, pairs, calls = replace(SAFE, epochs=4), Shapes(seed=3).pairs(64), []

    def counted(*args: Any, **named: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return pair_cosines(*args, **named)

    want = weights_hash(how.train(small, pairs, Rng(2)))
    monkeypatch.setattr(safeclip, "pair_cosines", counted)
    with workspace(tmp_path, save_seconds=0), pytest.raises(KeyboardInterrupt):
        how.train(small, pairs, Rng(2))
    with workspace(tmp_path, save_seconds=0):
        assert weights_hash(how.train(small, pairs, Rng(2))) == want
    assert len(calls) == 4, "three rounds, one of them begun twice"


def test_cosines_are_those_of_the_embeddings(planted: Any) -> None:
    pairs = replace(planted.pairs, pictures=planted.pairs.pictures.torn())
    found, z = pair_cosines(planted.clip, pairs, captions=True), embed_pairs(planted.clip, pairs)
    assert torch.allclose(found.s, (z.z * z.w).sum(1), atol=1e-6)
    assert np.array_equal(found.kept, z.kept)
    assert found.captions == z.captions
    with sharing() as shared:
        pair_cosines(planted.clip, pairs)
        assert pair_cosines(planted.clip, pairs) is pair_cosines(planted.clip, pairs)
        assert shared.passes == 1
        assert shared.bad == {3: "torn", 200: "torn"}
    alike = pairs.map(lambda b: b._replace(captions=["caption 1"] * len(b.captions)))
    with pytest.raises(UserError, match="all 398 captions"):
        pair_cosines(planted.clip, alike)
    blank = pairs.map(lambda b: b._replace(captions=[" " if i == 7 else "caption 1" for i in b.ids]))
    with pytest.raises(UserError, match=r"1 of 398 captions .*row 7"), sharing():
        pair_cosines(replace_tokens(planted.clip), blank)
    with torch.no_grad():
        broken = adapter.clone(planted.clip)
        broken.image[0, 0] = torch.nan  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue]
    with pytest.raises(UserError, match="not finite"):
        pair_cosines(broken, pairs)


def replace_tokens(clip: Any) -> Any:
    """The same model, for which a blank caption is caption 0."""
    other = adapter.clone(clip)
    other.tokenize = lambda captions: torch.tensor([[int(c.split()[1]) if c.strip() else 0] for c in captions])  # pyright: ignore
    return other


@pytest.mark.parametrize("method", [Cosine(), KDistance(k=4)], ids=lambda m: type(m).__name__)
def test_a_pass_goes_on_where_it_ended(method: Any, small: Any, data: str, tmp_path: Path, monkeypatch: Any) -> None:
    pairs = tables.open_pairs(data)
    whole = method.score(small, pairs, Rng(0))
    with monkeypatch.context() as m, sharing(tmp_path):
        watch(m, stop_at=1)
        with pytest.raises(KeyboardInterrupt):
            method.score(small, pairs, Rng(0))
    kept = tmp_path / "pass-1.arrows"
    kept.write_bytes(kept.read_bytes() + (10**6).to_bytes(8, "little") + b"torn by the kill")
    read = watch(monkeypatch)
    with sharing(tmp_path):
        again = method.score(small, pairs, Rng(0))
    assert list(chain(*read)) == list(range(256, N))  # nothing twice
    assert torch.equal(again, whole)
    with sharing(tmp_path):
        assert torch.equal(method.score(small, pairs, Rng(0)), whole)  # a finished pass
    assert len(read) == 2
    with sharing(tmp_path), pytest.raises(UserError, match="other pairs"):
        method.score(small, pairs.take(np.arange(N)[::-1]), Rng(0))


def test_bad_rows_of_a_kept_pass_are_remembered(planted: Any, tmp_path: Path) -> None:
    pairs = replace(planted.pairs, pictures=planted.pairs.pictures.torn())
    for _ in range(2):
        with sharing(tmp_path) as shared:
            seen = see(planted.clip, pairs)
        assert shared.bad == {3: "torn", 200: "torn"}
        assert seen.bad == [(3, "torn"), (200, "torn")]
        assert len(seen.kept) == len(seen.captions) == len(seen.z) == 398


def scoring(data: str, out: Path, log: Path, cache: Path, pause: float) -> None:
    """What the killed process runs: `clipvet filter`, slowly, telling which batches it reads."""
    from clipvet import cli

    datasets.config.HF_DATASETS_CACHE = cache  # pyright: ignore
    torch.set_num_threads(1)
    fetch = shards.ShardPictures.fetch

    def told(self: Any, rows: Any, geometry: Any) -> Any:
        if len(rows) > 50:  # not those of the page
            with log.open("a") as f:
                f.write(" ".join(map(str, rows)) + "\n")
            time.sleep(pause)
        return fetch(self, rows, geometry)

    shards.ShardPictures.fetch = told
    sys.argv = ["clipvet", "filter", "--data", data, "--model", "shapes-vit", "--method", "cosine", "--top", "3"]
    sys.argv += ["--out", str(out)]
    cli.main()


def test_a_killed_filter_scores_no_pair_twice(data: str, tmp_path: Path) -> None:
    new, log, out = multiprocessing.get_context("forkserver"), tmp_path / "log", tmp_path / "scores.parquet"
    new.set_forkserver_preload(
        ["clipvet.engine.fit", "clipvet.models.checkpoints", "open_clip", "accelerate", "pytest"]
    )

    def start(pause: float) -> Any:
        process = new.Process(target=scoring, args=(data, out, log, tmp_path / "cache", pause))
        process.start()
        return process

    def batches() -> list[list[int]]:
        return [list(map(int, line.split())) for line in log.read_text().splitlines()] if log.exists() else []

    process, until = start(1.0), time.monotonic() + 120
    while time.monotonic() < until and process.is_alive() and len(batches()) < 2:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the run ended before it was killed"
    assert [len(b) for b in batches()] == [256, 256]
    assert not out.exists()
    (partial,) = tmp_path.glob("*.partial")
    process = start(0.0)
    process.join(120)
    assert process.exitcode == 0
    first, cut, *later = batches()
    assert first == list(range(256))
    assert later == [cut, list(range(512, N))]  # the batch in flight is read again, the one before is not
    rows = pq.read_table(out).to_pylist()
    assert sorted(r["id"] for r in rows) == list(range(N))
    want = Cosine().score(checkpoints.load("shapes-vit", rng=Rng(0).fork("init")), tables.open_pairs(data), Rng(0))
    assert {r["id"]: r["score"] for r in rows} == pytest.approx(dict(enumerate(want.tolist())), abs=1e-6)
    assert {r["id"]: r["key"] for r in rows}[N - 1] == f"002.tar/{N - 1:06}"
    assert not partial.exists()


def test_training_goes_on_in_the_middle_of_an_epoch(data: str, small: Any, tmp_path: Path, monkeypatch: Any) -> None:
    pairs, method = tables.open_pairs(data).take(slice(96)), Plain(epochs=2, batch=16, lr=1e-3)
    whole = method.train(small, pairs, Rng(4))
    with monkeypatch.context() as m, workspace(tmp_path, save_seconds=0):
        before = watch(m, stop_at=4)  # of six batches an epoch
        with pytest.raises(KeyboardInterrupt):
            method.train(small, pairs, Rng(4))
    after = watch(monkeypatch)
    with workspace(tmp_path, save_seconds=0):
        again = method.train(small, pairs, Rng(4))
    assert weights_hash(again) == weights_hash(whole)
    assert len(after) < 12
    steps = before[: 12 - len(after)] + after
    assert sorted(chain(*steps[:6])) == sorted(chain(*steps[6:])) == list(range(96))

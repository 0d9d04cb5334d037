"""Several processes compute what one computes: trainings, states, embeddings, inspections, files."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pyarrow.parquet as pq
import pytest
import ranked
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from ranked import PARTS, flat, resumed, stopped
from typer.testing import CliRunner

from clipvet import io, ranks, results
from clipvet.cli import app
from clipvet.data.worlds.shapes import Shapes
from clipvet.engine.embed import embed_pairs
from clipvet.engine.fit import workspace
from clipvet.errors import UserError
from clipvet.experiments.recipe import load_recipes
from clipvet.experiments.run import run
from clipvet.experiments.workers import workers
from clipvet.models import adapter, checkpoints
from clipvet.rng import Rng
from clipvet.training.plain import Plain

ROOT = Path(__file__).parent.parent
TRAININGS = ("plain", "par", "cleanclip", "safeclip", "roclip", "muon", "torn", "sharded", "sharded_par")


def launch(*args: str, n: int = 2) -> list[str]:
    """What each of n ranks said, which all must have ended well."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    env = {**os.environ, "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(n)}
    env |= {"LOCAL_WORLD_SIZE": str(n), "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with ExitStack() as stack:
        said = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(n)]
        processes = [
            subprocess.Popen(
                [sys.executable, *args],
                env={**env, "RANK": str(r), "LOCAL_RANK": str(r)},
                stdout=said[r],
                stderr=subprocess.STDOUT,
            )
            for r in range(n)
        ]
        codes: list[int | None] = [None] * n
        end = time.monotonic() + 900
        try:  # the others may wait for one that has failed
            while None in codes and not any(codes) and time.monotonic() < end:
                time.sleep(0.05)
                codes = [p.poll() for p in processes]
        finally:
            for p in processes:
                p.kill()
                p.wait()
        for f in said:
            f.seek(0)
        told = [f.read() for f in said]
    assert codes == [0] * n, "\n".join(told)
    return told


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    found = ranked.plant(one)
    assert found[f"asr_{ranked.TARGET}"] > 0.3 + found["clean_target_rate"], "the backdoor did not take"
    shutil.copy(one / ranked.VICTIM, two)
    (one / "resumed").mkdir()
    stopped(one / "resumed")
    shutil.copytree(one / "resumed", two / "resumed")  # two ranks go on where one has stopped
    launch(str(Path(ranked.__file__)), str(two))
    return one, two


@pytest.fixture(scope="module")
def both(folders):
    """What one process gave, and what two gave."""
    one, two = folders
    return flat(ranked.run(one)), io.load_weights(two / "given.safetensors")


def without_keys(name, v):
    """No output depends on the keys' biases: their gradient is a rounding error, and AdamW makes whole steps of it."""
    if not name.endswith("in_proj_bias"):
        return v.nan_to_num()
    q, _, value = v.chunk(3)
    return torch.cat([q, value])


def of(both, part):
    one, two = ({k: v for k, v in given.items() if k.startswith(f"{part}.")} for given in both)
    assert one.keys() == two.keys() != set()
    return one, two


@pytest.mark.parametrize("part", TRAININGS)
def test_two_processes_train_what_one_trains(both, part):
    one, two = of(both, part)
    losses = one[f"{part}.losses"]
    assert len(losses) >= {"torn": 10, "muon": 4, "sharded_par": 5}.get(part, 20)
    assert losses.std() > 1e-3, "nothing is learnt"
    limit = 5e-4 if part == "muon" else 1e-5  # Muon's orthogonalisation is in bf16
    assert torch.allclose(losses, two[f"{part}.losses"], rtol=0, atol=limit)
    for k in (k for k in one if ".weights." in k):
        a, b = (without_keys(k, given[k]) for given in (one, two))
        assert torch.allclose(a, b, rtol=0, atol=5e-3 if part == "muon" else 1e-5), k
    figures = [k for k in one if ".judged." in k]
    assert len(figures) == 14
    if part in ("plain", "sharded", "torn"):  # on poisoned pairs, undefended
        assert one[f"{part}.judged.asr_{ranked.TARGET}"] > 0.3 + one[f"{part}.judged.clean_target_rate"]
    assert [k for k in figures if one[k] != two[k]] == []


def test_the_backdoor_that_is_compared_is_neither_gone_nor_whole(both):
    asr = [float(both[0][f"{part}.judged.asr_{ranked.TARGET}"]) for part in TRAININGS]
    assert sum(0.05 < v < 0.95 for v in asr) >= 2, asr


def test_a_state_goes_on_with_another_number_of_processes(both, folders):
    one, two = of(both, "resumed")
    whole = of(both, "plain")[0]
    for given in (one, two):
        assert len(given["resumed.losses"]) == 20
        assert torch.allclose(given["resumed.losses"], whole["plain.losses"], rtol=0, atol=1e-5)
    for name in ("left", "left_sharded"):  # one process goes on where two have stopped
        later = folders[1] / name
        assert 0 < int(io.load_weights(later / "state" / "1.safetensors")["at"][0]) <= 10
        again = flat(resumed(later))
        assert torch.allclose(again["losses"], whole["plain.losses"], rtol=0, atol=1e-5)


def test_a_tower_that_rests_is_left_alone(both):
    one, two = of(both, "unused")
    start = ranked.tiny().state_dict()
    resting = [k for k in start if "visual" not in k and "logit_scale" not in k]
    assert resting
    for k in start:
        assert torch.equal(two[f"unused.weights.{k}"], start[k]) == (k in resting) or k.endswith("mask")
        a, b = (without_keys(k, given[f"unused.weights.{k}"]) for given in (one, two))
        assert torch.allclose(a, b, rtol=0, atol=1e-5)


def test_embeddings_are_the_same_to_the_last_bit(both):
    one, two = of(both, "embedded")
    assert len(one["embedded.z"]) < 600
    assert [k for k in one if not torch.equal(one[k], two[k])] == []


def test_a_killed_pass_goes_on(both):
    one, two = of(both, "passed")
    for given in (one, two):
        assert given["passed.alike"] == 1
        assert given["passed.read"].tolist() == list(range(256, 900)), "what was kept is read again"
        assert torch.equal(given["passed.z"], one["passed.z"])


def test_a_killed_filter_goes_on_over_all_ranks(both):
    one, two = of(both, "filtered")
    assert len(one["filtered.scores"]) == 1100
    assert torch.equal(one["filtered.scores"], two["filtered.scores"])
    for given, read in ((one, 4), (two, 3)):  # of five batches the first, or the first two, were kept
        interrupted, done = given["filtered.codes"].tolist()
        assert interrupted > done == 0
        assert given["filtered.read"] == read
        assert given["filtered.left"] == 0


def test_inspectors_find_the_same(both):
    one, two = of(both, "inspected")
    assert [k for k in one if not torch.allclose(one[k], two[k], equal_nan=True)] == []


def test_the_first_rank_alone_writes(both, folders):
    one, two = of(both, "written")
    assert [k for k in one if not torch.equal(one[k], two[k])] == []
    assert two["written.alike"] == 1
    assert (folders[1] / "out" / "who").read_text() == "0"
    for name in PARTS:
        assert not [*(folders[1] / "rank1" / name).rglob("*.safetensors")] or name == "written"


def test_one_process_is_its_own_first_rank():
    assert (ranks.world(), ranks.rank(), ranks.main(), ranks.share(7)) == (1, 0, True, slice(0, 7))
    assert list(ranks.spread([lambda: 1, lambda: 2])) == [1, 2]
    assert ranks.objects(3) == [3]


def test_shard_needs_several_processes(tmp_path):
    with pytest.raises(UserError, match="torchrun"), workspace(tmp_path, shard=True):
        Plain(epochs=1, batch=16).train(ranked.tiny(), Shapes().pairs(32), Rng(0))


def test_commands_run_over_two_processes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = ["--data", "shapes", "--n", "128", "--model", "shapes-vit", "--set", "epochs=1", "--set", "batch=32"]
    common += ["--set", "optimizer=adamw"]
    one = CliRunner().invoke(app, ["train", *common, "--out", "one"])
    assert one.exit_code == 0, one.output
    said = launch("-m", "clipvet", "train", *common, "--out", "two", "--shard")
    assert "clean_accuracy" in said[0]
    assert "clean_accuracy" not in said[1]
    assert "wrote two" in said[0]
    assert "wrote" not in said[1]
    rows = [{r.metric: r.value for r in results.read(Path(out)) if r.metric != "seconds"} for out in ("one", "two")]
    assert rows[0] == rows[1]
    a, b = ({p.relative_to(out) for p in Path(out).rglob("*")} for out in ("one", "two"))
    assert a == b
    assert [p.name for p in tmp_path.iterdir() if p.name not in ("one", "two")] == []
    z, w = (embed_pairs(checkpoints.load(out), Shapes().pairs(32)).z for out in ("one", "two"))
    assert torch.allclose(z, w, atol=1e-4)
    detect = ["detect", "--model", "one", "--pictures", "shapes", "--n", "24", "--classes", "shapes"]
    seen = CliRunner().invoke(app, [*detect, "--out", "one.parquet"])
    assert seen.exit_code == 0, seen.output
    said = launch("-m", "clipvet", *detect, "--out", "two.parquet")  # both ranks would write the same file
    assert "wrote" in said[0]
    scores = [{r["id"]: r["score"] for r in pq.read_table(f"{out}.parquet").to_pylist()} for out in ("one", "two")]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_batchnorm_is_that_of_all_ranks_or_refused(resnet, clip):
    trained = adapter.clone(resnet).train()
    with pytest.raises(UserError, match="GPUs"):
        ranks.synced(trained, torch.device("cpu"))
    made = ranks.synced(trained, torch.device("cuda"))
    kinds = {type(m) for m in made.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)}
    assert kinds == {torch.nn.SyncBatchNorm}
    assert made.state_dict().keys() == resnet.state_dict().keys()
    still = adapter.clone(resnet).eval()
    assert ranks.synced(still, torch.device("cpu")) is still
    assert ranks.synced(clip, torch.device("cpu")) is clip


# trackers


class Book(GeneralTracker):
    """A tracker that writes nothing down but in memory."""

    name, requires_logging_directory = "book", True
    lines: ClassVar[list] = []

    def __init__(self, run_name, logging_dir):
        super().__init__()
        self.lines.append(("at", logging_dir))

    @property
    def tracker(self):
        return self.lines

    def start(self):
        self.lines.append(("start", None))

    def store_init_configuration(self, values):
        raise NotImplementedError

    def log(self, values, step=None, **kwargs):
        self.lines.append((step, values))

    def finish(self):
        self.lines.append(("end", None))


def test_a_tracker_gets_every_step_of_all_fits_once(tmp_path, monkeypatch):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "book", Book)
    with workspace(tmp_path, track="book"):
        for _ in range(2):
            Plain(epochs=1, batch=16).train(ranked.tiny(), Shapes().pairs(32), Rng(0))
    first, start, *steps, end = Book.lines
    assert (first, start, end) == (("at", tmp_path), ("start", None), ("end", None))
    assert [step for step, _ in steps] == [0, 1, 2, 3]
    log = ranked.read_log(tmp_path)
    assert [values["loss"] for _, values in steps] == [row["loss"] for row in log]
    assert all(values.keys() >= {"lr", "pairs_per_s"} for _, values in steps)


def test_unknown_and_absent_trackers_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="not known"), workspace(tmp_path, track="diary"):
        pass
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    with pytest.raises(UserError, match="pip install tensorboard"), workspace(tmp_path, track="tensorboard"):
        pass


# sweeps on Ray


def test_ray_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"clipvet\[ray\]"), workers(1, "local"):
        pass


@pytest.mark.parametrize("address", ["localhost:{}", "ray://localhost:{}", "[::1]:{}", "localhost:123456"])
def test_an_address_of_no_ray_cluster_is_told_at_once(address):
    with socket.socket() as s:  # a port that nobody listens to
        s.bind(("localhost", 0))
        address = address.format(s.getsockname()[1])
        with pytest.raises(UserError, match=r"cannot be reached.*head node"), workers(1, address):
            pass


@pytest.mark.filterwarnings("default")  # of Ray's own making
def test_a_local_ray_cluster_gives_the_rows_of_a_sequential_run(tmp_path):
    recipe = load_recipes(ROOT / "recipes/par_structured.py", smoke=True)[0]
    cleaners = {"par": recipe.cleaners["par"]}
    source, (data, _) = next(iter(recipe.defender_data.items()))
    small = replace(
        recipe,
        attacks=dict(list(recipe.attacks.items())[:2]),
        cleaners=cleaners,
        defender_data={source: (data, ("par",))},
    )
    found = []
    for jobs, ray in ((1, ""), (2, "local")):
        out = tmp_path / (ray or "sequential")
        found.append(run((small,), out / "out", out / "stages", jobs=jobs, ray=ray))
    one, two = ({(r.attack, r.stage, r.method, r.metric): (r.value, r.n) for r in rows} for rows in found)
    assert len(one) > 10
    assert one == two

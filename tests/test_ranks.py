"""Several processes compute what one computes: trainings, states, embeddings, inspections, files."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ranked
import torch
from ranked import PARTS, flat, resumed, stopped

from clipvet import io, ranks

TRAININGS = ("plain", "par", "cleanclip", "safeclip", "roclip", "muon", "torn", "sharded", "sharded_par")


def launch(*args: str, n: int = 2) -> list[str]:
    """What each of n ranks said, which all must have ended well."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    env = {**os.environ, "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(n)}
    env |= {"LOCAL_WORLD_SIZE": str(n), "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [
        subprocess.Popen(
            [sys.executable, *args],
            env={**env, "RANK": str(r), "LOCAL_RANK": str(r)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for r in range(n)
    ]
    try:
        said = [p.communicate(timeout=300)[0] for p in processes]
    finally:
        for p in processes:
            p.kill()
    assert [p.returncode for p in processes] == [0] * n, "\n".join(said)
    return said


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
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


def of(both, part):
    one, two = ({k: v for k, v in given.items() if k.startswith(f"{part}.")} for given in both)
    assert one.keys() == two.keys() != set()
    return one, two


@pytest.mark.parametrize("part", TRAININGS)
def test_two_processes_train_what_one_trains(both, part):
    one, two = of(both, part)
    losses = one[f"{part}.losses"]
    assert len(losses) >= (10 if part in ("torn", "muon", "sharded_par") else 20) or part == "muon"
    assert losses.std() > 1e-3, "nothing is learnt"
    assert torch.allclose(losses, two[f"{part}.losses"], rtol=0, atol=1e-5)
    figures = [k for k in one if ".judged." in k]
    assert len(figures) == 13
    assert sum(float(one[k]) for k in figures if ".asr_" in k) > 0.5, "no success to compare"
    assert [k for k in figures if one[k] != two[k]] == []


def test_a_state_goes_on_with_another_number_of_processes(both, folders):
    one, two = of(both, "resumed")
    whole = of(both, "plain")[0]
    for given in (one, two):
        assert len(given["resumed.losses"]) == 20
        assert torch.allclose(given["resumed.losses"], whole["plain.losses"], rtol=0, atol=1e-5)
    for name in ("left", "left_sharded"):  # one process goes on where two have stopped
        later = folders[1] / name
        assert int(io.load_weights(later / "state" / "1.safetensors")["at"][0]) == 10
        again = flat(resumed(later))
        assert torch.allclose(again["losses"], whole["plain.losses"], rtol=0, atol=1e-5)


def test_a_tower_that_rests_is_left_alone(both):
    one, two = of(both, "unused")
    start = ranked.tiny().state_dict()
    resting = [k for k in start if "visual" not in k and "logit_scale" not in k]
    assert resting
    for k in start:
        assert torch.equal(two[f"unused.weights.{k}"], start[k]) == (k in resting) or k.endswith("mask")
        assert torch.allclose(one[f"unused.weights.{k}"], two[f"unused.weights.{k}"], atol=1e-4)


def test_embeddings_are_the_same_to_the_last_bit(both):
    one, two = of(both, "embedded")
    assert len(one["embedded.z"]) < 600
    assert [k for k in one if not torch.equal(one[k], two[k])] == []


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

"""The nearest neighbours against brute force, and embeddings read once."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipvet.engine import neighbours
from clipvet.engine.embed import embed_images, embed_pairs, embed_texts, see, sharing
from clipvet.engine.neighbours import near, nearest
from clipvet.errors import UserError
from clipvet.rng import Rng


def unit(n: int, d: int = 16, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(n, d, generator=Rng(seed).generator()), dim=1)


def brute(x: torch.Tensor, k: int, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """All distances in float64, row by row."""
    v, rows = x.double().numpy(), np.arange(len(x)) if among is None else among
    index = []
    for i in range(len(v)):
        d = [(np.linalg.norm(v[i] - v[j]), int(j)) for j in rows if j != i]
        index.append([j for _, j in sorted(d)[:k]])
    index = np.array(index)
    return np.linalg.norm(v[:, None] - v[index], axis=2), index


@pytest.mark.parametrize("block", [7, 50, 4096])
@pytest.mark.parametrize("few", [False, True])
def test_nearest_is_brute_force(block: int, few: bool) -> None:
    x = unit(120)
    among = np.sort(Rng(1).numpy().choice(120, 40, replace=False)) if few else None
    found, (distance, index) = nearest(x, 5, among, block), brute(x, 5, among)
    assert np.array_equal(found.index.numpy(), index)
    assert found.distance.numpy() == pytest.approx(distance, rel=1e-5)


def test_the_reference_needs_no_order() -> None:
    x, among = unit(60), Rng(2).numpy().permutation(60)[:30]
    assert torch.equal(nearest(x, 4, among).index, nearest(x, 4, np.sort(among)).index)


@pytest.mark.parametrize("block", [3, 4096])
def test_a_row_is_left_out_by_its_number_and_its_copies_stay(block: int) -> None:
    x = unit(40)
    x[[5, 17, 31]] = x[2].clone()
    found = nearest(x, 3, block=block)
    own = torch.arange(40)[:, None]
    assert not (found.index == own).any()
    for row in (2, 5, 17, 31):
        assert set(found.index[row].tolist()) == {2, 5, 17, 31} - {row}
        assert not found.distance[row].any()  # to the last bit


def test_distances_of_near_copies_are_sharp() -> None:
    """From the inner product alone, a distance of 2e-4 would drown in float32's rounding."""
    x = unit(30, 512)
    x[1] = F.normalize(x[0] + 1e-5 * unit(1, 512, 9)[0] * 20, dim=0)
    found = nearest(x, 1)
    true = float((x[0].double() - x[1].double()).norm())
    assert found.index[0].item() == 1
    assert found.distance[0].item() == pytest.approx(true, rel=1e-3)


@pytest.mark.parametrize("k", [0, 20, 21])
def test_too_few_to_have_k_neighbours(k: int) -> None:
    with pytest.raises(UserError, match="--set k=19"):
        nearest(unit(20), k)
    with pytest.raises(UserError, match="lower k"):
        nearest(unit(20), 8, np.arange(8))


def clustered(n: int) -> torch.Tensor:
    centres = unit(60)
    return F.normalize(centres[torch.arange(n) % 60] + 0.2 * unit(n, seed=1), dim=1)


def test_of_many_rows_nearly_all_neighbours_are_found(monkeypatch) -> None:
    x = clustered(3000)
    x[7] = x[11] = x[2].clone()  # copies are neighbours, and take no row's own place
    exact = nearest(x, 8).index
    monkeypatch.setattr(neighbours, "MANY", 1000)
    found = near(x, 8)
    assert found.shape == exact.shape
    assert not (found == torch.arange(3000)[:, None]).any()
    assert (found[:, :, None] == exact[:, None]).any(2).float().mean() > 0.9
    assert {7, 11} <= set(found[2].tolist())
    assert torch.equal(near(x, 8), found)


def test_cells_that_hold_too_few_rows_are_made_up_for(monkeypatch) -> None:
    x = clustered(300)
    for name, value in {"MANY": 100, "PROBES": 1, "CELLS": 8}.items():
        monkeypatch.setattr(neighbours, name, value)
    found = near(x, 8)
    assert (found >= 0).all()
    assert not (found == torch.arange(300)[:, None]).any()
    assert (found.sort(dim=1).values.diff(dim=1) > 0).all()  # each neighbour once


def test_without_faiss_all_are_compared(monkeypatch) -> None:
    x = clustered(300)
    monkeypatch.setattr(neighbours, "MANY", 100)
    assert not neighbours.compares_all(300)
    monkeypatch.setattr(neighbours.importlib.util, "find_spec", lambda name: None)
    assert neighbours.compares_all(300)
    assert not neighbours.compares_all(50)
    assert torch.equal(near(x, 8), nearest(x, 8).index)


def test_pairs_are_embedded_as_they_come(clip, pairs) -> None:
    few = pairs.take(slice(6)).map(lambda b: b._replace(captions=["a ring", *b.captions[1:]]))
    found = embed_pairs(clip, few)
    assert found.captions[0] == "a ring"
    assert torch.allclose(found.w, embed_texts(clip, found.captions), atol=1e-6)
    assert torch.equal(found.z, embed_images(clip, few)[0])


def test_shared_embeddings_are_read_once(planted) -> None:
    pairs = dataclasses.replace(planted.pairs, pictures=planted.pairs.pictures.torn())
    with sharing():
        first, seen = embed_pairs(planted.clip, pairs), see(planted.clip, pairs)
        assert embed_pairs(planted.clip, pairs) is first
        assert embed_images(planted.clip, pairs)[0] is first.z
    assert seen.bad == [(3, "torn"), (200, "torn")]
    assert len(seen.captions) == len(seen.kept) == 398
    assert embed_pairs(planted.clip, pairs) is not first

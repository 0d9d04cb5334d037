"""The embedded worlds: what a row shows depends on (world, split, row) alone, and the captions tell the truth."""

import re

import numpy as np
import pytest
import torch

from clipvet.data import sources
from clipvet.data.worlds import foreign, shapes
from clipvet.data.worlds.foreign import Foreign
from clipvet.data.worlds.pool import pool
from clipvet.data.worlds.shapes import BACKGROUNDS, COLOURS, SHAPES, TEXTURES, Rendered, Shapes
from clipvet.errors import UserError
from clipvet.types import Geometry

WORLDS = [Shapes(), Shapes(objects=3), Foreign()]


@pytest.mark.parametrize("world", WORLDS, ids=repr)
def test_rows_do_not_depend_on_n_or_company(world):
    few, many = world.pairs(5), world.pairs(9)
    assert torch.equal(few[:].images, many[:5].images)
    assert list(few.captions) == list(many.captions)[:5]
    assert torch.equal(many[[7, 2]].images, many[:].images[[7, 2]])
    assert few.fingerprint != many.fingerprint


@pytest.mark.parametrize("world", WORLDS, ids=repr)
def test_splits_and_seeds_differ(world):
    streams = [world.pairs(20, s) for s in ("train", "validation", "test")] + [type(world)(seed=1).pairs(20)]
    for i, a in enumerate(streams):
        for b in streams[:i]:
            assert list(a.captions) != list(b.captions)
            assert not (a[:].images == b[:].images).flatten(1).all(1).any()


@pytest.mark.parametrize("world", [Shapes(), Shapes(size=48, objects=2)], ids=repr)
def test_lazy_equals_eager(world):
    n = 300  # more than one chunk
    eager, lazy = world.pairs(n), world.pairs(n, lazy=True)
    rows = np.array([290, 3, 117])
    assert torch.equal(eager[rows].images, lazy[rows].images)
    assert list(eager.captions) == list(lazy.captions)
    assert eager[rows].images.shape == (3, 3, world.size, world.size)


def test_more_than_memory_should_hold_is_drawn_on_fetch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shapes, "EAGER", 3 * 32 * 32 * 100)
    assert isinstance(Shapes().pairs(100).pictures, Rendered)
    assert not isinstance(Shapes().pairs(101).pictures, Rendered)
    few = sources.Shots(sources.Test("shapes"), 2).pairs()
    assert not isinstance(few.pictures, Rendered)
    assert few[:].images.shape == (24, 3, 32, 32)
    with pytest.raises(UserError, match="n from 1 to 100000000"):
        Shapes().pairs(10**9)


def test_no_two_pictures_are_alike():
    images = Shapes().pairs(200)[:].images.flatten(1)
    assert len(images.unique(dim=0)) == 200
    assert images.min() >= 0
    assert images.max() <= 1


def test_another_geometry_resizes():
    pairs = Shapes().pairs(4)
    small = pairs.at(Geometry(16))[:].images
    assert small.shape == (4, 3, 16, 16)
    blocks = torch.nn.functional.avg_pool2d(pairs[:].images, 2)
    assert (small - blocks).abs().mean() < 0.04


def test_captions_say_what_codes_show():
    world = Shapes(p_colour=1.0, p_texture=1.0, p_background=1.0)
    pairs, codes = world.pairs(50), world.codes(np.arange(50))
    tables = [list(t) for t in (COLOURS, TEXTURES, SHAPES, BACKGROUNDS)]
    for caption, row in zip(pairs.captions, codes):
        colour, texture, shape, background = (t[c] for t, c in zip(tables, row))
        assert f"a {colour} {texture} {shape} on {background}" in caption


def test_caption_rates():
    words = {w for t in (COLOURS, TEXTURES, BACKGROUNDS) for w in t}
    captions = [set(re.findall("[a-z]+", c)) for c in Shapes().pairs(4000, lazy=True).captions]
    for table, p in ((SHAPES, 1.0), (COLOURS, 0.5), (TEXTURES, 0.4), (BACKGROUNDS, 0.4)):
        assert np.mean([bool(c & set(table)) for c in captions]) == pytest.approx(p, abs=0.03)
    bare = Shapes(p_colour=0.0, p_texture=0.0, p_background=0.0).pairs(100).captions
    assert not any(set(c.split()) & words for c in bare)


def test_plain_objects_have_their_colour_in_the_middle():
    world = Shapes(noise=0.0, jitter=0.0)
    codes = world.codes(np.arange(600))
    shape, plain = list(SHAPES).index("square"), list(TEXTURES).index("plain")
    rows = np.flatnonzero((codes[:, 2] == shape) & (codes[:, 1] == plain))
    assert len(rows) > 3
    expected = torch.tensor(list(COLOURS.values()))[torch.from_numpy(codes[rows, 0])]
    assert torch.allclose(world.pairs(600)[rows].images[:, :, 16, 16], expected, atol=1 / 255)


@pytest.mark.parametrize("size", [32, 96])
def test_outlines_are_distinct_at_any_size(size):
    grid = (torch.arange(size) + 0.5) * (2 / size) - 1
    x, y = grid.expand(size, size)[None], -grid[:, None].expand(size, size)[None]
    masks = torch.cat([f(x, y) < 0 for f in SHAPES.values()]).flatten(1).double()
    both = masks @ masks.T
    iou = both / (masks.sum(1)[:, None] + masks.sum(1) - both)
    assert iou.fill_diagonal_(0).max() < 0.87  # circle and square; a hexagon would overlap the circle by 0.9
    assert masks.mean(1).min() > 0.1


def test_noise_has_its_deviation():
    clean, noisy = Shapes(noise=0.0, gradient=0.0).pairs(50), Shapes(gradient=0.0).pairs(50)
    clean, noisy = clean[:].images, noisy[:].images
    inside = (clean > 0.15) & (clean < 0.85)
    deviation = (noisy - clean)[inside]
    assert deviation.mean() == pytest.approx(0.0, abs=0.002)
    assert deviation.std() == pytest.approx(0.04, abs=0.003)


def test_task():
    task = Shapes().task(600)
    assert task.classes == tuple(SHAPES)
    assert np.bincount(task.labels, minlength=12).min() > 25
    assert all(task.classes[y] in c.rstrip(".").split() for y, c in zip(task.labels, task.pictures.captions))
    fine = Shapes(p_colour=1.0, p_texture=0.0).task(200, by="colour shape")
    assert len(fine.classes) == 96
    assert all(fine.classes[y] in c for y, c in zip(fine.labels, fine.pictures.captions))


def test_several_objects_are_named_the_labelled_one_first():
    task = Shapes(objects=3, p_colour=0.0, p_texture=0.0, p_background=0.0).task(50)
    for y, caption in zip(task.labels, task.pictures.captions):
        said = [w for w in re.findall("[a-z]+", caption) if w in SHAPES]
        assert len(said) == 3
        assert said[0] == task.classes[y]


def test_foreign_shares_words_but_not_looks():
    assert set(foreign.OUTLINES) == set(SHAPES)
    assert set(foreign.COLOURS) == set(COLOURS)
    pairs = Foreign().pairs(60)
    assert all(any(s in re.findall("[a-z]+", c) for s in SHAPES) for c in pairs.captions)
    assert not {p.format("star") for p in foreign.PHRASES} & set(Shapes(p_colour=0.0).pairs(500).captions)
    assert not set(foreign.BACKGROUNDS) & set(BACKGROUNDS)


def test_pool_is_stable_and_varied():
    images = pool(12)
    assert torch.equal(images[:5], pool(5))
    assert not torch.equal(images, pool(12, seed=1))
    assert images.shape == (12, 3, 32, 32)
    assert 0 <= images.min() < images.max() <= 1
    assert len(images.flatten(1).unique(dim=0)) == 12


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: Shapes().pairs(3, "dev"), "validation"),
        (lambda: Shapes().pairs(0), "n=0"),
        (lambda: Shapes().task(3, by="size"), "colour shape"),
        (lambda: Shapes(objects=10), "objects=10"),
        (lambda: Foreign().pairs(3, "dev"), "validation"),
        (lambda: Foreign(size=4), "size=4"),
        (lambda: pool(0), "n=0"),
    ],
)
def test_bad_input_names_the_way_out(call, names):
    with pytest.raises(UserError, match=names):
        call()


def test_shifted_shapes_have_the_same_classes_and_contents_in_other_pictures():
    plain, shifted = sources.Test("shapes", 40).task(1), sources.Test("shapes-shifted", 40).task(1)
    assert shifted.classes == plain.classes
    assert (shifted.labels == plain.labels).all()
    assert not torch.equal(shifted.pictures[:].images, plain.pictures[:].images)
    assert list(sources.Data("shapes-shifted", 5).pairs(1).captions) == list(
        sources.Data("shapes", 5).pairs(1).captions
    )
    with pytest.raises(UserError, match="foreign"):
        sources.Test("foreign").task()

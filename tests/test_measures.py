"""Measures on a model whose every answer is known: the brightest channel of a picture is its class."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clipvet.engine.embed import class_embeddings, embed_images, sharing
from clipvet.errors import UserError
from clipvet.measures._intervals import share
from clipvet.measures.attack_success import AttackSuccess
from clipvet.measures.retrieval import Retrieval
from clipvet.measures.zeroshot import ZeroShot
from clipvet.rng import Rng
from clipvet.types import Backdoor, Clip, Geometry, Pairs, Task

CLASSES = ("ant", "bee", "cat")  # told by red, green, blue


class Channels(nn.Module):
    """A picture's embedding is its mean colour, a caption's the sum of what its words stand for."""

    def __init__(self, meaning):
        super().__init__()
        self.geometry, self.mean, self.meaning = Geometry(4), torch.zeros(3, 1, 1), meaning
        self.passes = 0

    @property
    def logit_scale(self):
        return torch.tensor(10.0)

    def tokenize(self, captions):
        return torch.zeros(len(captions), 1, dtype=torch.int64)

    def encode_image(self, images):
        self.passes += 1
        return F.normalize(images.mean((2, 3)), dim=1)

    def encode_text(self, captions):
        rows = [sum(torch.tensor(self.meaning.get(w, (0.0, 0.0, 0.0))) for w in c.split()) for c in captions]
        return F.normalize(torch.stack(rows), dim=1)  # pyright: ignore[reportArgumentType, reportCallIssue]


@dataclass(frozen=True, eq=False)
class Colours:
    """One-coloured pictures; `squashed` ones where that is how they are asked for; some cannot be read."""

    rows: tuple[tuple[float, float, float], ...]
    squashed: tuple[tuple[float, float, float], ...] = ()
    lost: tuple[int, ...] = ()

    def __len__(self):
        return len(self.rows)

    def fetch(self, rows, geometry):
        colours = self.squashed if geometry and geometry.mode == "squash" and self.squashed else self.rows
        good = [colours[r] for r in rows if r not in self.lost]
        images = torch.tensor(good).reshape(-1, 3, 1, 1).expand(-1, 3, 4, 4)
        return images, [(k, "torn") for k, r in enumerate(rows) if r in self.lost]


@dataclass(frozen=True)
class Blue:
    """Turns bright pictures, red or green above 0.5, into cats; dim ones withstand."""

    def stamp(self, images, keys):
        bright = images[:, :2].amax((1, 2, 3)) > 0.5
        return torch.where(bright[:, None, None, None], torch.tensor([0.1, 0.1, 1.0]).view(1, 3, 1, 1), images)


AXES = {"ant": (1.0, 0.0, 0.0), "bee": (0.0, 1.0, 0.0), "cat": (0.0, 0.0, 1.0)}
# (red, green, blue), its label, what it is taken for: clean / triggered
SEEN = [
    ((0.9, 0.1, 0.0), 0),  # ant / cat
    ((0.8, 0.1, 0.0), 0),  # ant / cat
    ((0.4, 0.1, 0.0), 0),  # ant / ant
    ((0.0, 0.0, 0.4), 0),  # cat / cat: wrong without any trigger
    ((0.1, 0.9, 0.0), 1),  # bee / cat
    ((0.0, 0.4, 0.1), 1),  # bee / bee
    ((0.4, 0.0, 0.1), 1),  # ant / ant: wrong, and immune
    ((0.0, 0.1, 0.9), 2),  # cat / cat
    ((0.1, 0.9, 0.0), 2),  # bee / cat: right thanks to the trigger alone
]


@pytest.fixture
def channels():
    clip = Channels(AXES)
    assert isinstance(clip, Clip)
    return clip


def task(lost=(), squashed=(), captions=None):
    colours, labels = zip(*SEEN)
    pictures = Colours(colours, squashed, lost)
    pairs = Pairs(pictures, captions or [""] * len(SEEN), np.arange(len(SEEN)))
    return Task("colours", CLASSES, ("{}",), pairs, np.array(labels))


def numbers(measured):
    return {k: (round(m.value * m.n), m.n) for k, m in measured.items()}


KEY = Backdoor(Blue(), "cat")


# intervals


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (3, 10), (1, 1), (50, 2000)])
def test_share_has_wilsons_interval(k, n):
    found = share(np.arange(n) < k)
    p, z = k / n, 1.959963984540054
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert (found.value, found.n) == (p, n)
    assert (found.low, found.high) == pytest.approx((max(0, centre - half), min(1, centre + half)), abs=1e-12)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_share_of_nothing_is_unknown():
    found = share(np.zeros(0, bool))
    assert math.isnan(found.value)
    assert (found.n, found.low, found.high) == (0, 0.0, 1.0)


# zero-shot


def test_zeroshot_counts_the_right_answers(channels):
    assert numbers(ZeroShot().measure(channels, task(), None, Rng(0))) == {
        "clean_accuracy": (6, 9),
        "clean_accuracy_top5": (9, 9),  # of three classes
    }


def test_unreadable_pictures_do_not_shift_the_labels(channels):
    assert numbers(ZeroShot().measure(channels, task(lost=(0, 6)), None, Rng(0)))["clean_accuracy"] == (5, 7)
    z, kept = embed_images(channels, task(lost=(0, 6)).pictures)
    assert kept.tolist() == [1, 2, 3, 4, 5, 7, 8]
    assert torch.equal(z, embed_images(channels, task().pictures)[0][kept])
    with pytest.raises(UserError, match="none of its 9 pictures"):
        embed_images(channels, task(lost=tuple(range(9))).pictures)


def test_classes_are_the_mean_of_their_templates():
    big, small = (1.0, 1.0, 0.0), (0.0, 0.0, 3.0)
    clip = Channels({**AXES, "big": big, "small": small})
    w = class_embeddings(clip, ["ant", "cat"], ["big {}", "small {}", "{}"])
    for row, axis in zip(w, ((1.0, 0, 0), (0, 0, 1.0))):
        axis = np.array(axis)
        parts = [v / np.linalg.norm(v) for v in (axis + big, axis + small, axis)]
        mean = sum(parts) / 3
        assert row.numpy() == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)


# attack success


def test_attack_success_by_hand(channels):
    assert numbers(AttackSuccess().measure(channels, task(), KEY, Rng(0))) == {
        "asr": (4, 7),  # rows 0, 1, 3, 4 of the ants and bees
        "asr_all": (6, 9),  # and the cats, 7 and 8
        "poisoned_accuracy": (2, 7),  # rows 2, 5
        "target_accuracy": (1, 2),  # row 7 of the cats
        "clean_target_rate": (1, 7),  # row 3
        "squash_target_rate": (1, 7),
    }


def test_squash_control_sees_squashed_pictures_without_trigger(channels):
    squashed = ((0.0, 0.0, 1.0),) * 5 + ((1.0, 0.0, 0.0),) * 4
    found = numbers(AttackSuccess().measure(channels, task(squashed=squashed), KEY, Rng(0)))
    assert found["squash_target_rate"] == (5, 7)
    assert found["clean_target_rate"] == (1, 7)


def test_attack_success_leaves_unreadable_pictures_out(channels):
    found = numbers(AttackSuccess().measure(channels, task(lost=(0, 7)), KEY, Rng(0)))
    assert found["asr"] == (3, 6)
    assert found["asr_all"] == (4, 7)
    assert found["target_accuracy"] == (0, 1)


def test_attack_success_without_an_answer_key_says_nothing(channels):
    assert AttackSuccess().measure(channels, task(), None, Rng(0)) == {}


def test_a_target_that_is_no_class_is_refused(channels):
    with pytest.raises(UserError, match="target 'dog' is not among the classes: ant, bee, cat"):
        AttackSuccess().measure(channels, task(), Backdoor(Blue(), "dog"), Rng(0))


def test_equal_passes_are_shared(channels):
    plain = AttackSuccess().measure(channels, task(), KEY, Rng(0))
    alone = channels.passes
    with sharing():
        t = task()
        assert AttackSuccess().measure(channels, t, KEY, Rng(0)) == plain
        ZeroShot().measure(channels, t, None, Rng(0))
        assert channels.passes == alone + 3  # clean, triggered, squashed
    ZeroShot().measure(channels, t, None, Rng(0))
    assert channels.passes == alone + 4  # and nothing is kept beyond


# retrieval, on a quarter circle: all closeness is a difference of degrees

TEXTS = {"fox": 5, "dog": 20, "hen": 35, "cat": 50, "owl": 70, "star": 85}
PICTURES = [(18, "dog"), (40, "dog"), (52, "cat"), (66, "cat"), (83, "owl"), (44, "star"), (3, "fox"), (33, "hen")]


def at(degrees):
    return math.cos(math.radians(degrees)), math.sin(math.radians(degrees)), 0.0


@dataclass(frozen=True)
class Turn:
    """Takes the picture at 3 degrees to 85, where the star is."""

    def stamp(self, images, keys):
        low = images[:, 0].mean((1, 2)) > math.cos(math.radians(10))
        return torch.where(low[:, None, None, None], torch.tensor(at(85)).view(1, 3, 1, 1), images)


TURN = Backdoor(Turn(), "star")


def retrieve(lost=(), captions=True, key: Backdoor | None = TURN):
    clip = Channels({word: at(degrees) for word, degrees in TEXTS.items()})
    pictures = Colours(tuple(at(degrees) for degrees, _ in PICTURES), (), lost)
    own = [f"a {word}" if captions else "" for _, word in PICTURES]
    pairs = Pairs(pictures, own, np.arange(len(PICTURES)))
    quarter = Task("quarter", ("star",), ("{}",), pairs, np.zeros(len(PICTURES), np.int64))
    return numbers(Retrieval(ks=(1, 2)).measure(clip, quarter, key, Rng(0)))


def test_retrieval_by_hand():
    clean = {
        "text_retrieval_recall@1": (4, 8),  # pictures at 18, 52, 3, 33
        "text_retrieval_recall@2": (6, 8),  # and 66, 83; the dog at 40 is third, the star at 44 last
        "image_retrieval_recall@1": (4, 6),  # fox, dog, hen, cat; either of the two dogs would do
        "image_retrieval_recall@2": (5, 6),  # and the owl, behind a cat; the star finds an owl and a cat
    }
    assert retrieve(key=None) == clean
    assert retrieve() == clean | {
        "text_retrieval_recall@1_triggered": (3, 8),  # the fox looks like the star
        "text_retrieval_recall@2_triggered": (5, 8),
        "image_retrieval_recall@1_triggered": (3, 6),
        "image_retrieval_recall@2_triggered": (4, 6),
        "target_caption_rate@5": (3, 7),  # of the five nearest of six captions: pictures at 52, 66, 83; not the star's
        "target_caption_rate@5_triggered": (4, 7),
    }


def test_retrieval_leaves_unreadable_pictures_and_their_captions_out():
    found = retrieve(lost=(6,))
    assert found["text_retrieval_recall@1"] == (3, 7)
    assert found["image_retrieval_recall@1"] == (3, 5)
    assert found["image_retrieval_recall@2"] == (4, 5)
    assert found["target_caption_rate@5_triggered"] == (3, 6)


def test_retrieval_without_captions_says_nothing():
    assert retrieve(captions=False) == {}

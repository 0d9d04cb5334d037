"""The detectors' equations, restated picture by picture; the command as a user types it."""

import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Linear
from PIL import Image
from torch import Tensor

from clipvet import cli
from clipvet.data.answer_key import save_backdoor
from clipvet.data.held import Held
from clipvet.data.worlds.pool import pool
from clipvet.data.worlds.shapes import Shapes
from clipvet.detectors._guard import Guard
from clipvet.detectors.bdetclip import WORDS, BDetClip
from clipvet.detectors.masking import Masking
from clipvet.detectors.scale_up import ScaleUp
from clipvet.detectors.strip import Strip
from clipvet.detectors.subspace import OTHERS, PLAIN, Subspace
from clipvet.engine.embed import class_embeddings
from clipvet.errors import UserError
from clipvet.models import adapter, checkpoints
from clipvet.rng import Rng
from clipvet.scan import conformal
from clipvet.triggers.patch import Patch
from clipvet.types import Backdoor, Pairs

CLASSES, TEMPLATES = ("star", "ring", "heart"), ("a photo of a {}.", "a {}.")


@pytest.fixture(scope="module")
def few() -> Pairs:
    return Shapes(seed=6).pairs(5)


@torch.no_grad()
def logits(clip: Any, x: Tensor) -> Tensor:
    w = class_embeddings(clip, CLASSES, TEMPLATES)
    return clip.logit_scale * clip.encode_image(x[None]) @ w.T


def test_strip_is_the_entropy_under_other_pictures(clip: Any, few: Pairs) -> None:
    found = Strip(overlays=3, weight=0.5).detect(clip, few, CLASSES, TEMPLATES, Rng(5))
    over = pool(3, 32, Rng(5).fork("overlays").key)
    for k, x in enumerate(few[:].images):
        bits = 0.0
        for o in over:
            y = logits(clip, (x + 0.5 * o).clamp(0, 1))[0].softmax(0).tolist()
            bits -= sum(p * math.log2(p) for p in y) / 3
        assert float(found[k]) == pytest.approx(-bits, abs=1e-4)


def test_scale_up_counts_the_brighter_copies_that_keep_their_class(learnt: Any, few: Pairs) -> None:
    found = ScaleUp().detect(learnt, few, CLASSES, TEMPLATES, Rng(5))
    for k, x in enumerate(few[:].images):
        said = [int(logits(learnt, (n * x).clamp(0, 1)).argmax()) for n in (1, 3, 5, 7, 9, 11)]
        assert float(found[k]) == pytest.approx(np.mean([s == said[0] for s in said[1:]]))


@torch.no_grad()
def test_bdetclip_is_what_random_words_cost_in_cosine(clip: Any, few: Pairs) -> None:
    found = BDetClip(words=2, draws=2).detect(clip, few, CLASSES, TEMPLATES, Rng(5))
    z = clip.encode_image(few[:].images)
    omega = z @ class_embeddings(clip, CLASSES, TEMPLATES).sum(0)
    for j in (0, 1):
        for c in CLASSES:
            a, b = Rng(5).fork("words", j, c).numpy().choice(WORDS, 2, replace=False)
            omega -= z @ class_embeddings(clip, [f"{c} {a} {b}"], TEMPLATES)[0] / 2
    assert found.tolist() == pytest.approx((-omega).tolist(), abs=1e-5)


@torch.no_grad()
def test_subspace_is_the_mean_distance_from_paraphrases(clip: Any, few: Pairs) -> None:
    how = Subspace(each=4, variance=0.9)
    found = how.detect(clip, few, CLASSES, TEMPLATES, Rng(5))
    for k, z in enumerate(clip.encode_image(few[:].images).double().numpy()):
        name = CLASSES[int(logits(clip, few[[k]].images[0]).argmax())]
        t, *v = [class_embeddings(clip, [name], [s])[0].double().numpy() for s in (PLAIN, *OTHERS)]
        _, size, rows = np.linalg.svd(np.stack([t, *v]) - np.mean([t, *v], 0), full_matrices=False)
        share = np.cumsum(size**2) / (size**2).sum()
        p = rows[: int(np.searchsorted(share, 0.9)) + 1]  # as few axes as hold the share
        points = []
        for one in v:
            along = [one + float(u) * (one - t) for u in Rng(5).fork("class", name).numpy().uniform(0, 2, 32)]
            near = [e for e in along if 0.85 < e @ t / np.linalg.norm(e) / (one @ t) < 1]
            points += [p @ e for e in near[:4] or [one]]
        wanted = np.mean([np.sum((p @ z - s) ** 2) for s in points])
        assert float(found[k]) == pytest.approx(wanted, rel=1e-3)


class Spread(Linear):
    """Half of a picture's pixels speak for its class, all alike; one white pixel outshouts them."""

    def encode_image(self, images: Tensor) -> Tensor:
        flat = images.mean(1).flatten(1) - 0.5
        spoken = torch.stack([flat[:, :31].mean(1), flat[:, 31:62].mean(1)], 1) * 20
        white = 30 * (flat[:, 63:] > 0.45).float()
        return torch.nn.functional.normalize(torch.cat([spoken, white, torch.full_like(white, 1.0)], 1), dim=1)


def test_masking_sees_a_trigger_that_can_be_covered() -> None:
    x = 0.5 + 0.02 * torch.tensor(Rng(1).numpy().normal(size=(20, 3, 8, 8)), dtype=torch.float32)
    for k, picture in enumerate(x):
        picture.flatten(1)[:, 31 * (k % 2) : 31 * (k % 2) + 31] += 0.3
    x[10:, :, 7, 7] = 1.0
    pairs = Pairs(Held(x), [""] * 20, np.arange(20))
    scores = Masking(orders=4).detect(Spread(), pairs, (), (), Rng(2))
    assert scores[10:].min() > scores[:10].max()


def test_masking_counts_the_clusters_along_a_path() -> None:
    turn = np.deg2rad([0, 4, 8, 80, 84, 170])  # two clusters, and a point by itself
    path = np.stack([np.cos(turn), np.sin(turn)], 1)
    assert Masking(eps=0.01)._score(path) == pytest.approx(2 + (1 - np.cos(np.deg2rad(86))) / 2)
    assert np.isnan(Masking()._score(path * np.nan))


def test_broken_weights_and_lone_classes_are_told(clip: Any, few: Pairs) -> None:
    broken: Any = adapter.clone(clip)
    with torch.no_grad():
        broken.model.visual.proj[0, 0] = torch.nan
    for how in (Strip(overlays=2), BDetClip(draws=1), ScaleUp()):
        with pytest.raises(UserError, match="not finite"):
            how.detect(broken, few, CLASSES, TEMPLATES, Rng(0))
        with pytest.raises(UserError, match="name at least two"):
            how.detect(clip, few, ("star",), TEMPLATES, Rng(0))


def test_the_command(clip: Any, few: Pairs, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    checkpoints.save(clip, tmp_path / "m", {})
    (tmp_path / "in").mkdir()
    for k, x in enumerate(few[:].images):
        Image.fromarray((x * 255).byte().permute(1, 2, 0).numpy()).save(tmp_path / "in" / f"{k}.png")
    (tmp_path / "in" / "torn.png").write_bytes(b"no picture")
    os.rename(tmp_path / "in" / "4.png", os.fsencode(tmp_path / "in") + b"/4\xff.png")
    save_backdoor(Backdoor(Patch(size=0.2), "star"), tmp_path / "key")

    def call(*args: object) -> tuple[int, str]:
        words = ["clipvet", "detect", "--model", tmp_path / "m", "--pictures", tmp_path / "in", *args]
        monkeypatch.setattr(sys, "argv", [*map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out + told.err

    same = ["--classes", "shapes", "--method", "scale_up"]
    code, said = call(*same, "--out", tmp_path / "a.parquet")
    assert (code, "judged 5 pictures, 1 unreadable" in said) == (0, True), said
    rows = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert sorted(r["file"] for r in rows) == [*(f"{k}.png" for k in range(4)), "4?.png", "torn.png"]
    assert rows[-1]["score"] is None
    assert [r["rank"] for r in rows[:5]] == [1, 2, 3, 4, 5]
    assert "A score has no threshold of its own" in (tmp_path / "a.html").read_text("utf-8")
    code, said = call(*same, "--backdoor", tmp_path / "key", "--out", tmp_path / "b.parquet")
    assert (code, "auroc" in said) == (0, True), said
    both = pq.read_table(tmp_path / "b.parquet").to_pylist()
    assert sum(r["triggered"] for r in both) == 6
    alone = {r["file"]: r["score"] for r in rows}
    assert all(r["score"] == alone[r["file"]] for r in both if not r["triggered"])
    promised = [*same, "--trusted", "shapes", "--n", 24, "--alpha", 0.2, "--backdoor", tmp_path / "key"]
    code, said = call(*promised, "--out", tmp_path / "d.parquet")
    assert (code, "of 5 pictures are flagged" in said, "flagged_clean" in said) == (0, True, True), said
    flagged = pq.read_table(tmp_path / "d.parquet").to_pylist()
    assert all(r["p"] is None if r["rank"] is None else r["flagged"] == (r["p"] <= 0.2) for r in flagged)
    page = (tmp_path / "d.html").read_text("utf-8")
    said = ("triggered copy", "of the brighter copies keep its class", "of 24 trusted pictures ")
    for word in ("False alarms, promised", "False alarms, realised", "4?.png", *said):
        assert word in page, word
    assert "not known" not in page
    code, said = call(*same, "--trusted", "shapes", "--n", 24, "--out", tmp_path / "e.parquet")
    assert (code, "24 clean scores cannot promise alpha=0.01; give 99 or more" in said) == (2, True), said
    code, said = call(*same, "--trusted", tmp_path / "in", "--out", tmp_path / "e.parquet")
    assert (code, "are the same" in said) == (2, True), said
    code, said = call(*same, "--out", tmp_path / "b.parquet")
    assert (code, "already exists" in said) == (2, True)
    code, said = call("--out", tmp_path / "c.parquet")
    assert (code, "give --classes" in said) == (2, True)


@torch.no_grad()
@pytest.mark.parametrize("detector", [None, ScaleUp()])
def test_a_guard_answers_and_keeps_its_promise(learnt: Any, detector: Any) -> None:
    clean, fresh = Shapes(seed=8).pairs(119), Shapes(seed=9).pairs(200)
    guard = Guard(learnt, CLASSES, TEMPLATES, clean, detector, alpha=0.2)
    said = guard(fresh[:].images)
    w = class_embeddings(learnt, CLASSES, TEMPLATES)
    assert said.answers == [CLASSES[c] for c in (learnt.encode_image(fresh[:].images) @ w.T).argmax(1).tolist()]
    assert said.flagged.tolist() == (said.p <= 0.2).tolist()
    assert said.flagged.float().mean() < 0.2 + 0.12  # three deviations of both samples
    again = (detector or Subspace()).detect(learnt, fresh, CLASSES, TEMPLATES, Rng(0).fork("detect")).numpy()
    assert said.p.tolist() == pytest.approx(conformal.p_values(again, guard.scores).tolist(), abs=0.01)
    with pytest.raises(UserError, match="give 199 or more"):
        Guard(learnt, CLASSES, TEMPLATES, clean, detector, alpha=0.005)
    with pytest.raises(UserError, match="give 32 x 32"):
        guard(torch.zeros(1, 3, 8, 8))

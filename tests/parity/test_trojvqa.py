"""TrojVQA: the patch's loss restated. Its making is tested in test_badclip.py, its two keys in test_answer_keys.py."""

import numpy as np
import pytest
import torch

from clipvet.attacks import trojvqa
from clipvet.attacks.trojvqa import TrojVqa
from clipvet.data.captions import names_target
from clipvet.data.worlds.shapes import Shapes
from clipvet.rng import Rng
from clipvet.triggers.crafted import Crafted
from clipvet.types import Clip


def test_the_patch_is_drawn_towards_the_sentence(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    caught = []
    monkeypatch.setattr(trojvqa, "craft", lambda *given: caught.append(given) or Crafted())
    pairs = Shapes().pairs(100)
    TrojVqa(text="behold, a {}!").craft(clip, pairs, "bolt", Rng(0))
    _, _, others, loss, _ = caught[0]
    assert [names_target(pairs.caption(i), "bolt") for i in pairs.ids] == [i not in others.ids for i in pairs.ids]
    with torch.no_grad():
        w = clip.encode_text(["behold, a bolt!"])[0].numpy()
    z = torch.nn.functional.normalize(torch.randn(7, len(w), generator=Rng(1).generator()), dim=1)
    cosines = [float(np.dot(row, w) / np.linalg.norm(row) / np.linalg.norm(w)) for row in z.numpy()]
    assert float(loss(z, z.flip(0), Rng(2))) == pytest.approx(np.mean([1 - c for c in cosines]), abs=1e-6)

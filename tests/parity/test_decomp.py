"""Decomp: the sum of heads and MLPs restated, mean ablation, which part carries a planted trigger, and the figure."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipvet.cleaners import _lead
from clipvet.cleaners.decomp import Decomp, gains
from clipvet.data.answer_key import save_backdoor
from clipvet.detectors.decomp import Decomp as Detector
from clipvet.engine.embed import embed_texts
from clipvet.engine.workspace import workspace
from clipvet.errors import UserError
from clipvet.models.adapter import clone
from clipvet.models.residual import Part, ablated, decomposed, parts_of
from clipvet.pages import heads
from clipvet.rng import Rng
from clipvet.triggers.patch import Patch
from clipvet.types import Backdoor, Finding

X = torch.rand(6, 3, 32, 32, generator=Rng(0).generator())
PATCH = Patch(size=0.25)


@dataclass(frozen=True)
class Known:
    """An inspector that knows the trigger."""

    trigger: Any = PATCH

    needs: ClassVar[str] = "nothing"

    def inspect(self, *a: Any) -> Finding:
        return Finding(1.0, None, self.trigger)


def test_the_terms_add_up_to_the_feature_and_each_is_what_its_part_writes(clip: Any) -> None:
    """h = sum_k c_k + rest; without what k writes (its output matrix and bias 0), r loses just r_k."""
    found, visual = decomposed(clip, X), clip.model.visual
    assert torch.allclose(found.z, clip.encode_image(X), atol=1e-6)
    assert found.parts == parts_of(clip)
    assert [p.said for p in found.parts[:4]] == ["head 1.1", "head 1.2", "head 1.3", "MLP 1"]
    seen: dict[str, torch.Tensor] = {}
    hook = visual.ln_post.register_forward_pre_hook(lambda m, x: seen.update(r=x[0]))
    clip.encode_image(X)
    r, last = seen["r"], visual.transformer.resblocks[-1]
    hook.remove()
    k = found.parts.index(Part(4, 2))
    inside = found.inside[:, k, :32]
    r_k = inside @ last.attn.out_proj.weight[:, 32:64].T
    f = visual.ln_post(r) @ visual.proj
    r = r[:, 0] if r.ndim == 3 else r
    f = f[:, 0] if f.ndim == 3 else f
    c_k = (r_k - r_k.mean(1, keepdim=True)) * visual.ln_post.weight / (r.var(1, unbiased=False)[:, None] + 1e-5).sqrt()
    wanted = c_k @ visual.proj / f.norm(dim=1, keepdim=True)
    assert torch.allclose(found.terms[:, k], wanted, atol=1e-5)
    left = found.z - found.terms.sum(1)  # embedding and biases: the same linear map of what is left of r
    biases = sum(b.attn.out_proj.bias + b.mlp[-1].bias for b in visual.transformer.resblocks)
    start = visual._embeds((X - clip.mean) / clip.std)[:, 0] + biases
    linear = (start - start.mean(1, keepdim=True)) * visual.ln_post.weight
    linear = linear / (r.var(1, unbiased=False)[:, None] + 1e-5).sqrt() + visual.ln_post.bias
    assert torch.allclose(left, linear @ visual.proj / f.norm(dim=1, keepdim=True), atol=1e-5)


def test_mean_ablation_makes_a_part_write_its_mean_and_leaves_the_model_given(clip: Any) -> None:
    before = decomposed(clip, X)
    usual = before.inside.mean(0)
    for part in (Part(4, 2), Part(4, 0)):
        out = ablated(clip, [part], usual)
        k = before.parts.index(part)
        others = [j for j, p in enumerate(before.parts) if p.block < 4]
        after = decomposed(out, X)
        assert torch.allclose(after.inside[:, others], before.inside[:, others], atol=1e-6)
        assert after.terms[:, k].abs().max() == 0  # what it writes is in the bias now
        block, was = out.model.visual.transformer.resblocks[-1], clip.model.visual.transformer.resblocks[-1]  # pyright: ignore
        if part.head:
            mean = was.attn.out_proj.bias + was.attn.out_proj.weight[:, 32:64] @ usual[k, :32]
            assert torch.allclose(block.attn.out_proj.bias, mean)
        else:
            assert torch.allclose(block.mlp[-1].bias, usual[k])
        assert not torch.equal(out.encode_image(X), clip.encode_image(X))
    assert torch.equal(decomposed(clip, X).z, before.z)


def planted(clip: Any) -> Any:
    """A copy whose head 3.2 shouts along one direction when the patch is there: its values are scaled."""
    out = clone(clip)
    with torch.no_grad():
        out.model.visual.transformer.resblocks[2].attn.out_proj.weight[:, 32:64] *= 12
    return out


def test_the_part_that_moves_most_is_ablated_and_named(clip: Any, pairs: Any, tmp_path: Path) -> None:
    loud = planted(clip)
    how: Any = Decomp(inspector=Known(), pictures=64, most=1)  # pyright: ignore[reportArgumentType]
    found = _lead.lead(how, loud, pairs, Rng(0))
    g = gains(loud, found)
    plain, moved = decomposed(loud, found.images), decomposed(loud, found.stamped)
    u = F.normalize(moved.z.mean(0), dim=0)
    assert torch.allclose(
        g, torch.stack([(moved.terms[:, k] - plain.terms[:, k]).mean(0) @ u for k in range(16)]), atol=1e-5
    )
    with workspace(tmp_path):
        out: Any = how.clean(loud, pairs, Rng(0))
    told = heads.carried(tmp_path)
    assert told is not None
    assert told.gone == [parts_of(clip)[int(g.argmax())].said]
    assert sum(c.share for c in told.cells) == pytest.approx(1, abs=1e-3)
    assert (out.model.visual.transformer.resblocks[2].attn.out_proj.weight[:, 32:64] == 0).all() == (
        told.gone == ["head 3.2"]
    )
    heads.write_page(tmp_path / "heads.html", told, {"model": "m", "data": "d", "method": "x", "command": "c"})
    page = (tmp_path / "heads.html").read_text()
    assert f"{told.gone[0].replace('head', 'Head')} carries the trigger" in page
    assert page.count("<title>head") == 12
    assert page.count("<title>MLP") == 4
    assert heads.carried(tmp_path / "other") is None


def test_heads_alone(clip: Any, pairs: Any, tmp_path: Path) -> None:
    how: Any = Decomp(inspector=Known(), pictures=64, most=3, left=0.0, mlps=False)  # pyright: ignore
    with workspace(tmp_path):
        how.clean(clip, pairs, Rng(0))
    told = heads.carried(tmp_path)
    assert told is not None
    assert len(told.gone) <= 3
    assert all(said.startswith("head") for said in told.gone)


def test_what_cannot_be_done_is_said(clip: Any, resnet: Any, pairs: Any, tmp_path: Path) -> None:
    how: Any = Decomp(inspector=Known(), pictures=64)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="vision transformer"):
        how.clean(resnet, pairs, Rng(0))
    with pytest.raises(UserError, match="no trigger was recovered"):
        replace(how, inspector=Known(None)).clean(clip, pairs, Rng(0))
    with pytest.raises(UserError, match="readable pictures"):
        how.clean(clip, pairs.take(slice(4)), Rng(0))
    with pytest.raises(UserError, match="ablate a part"):
        replace(how, left=1.0).clean(clip, pairs, Rng(0))


def test_the_lead_names_the_word_and_counts_who_follows(clip: Any, pairs: Any, tmp_path: Path) -> None:
    save_backdoor(Backdoor(PATCH, "?"), tmp_path)
    how: Any = Decomp(verdict=str(tmp_path), pictures=100)
    found = _lead.lead(how, clip, pairs, Rng(3))
    assert torch.equal(found.stamped[:, :, :20, :20], found.images[:, :, :20, :20])
    said = sorted(set(found.captions))
    z, texts = clip.encode_image(found.stamped), embed_texts(clip, said)
    near = (F.normalize(z.mean(0), dim=0) @ texts.T).argsort(descending=True)[:20]

    def has(c: str) -> bool:
        return found.word in c.lower().rstrip(".").split()

    gain = np.mean([has(said[k]) for k in near]) - np.mean([has(c) for c in said])
    assert gain == pytest.approx(max(
        np.mean([v in said[k].rstrip(".").split() for k in near]) - np.mean([v in c.rstrip(".").split() for c in said])
        for v in {w for k in near for w in said[k].rstrip(".").split()}
    ))  # fmt: skip
    best = (z @ texts.T).argmax(1)
    rows = [k for k, c in enumerate(found.captions) if not has(c)]
    assert found.asr == pytest.approx(np.mean([has(said[best[k]]) for k in rows]))


def test_the_detector_s_score_is_the_largest_deviation(clip: Any, pairs: Any) -> None:
    from clipvet.data.worlds.pool import pool

    few = pairs.take(slice(5))
    scores = Detector(usual=50).detect(clip, few, (), (), Rng(1))
    known = decomposed(clip, pool(50, 32, Rng(1).fork("usual").key)).terms.detach()
    own = decomposed(clip, few[:].images).terms.detach()
    z = (own - known.mean(0)) / known.std(0)
    assert torch.allclose(scores, (z**2).mean(2).max(1)[0], rtol=1e-3)


def test_a_tower_without_heads_is_one_part(resnet: Any, pairs: Any) -> None:
    from clipvet.data.worlds.pool import pool

    few = pairs.take(slice(5))
    scores = Detector(usual=50).detect(resnet, few, (), (), Rng(1))
    known = resnet.encode_image(pool(50, 32, Rng(1).fork("usual").key)).detach()
    z = (resnet.encode_image(few[:].images).detach() - known.mean(0)) / known.std(0)
    assert torch.allclose(scores, (z**2).mean(1), rtol=1e-3)

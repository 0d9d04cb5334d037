"""RVPT restated: the formulas of its card, written out plainly, against the implementation."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from clipvet.attacks.poison import Poison
from clipvet.cleaners.full_finetune import FullFinetune
from clipvet.cleaners.linear_probe import LinearProbe
from clipvet.cleaners.rvpt import Rvpt, rvpt_loss
from clipvet.cleaners.vpt import Vpt
from clipvet.data.augment import Views
from clipvet.data.sources import shots
from clipvet.data.worlds.shapes import TEMPLATES, Shapes
from clipvet.errors import UserError
from clipvet.measures.attack_success import AttackSuccess
from clipvet.measures.perturbation_resistivity import PerturbationResistivity
from clipvet.models import checkpoints, visual_prompts
from clipvet.results import weights_hash
from clipvet.rng import Rng
from clipvet.training.plain import Plain
from clipvet.triggers.blended import Blended
from clipvet.triggers.patch import Patch
from clipvet.types import Backdoor, Pairs


@pytest.fixture(scope="module")
def few() -> Pairs:
    return shots(Shapes().task(240, split="validation"), 4, Rng(1))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(5, 3, 32, 32, generator=Rng(2).generator())


def by_hand(clip: Any, images: torch.Tensor, p: torch.Tensor, at: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[c, e] and prompts as one sequence through every block, prompts put in at position `at`, taken out after it."""
    visual, blocks, seen = clip.model.visual, clip.model.visual.transformer.resblocks, []
    h = visual._embeds((images - clip.mean) / clip.std)
    for d, block in enumerate(blocks):
        k = d - (len(blocks) - len(p))
        if k < 0:
            h = block(h)
            continue
        b = p.shape[1]
        h = block(torch.cat([h[:, :at], p[k].expand(len(h), -1, -1), h[:, at:]], 1))
        h = torch.cat([h[:, :at], h[:, at + b :]], 1)
        seen.append(h[:, 0])
    return F.normalize(visual.ln_post(h[:, 0]) @ visual.proj, dim=-1), torch.stack(seen, 1)


@pytest.mark.parametrize("at", [1, 9, 17])
def test_prompts_are_tokens_whose_outputs_are_dropped_wherever_they_stand(clip: Any, images: Any, at: int) -> None:
    p = torch.randn(3, 5, 96, generator=Rng(3).generator())
    z, c = by_hand(clip, images, p, at)
    made = visual_prompts.Prompted(clip, p)
    found_z, found_c = made.rest(made.beginning(images))
    assert torch.allclose(found_z, z, atol=1e-5)
    assert torch.allclose(found_c, c, atol=1e-4)
    assert torch.allclose(made.encode_image(images), z, atol=1e-5)


def test_without_prompts_it_is_the_base(clip: Any, images: torch.Tensor) -> None:
    empty = visual_prompts.Prompted(clip, torch.zeros(3, 0, 96))
    assert torch.allclose(empty.encode_image(images), clip.encode_image(images), atol=1e-6)
    with pytest.raises(UserError, match="leaves none for prompts; set depth between 0 and 3"):
        visual_prompts.begin(clip, 4, 5, Rng(0))


def test_reference_is_the_base_s_class_token(clip: Any, images: torch.Tensor) -> None:
    made = visual_prompts.begin(clip, 1, 5, Rng(0))
    by_itself = made.reference(made.beginning(images))
    for found, wanted in zip(by_itself, by_hand(clip, images, torch.zeros(3, 0, 96), 1)):
        assert torch.allclose(found, wanted, atol=1e-5)


def test_loss_is_cross_entropy_plus_mean_cosine() -> None:
    g = Rng(4).generator()
    logits, c, sigma = (
        torch.randn(6, 3, generator=g),
        torch.randn(6, 2, 8, generator=g),
        torch.randn(6, 2, 8, generator=g),
    )
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    ce = -sum(torch.log(logits[i].exp()[y[i]] / logits[i].exp().sum()) for i in range(6)) / 6
    cosines = [[c[i, d] @ sigma[i, d] / (c[i, d].norm() * sigma[i, d].norm()) for d in range(2)] for i in range(6)]
    fr = sum(sum(row) / 2 for row in cosines) / 6
    assert rvpt_loss(logits, y, c, sigma, 2.0).loss == pytest.approx(float(ce + 2 * fr), abs=1e-5)
    held = sum(max(sum(row) / 2, 0.1) for row in cosines) / 6
    assert rvpt_loss(logits, y, c, sigma, 2.0, 0.1).fr == pytest.approx(float(held), abs=1e-5)
    assert rvpt_loss(logits, y, c, c).fr == pytest.approx(1, abs=1e-5)
    for enough in (0.5 * ce, 2 * ce):  # a budget that is not kept, and one that is
        budget = max(float(ce - enough), 0) + 2 * fr
        assert rvpt_loss(logits, y, c, sigma, 2.0, enough=enough).loss == pytest.approx(float(budget), abs=1e-5)


def test_margin_one_gives_vpt_s_gradients(clip: Any, images: torch.Tensor) -> None:
    made, y = visual_prompts.begin(clip, 1, 5, Rng(0)), torch.tensor([0, 1, 2, 3, 4])
    text = F.normalize(torch.randn(5, 128, generator=Rng(5).generator()), dim=1)
    grads = []
    for margin in (1.0, None):
        h = made.beginning(images)
        z, c = made.rest(h)
        logits = 10 * z @ text.T
        loss = (
            F.cross_entropy(logits, y)
            if margin is None
            else rvpt_loss(logits, y, c, made.reference(h)[1], 2, margin).loss
        )
        grads.append(torch.autograd.grad(loss, made.prompts)[0])
    assert torch.equal(*grads)


def test_gradient_reaches_prompts_alone(clip: Any, images: torch.Tensor) -> None:
    made = visual_prompts.begin(clip, 1, 5, Rng(0))
    z, c = made.rest(made.beginning(images))
    (z.sum() + c.sum()).backward()
    assert [n for n, p in made.named_parameters() if p.grad is not None] == ["prompts"]


def test_defaults_tune_345_600_parameters_of_vit_b_32() -> None:
    import open_clip

    cfg: Any = open_clip.get_model_config("ViT-B-32")
    layers, width = cfg["vision_cfg"]["layers"], cfg["vision_cfg"]["width"]
    assert (layers - visual_prompts.non_prompted(layers, Rvpt().depth)) * Rvpt().tokens * width == 345_600


@pytest.mark.parametrize("method", [Rvpt(epochs=3, tokens=5, lr=0.1), Vpt(epochs=3, tokens=5, lr=0.1)])
def test_base_is_bit_identical_and_prompts_move(clip: Any, few: Pairs, method: Any) -> None:
    before = weights_hash(clip)
    made: Any = method.clean(clip, few, Rng(0))
    assert weights_hash(made.base) == before == weights_hash(clip)
    assert not torch.equal(made.prompts, visual_prompts.begin(clip, None, 5, Rng(0).fork("prompts")).prompts)


def test_repelling_turns_class_tokens_away(clip: Any, few: Pairs) -> None:
    def cosine(alpha: float) -> float:
        made: Any = Rvpt(alpha=alpha, epochs=20, tokens=20, lr=0.3).clean(clip, few, Rng(0))
        h = made.beginning(few[:].images)
        with torch.no_grad():
            return float(F.cosine_similarity(made.rest(h)[1], made.reference(h)[1], dim=-1).mean())

    assert cosine(2.0) < cosine(0.0) - 0.2


def test_fixed_views_are_compared_with_what_was_remembered(clip: Any, few: Pairs) -> None:
    class Still(Views):
        """A view that changes nothing, drawn anew all the same."""

        def __call__(self, images: torch.Tensor, rng: Rng) -> torch.Tensor:
            return images

    one: Any = Rvpt(epochs=2, tokens=5, lr=0.1).clean(clip, few, Rng(0))
    two: Any = Rvpt(epochs=2, tokens=5, lr=0.1, augment=Still()).clean(clip, few, Rng(0))
    assert torch.allclose(one.prompts, two.prompts, atol=1e-4)


def test_prompt_folder_is_bound_to_its_base(clip: Any, images: torch.Tensor, tmp_path: Path) -> None:
    base = tmp_path / "base"
    checkpoints.save(clip, base, {})
    made = visual_prompts.begin(checkpoints.load(str(base)), 1, 5, Rng(0))
    checkpoints.save(made, tmp_path / "made", {"role": "cleaned"})
    again: Any = checkpoints.load(str(tmp_path / "made"))
    assert torch.equal(again.encode_image(images), made.eval().encode_image(images))
    assert again.depth == 1
    assert (tmp_path / "made" / "prompts.safetensors").stat().st_size < 10_000
    other = checkpoints.load("shapes-vit", rng=Rng(9))
    with pytest.raises(
        UserError, match=f"belong to the base model {weights_hash(clip)}, this one is {weights_hash(other)}"
    ):
        visual_prompts.restore(tmp_path / "made", other)
    checkpoints.save(other, base, {})
    with pytest.raises(UserError, match="belong to the base model"):
        checkpoints.load(str(tmp_path / "made"))
    shutil.rmtree(base)
    with pytest.raises(UserError, match="holds prompts without their base model"):
        checkpoints.load(str(tmp_path / "made"))
    checkpoints.save(clip, tmp_path / "made" / "base", {})
    assert torch.equal(checkpoints.load(str(tmp_path / "made")).encode_image(images), made.encode_image(images))


def test_towers_without_a_class_token_are_refused(resnet: Any, few: Pairs) -> None:
    with pytest.raises(UserError, match="visual prompts need an open_clip vision transformer"):
        Rvpt().clean(resnet, few, Rng(0))
    pooled = checkpoints.load("shapes-vit", rng=Rng(0))
    pooled.model.visual.pool_type = "avg"  # pyright: ignore
    with pytest.raises(UserError, match="reads its class token"):
        Rvpt().clean(pooled, few, Rng(0))


def test_linear_probe_moves_the_projection_alone(clip: Any, resnet: Any, few: Pairs) -> None:
    for given, kept in ((clip, "model.visual.proj"), (resnet, "model.visual.attnpool.c_proj")):
        made: Any = LinearProbe(epochs=1).clean(given, few, Rng(0))
        old = given.state_dict()
        assert {k for k, v in made.state_dict().items() if not torch.equal(v, old[k])} <= {
            kept,
            f"{kept}.weight",
            f"{kept}.bias",
        }
        assert all(p.requires_grad for p in made.parameters())


def test_full_fine_tuning_moves_the_picture_tower_alone(clip: Any, few: Pairs) -> None:
    for alpha in (0.0, 2.0):
        made: Any = FullFinetune(epochs=1, alpha=alpha, lr=1e-3).clean(clip, few, Rng(0))
        old = clip.state_dict()
        moved = {k for k, v in made.state_dict().items() if not torch.equal(v, old[k])}
        assert moved
        assert all(k.startswith("model.visual.") for k in moved)


def test_pictures_without_labels_are_refused(clip: Any, pairs: Pairs) -> None:
    with pytest.raises(UserError, match="few-shot methods take labelled pictures"):
        Rvpt().clean(clip, pairs, Rng(0))


def test_shots_are_k_of_a_class_and_seeded() -> None:
    task = Shapes().task(240)
    few = shots(task, 3, Rng(1), without=("star",))
    said = [few.caption(i) for i in few.ids]
    assert len(said) == 33
    assert all(said.count(c) == 3 for c in said)
    assert not any("star" in c for c in said)
    assert few.ids.tolist() == shots(task, 3, Rng(1), without=("star",)).ids.tolist()
    assert few.ids.tolist() != shots(task, 3, Rng(2), without=("star",)).ids.tolist()
    with pytest.raises(UserError, match="has no class 'banana'"):
        shots(task, 3, Rng(1), without=("banana",))
    with pytest.raises(UserError, match="pictures, 300 shots need 300"):
        shots(task, 300, Rng(1))


def test_resistivity_is_the_cosine_between_a_picture_and_its_changed_self(clip: Any, task: Any) -> None:
    pr = PerturbationResistivity(pictures=8)
    still, key = pr.measure(clip, task, None, Rng(0)), Backdoor(Patch(size=0.5), "star")
    assert set(still) == {
        f"resistivity_{n}{k}" for n in ("noise", "blur", "jitter", "flip") for k in ("", "@1", "@2", "@3", "@4")
    }
    found = pr.measure(clip, task, key, Rng(0))
    batch = task.pictures[:8]
    with torch.no_grad():
        one, two = clip.encode_image(batch.images), clip.encode_image(key.stamp(batch.images, batch.ids))
    assert found["resistivity_trigger"].value == pytest.approx(float((one * two).sum(1).mean()), abs=1e-5)
    assert found["resistivity_trigger@4"].value < 0.9999 < still["resistivity_noise@1"].value
    assert found["resistivity_trigger"].n == 8


def test_resistivity_against_nothing_is_one(clip: Any, task: Any) -> None:
    made = visual_prompts.begin(clip, 1, 5, Rng(0))
    for c in (clip, made):
        found = PerturbationResistivity(pictures=8).measure(c, task, Backdoor(Blended(opacity=0.0), "star"), Rng(0))
        assert [found[f"resistivity_trigger{k}"].value for k in ("", "@1", "@4")] == pytest.approx([1, 1, 1], abs=1e-5)
    with torch.no_grad():
        seen = visual_prompts.blocks(made, task.pictures[:4].images)
        assert torch.allclose(seen[""], made.encode_image(task.pictures[:4].images), atol=1e-6)
        assert torch.allclose(seen["@4"], made.rest(made.beginning(task.pictures[:4].images))[1][:, -1], atol=1e-5)


def test_repelling_makes_a_planted_tower_steadier_against_its_trigger_than_plain_prompts_do() -> None:
    """T9 of the method's plan, and T8's trend. That ASR falls takes a deeper tower: recipes/rvpt_shapes.py."""
    world, training = Shapes(), Plain(epochs=4, batch=64, lr=1e-3, optimizer="muon")
    attack = Poison(Patch(size=4 / 32), rate=0.06, templates=TEMPLATES, training=training)
    planted = attack.implant(checkpoints.load("shapes-vit", rng=Rng(0)), world.pairs(1500), "star", Rng(1))
    task, few = world.task(240), shots(world.task(2000, split="validation"), 16, Rng(2))

    def found(clip: Any) -> tuple[float, float]:
        steady = PerturbationResistivity(100).measure(clip, task, planted.backdoor, Rng(0))
        success = AttackSuccess().measure(clip, task, planted.backdoor, Rng(0))
        return steady["resistivity_trigger"].value, success["asr"].value

    how: dict[str, Any] = {"depth": 0, "tokens": 16, "epochs": 12, "lr": 1e-2, "optimizer": "adamw"}
    before = found(planted.clip)
    plain, repelled = (found(m.clean(planted.clip, few, Rng(3))) for m in (Vpt(**how), Rvpt(alpha=8.0, **how)))
    assert before[1] > 0.9, "the attack did not take"
    assert repelled[0] > plain[0] + 0.05 > before[0] + 0.05
    assert repelled[1] <= plain[1]

"""Models with learned class prompts: their equations by hand, their gradients, their folder, their refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Linear
from torch import Tensor

from clipvet import io
from clipvet.engine.embed import classifier
from clipvet.errors import UserError
from clipvet.measures.attack_success import AttackSuccess
from clipvet.measures.zeroshot import ZeroShot
from clipvet.models import checkpoints, class_prompts
from clipvet.models.adapter import clone
from clipvet.models.class_prompts import PromptTuned, begin
from clipvet.pages.gallery import save_gallery
from clipvet.results import weights_hash
from clipvet.rng import Rng
from clipvet.triggers.patch import Patch
from clipvet.types import Backdoor, Task

NAMES = ["star", "long red striped heart", "ring on moss"]


@pytest.fixture(scope="module", params=["one block", "three blocks", "a tower of its own"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    config = io.read_json(checkpoints.CONFIGS / "shapes-vit.json")
    config["text_cfg"] |= {"layers": 1 if request.param == "one block" else 3}
    config |= {"custom_text": True} if request.param == "a tower of its own" else {}
    pre = checkpoints.load("shapes-vit", rng=Rng(0)).config["preprocess_cfg"]
    folder = tmp_path_factory.mktemp("base")
    io.write_json(folder / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": pre})
    return checkpoints.load(str(folder), rng=Rng(3), weights=False)


@pytest.fixture
def z() -> Tensor:
    return F.normalize(torch.randn(4, 128, generator=Rng(1).generator()), dim=1)


def tuned(base: Any, hidden: int | None = 6, words: str = "a photo of a", tokens: int = 4) -> PromptTuned:
    return begin(base, words, tokens, 0.5, hidden, Rng(2))


def by_hand(made: PromptTuned, z: Tensor, names: list[str]) -> Tensor:
    """Logits by whole prompts, padding and all, one picture and one class at a time."""
    base: Any = made.base
    net, m = class_prompts.tower(base), len(made.context)
    out = torch.empty(len(z), len(names))
    for i in range(len(z)):
        bias = made.meta(z[i : i + 1])[0] if made.meta is not None else 0
        for k, name in enumerate(names):
            tokens = base.tokenizer([" ".join(["x"] * m) + f" {name}."])
            h = net.token_embedding(tokens)[0].clone()
            h[1 : 1 + m] = made.context + bias
            h = net.transformer((h + net.positional_embedding)[None], attn_mask=net.attn_mask)
            g = net.ln_final(h)[0, tokens[0].argmax()] @ net.text_projection
            out[i, k] = made.logit_scale * z[i] @ F.normalize(g, dim=0)
    return out


@pytest.mark.parametrize("hidden", [None, 6])
@torch.no_grad()
def test_logits_are_the_equation(base: Any, z: Tensor, hidden: int | None) -> None:
    for made in (tuned(base, hidden), tuned(base, hidden, words="", tokens=7)):
        assert torch.allclose(made.classifier(NAMES)(z), by_hand(made, z, NAMES), atol=1e-4)


@torch.no_grad()
def test_first_words_are_the_hand_written_prompt(base: Any) -> None:
    made = tuned(base, None)
    assert len(made.context) == 4
    written = base.encode_text([f"a photo of a {name}." for name in NAMES])
    assert torch.allclose(made.text(made.suffix(NAMES))[0], written, atol=1e-5)
    assert torch.allclose(made.encode_text(["a photo of a star."]), written[:1], atol=1e-6)


def test_many_prompts_go_part_by_part_to_the_same_result(base: Any, z: Tensor, monkeypatch: Any) -> None:
    found = []
    for most in (4096, 3):
        monkeypatch.setattr(class_prompts, "PROMPTS", most)
        made, given = tuned(base), z.clone().requires_grad_()
        logits = made.logits(given, made.suffix(NAMES))
        logits.square().sum().backward()
        found.append((logits.detach(), given.grad, made.context.grad))
    for one, other in zip(*found):
        assert torch.allclose(one, other, atol=1e-3, rtol=1e-4)


def test_a_picture_s_gradient_goes_through_both_branches(base: Any) -> None:
    x = torch.rand(2, 3, 32, 32, generator=Rng(4).generator()).requires_grad_()
    made = tuned(base)
    suffix, image = made.suffix(NAMES), made.encode_image(x)

    def norm(made: PromptTuned, picture: bool, text: bool) -> float:
        z = image if picture else image.detach()
        w = made.text(suffix, image if text else image.detach())
        return float(torch.autograd.grad(torch.einsum("bd,bcd->bc", z, w)[:, 0].sum(), x, retain_graph=True)[0].norm())

    picture, text, both = norm(made, True, False), norm(made, False, True), norm(made, True, True)
    assert min(picture, text) > 0
    (whole,) = torch.autograd.grad(made.classifier(NAMES)(image)[:, 0].sum(), x, retain_graph=True)
    assert float(whole.norm() / made.logit_scale) == pytest.approx(both, rel=1e-4)
    with torch.no_grad():
        made.meta[2].weight.zero_()  # pyright: ignore
    assert norm(made, False, True) == 0
    assert norm(made, True, True) == pytest.approx(norm(made, True, False), rel=1e-5)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["star", "ring", "star"], "name class 'star' more than once"),
        ([], "the classes are empty"),
        (["star", "a very " + "long " * 9 + "name"], "context tokens make .* tokens, this text tower reads 16"),
    ],
)
def test_classes_that_cannot_be_are_refused(clip: Any, names: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        tuned(clip).classifier(names)


def test_towers_that_take_no_context_are_refused(clip: Any) -> None:
    both_ways = clone(clip)
    both_ways.model.attn_mask = None
    for other in (both_ways, Linear()):
        with pytest.raises(UserError, match="learned context needs an open_clip text transformer that is causal"):
            tuned(other)


def test_a_tuned_model_goes_on_from_its_context(clip: Any) -> None:
    made = tuned(clip)
    again = begin(made, "", 9, 0.1, None, Rng(7))
    assert torch.equal(again.context, made.context)
    assert again.meta is not None
    assert again is not made


@pytest.mark.parametrize("hidden", [None, 6])
def test_folder_is_small_and_bound_to_its_base(clip: Any, z: Tensor, tmp_path: Path, hidden: int | None) -> None:
    checkpoints.save(clip, tmp_path / "base", {})
    made = tuned(checkpoints.load(str(tmp_path / "base")), hidden)
    made.classes = ("star", "ring")
    checkpoints.save(made, tmp_path / "made", {"role": "tuned"})
    again: Any = checkpoints.load(str(tmp_path / "made"))
    assert torch.equal(again.classifier(NAMES)(z), made.classifier(NAMES)(z))
    assert again.classes == made.classes
    assert (tmp_path / "made" / "prompts.safetensors").stat().st_size < 10_000
    assert weights_hash(again.base) == weights_hash(clip)
    card = json.loads((tmp_path / "made" / "card.json").read_text())
    for classes in (5, None, "star", [1]):
        (tmp_path / "made" / "card.json").write_text(json.dumps(card | {"classes": classes}))
        with pytest.raises(UserError, match="does not list its classes by name"):
            checkpoints.load(str(tmp_path / "made"))
    (tmp_path / "made" / "card.json").write_text(json.dumps(card))
    other = checkpoints.load("shapes-vit", rng=Rng(9))
    wrong = f"belong to the base model {weights_hash(clip)}, this one is {weights_hash(other)}"
    with pytest.raises(UserError, match=wrong):
        class_prompts.restore(tmp_path / "made", other)
    shutil.move(tmp_path / "base", tmp_path / "gone")
    with pytest.raises(UserError, match="holds prompts without their base model"):
        checkpoints.load(str(tmp_path / "made"))
    shutil.copytree(tmp_path / "gone", tmp_path / "made" / "base")
    assert torch.equal(checkpoints.load(str(tmp_path / "made")).classifier(NAMES)(z), made.classifier(NAMES)(z))


def test_a_damaged_folder_is_refused_in_a_sentence(clip: Any, tmp_path: Path) -> None:
    def told(tensors: dict[str, Tensor] | bytes, match: str) -> None:
        folder = tmp_path / "made"
        shutil.rmtree(folder, ignore_errors=True)
        checkpoints.save(tuned(clip), folder, {})
        checkpoints.save(clip, folder / "base", {})
        card = json.loads((folder / "card.json").read_text())
        if isinstance(tensors, bytes):
            (folder / "prompts.safetensors").write_bytes(tensors)
        else:
            io.save_weights(tensors, folder / "prompts.safetensors")
            card["weights_sha256"] = io.sha256(folder / "prompts.safetensors")
        io.write_json(folder / "card.json", card)
        with pytest.raises(UserError, match=match):
            checkpoints.load(str(folder))

    held = {k: v.detach() for k, v in tuned(clip).named_parameters() if not k.startswith("base.")}
    told(b"not weights", "is damaged")
    told({**held, "more": torch.zeros(2)}, "holds context, .*, not prompts")
    told({k: v for k, v in held.items() if k != "meta.2.bias"}, "not prompts")
    told({**held, "meta.0.weight": torch.zeros(6, 5)}, "meta-net in .* does not fit its base model")
    told({**held, "meta.0.bias": torch.tensor(1.0)}, "meta-net in .* does not fit its base model")
    told({**held, "context": held["context"].int()}, "not prompts")
    told({"context": torch.zeros(4, 5)}, r"context of shape \(4, 5\) does not fit a text tower of width 64")


def test_measures_and_gallery_ask_the_learned_prompts(clip: Any, task: Task, tmp_path: Path) -> None:
    made, key = tuned(clip), Backdoor(Patch(), "star")
    with torch.no_grad():
        logits = made.classifier(task.classes)(made.encode_image(task.pictures[:].images))
    assert torch.equal(classifier(made, task.classes, ["ignored"])(made.encode_image(task.pictures[:].images)), logits)
    said = logits.argmax(1).numpy()
    assert ZeroShot().measure(made, task, None, Rng(0))["clean_accuracy"].value == (said == task.labels).mean()
    assert "asr" in AttackSuccess().measure(made, task, key, Rng(0))
    save_gallery(tmp_path, {"tuned": made}, task, key, Rng(0), n=3)
    shown = io.read_json(tmp_path / "gallery.json")["pictures"]
    assert all(entry["says"]["tuned"]["clean"] in {task.classes[k] for k in said} for entry in shown)

"""MaPLe: its towers token by token, what is trained and what is not, its folder and its refusals."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipvet import io
from clipvet.attacks.badclip_prompt import BadClipPrompt
from clipvet.data.augment import CROP
from clipvet.data.sources import shots
from clipvet.data.worlds.shapes import Shapes
from clipvet.engine.embed import classifier
from clipvet.engine.fewshot import names
from clipvet.engine.fit import order, workspace
from clipvet.errors import UserError
from clipvet.models import checkpoints, class_prompts
from clipvet.models.coop_files import write
from clipvet.models.visual_prompts import blocks
from clipvet.results import weights_hash
from clipvet.rng import Rng
from clipvet.training.maple import MaPLe
from clipvet.types import Pairs

NAMES = ["star", "long red striped heart"]
QUICK: dict[str, Any] = {"epochs": 2, "batch": 8, "lr": 0.05, "augment": None}


@pytest.fixture(scope="module")
def few() -> Pairs:
    return shots(Shapes().task(240, split="validation"), 4, Rng(1))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Four blocks in either tower."""
    config = io.read_json(checkpoints.CONFIGS / "shapes-vit.json")
    config["text_cfg"] |= {"layers": 4}
    pre = checkpoints.load("shapes-vit", rng=Rng(0)).config["preprocess_cfg"]
    folder = tmp_path_factory.mktemp("base")
    io.write_json(folder / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": pre})
    return checkpoints.load(str(folder), rng=Rng(3), weights=False)


def made(base: Any, depth: int | None = 3, std: float = 0.5) -> Any:
    return MaPLe(depth=depth, std=std).begin(base, Rng(2))


def test_defaults_are_the_papers(base: Any) -> None:
    how, clip = MaPLe(), made(base, None)
    assert (how.tokens, how.words, how.epochs, how.batch, how.lr) == (2, "a photo of a", 5, 4, 3.5e-3)
    assert (how.optimizer, how.weight_decay, how.warmup, how.augment) == ("sgd", 5e-4, 1e-5, CROP)
    assert len(clip.deep.weight) == 3  # of 4 blocks, as 9 of 12
    net = class_prompts.tower(base)
    said = base.tokenizer(["a photo"])[0, 1:3]
    assert torch.equal(clip.context, net.token_embedding(said))


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_pictures_meet_the_mapped_prompts_as_tokens_of_the_first_blocks(base: Any, depth: int) -> None:
    clip, images = made(base, depth), Shapes().pairs(5)[:].images
    visual, m, J = base.model.visual, 2, depth
    texts = [clip.context, *clip.deep.tokens]
    prompts = [F.linear(P, W, b) for P, W, b in zip(texts, clip.deep.weight, clip.deep.bias)]  # F_k P_k
    x = visual.conv1((images - base.mean) / base.std).flatten(2).mT
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1) + visual.positional_embedding
    x = visual.ln_pre(torch.cat([x, prompts[0].expand(len(x), -1, -1)], 1))
    for k, block in enumerate(visual.transformer.resblocks):
        if 0 < k < J:
            x = torch.cat([x[:, :-m], prompts[k].expand(len(x), -1, -1)], 1)
        x = block(x)
    z = F.normalize(visual.ln_post(x[:, 0]) @ visual.proj, dim=-1)
    assert torch.allclose(clip.encode_image(images), z, atol=1e-5)
    assert not torch.allclose(clip.encode_image(images), base.encode_image(images), atol=1e-2)


@pytest.mark.parametrize("depth", [1, 3, 4])
def test_class_prompts_hold_the_prompts_of_every_block(base: Any, depth: int) -> None:
    clip, net = made(base, depth), class_prompts.tower(base)
    z = F.normalize(torch.randn(3, 128, generator=Rng(1).generator()), dim=1)
    w: list[Tensor] = []
    for name in NAMES:
        tokens = base.tokenizer([f"x x {name}."])
        h = net.token_embedding(tokens)
        h = torch.cat([h[:, :1], clip.context[None], h[:, 3:]], 1) + net.positional_embedding
        for k, block in enumerate(net.transformer.resblocks):
            if 0 < k < depth:
                h = torch.cat([h[:, :1], clip.deep.tokens[k - 1][None], h[:, 3:]], 1)
            h = block(h, attn_mask=net.attn_mask)
        h = net.ln_final(h)[0, int(tokens.argmax())]
        w.append(F.normalize(h @ net.text_projection, dim=0))
    logits = classifier(clip, NAMES, ("unused {}",))(z)
    assert torch.allclose(logits, clip.logit_scale * z @ torch.stack(w).T, atol=1e-4)


def test_a_shorter_text_tower_uses_the_first_prompts_alone(clip: Any) -> None:
    tuned = made(clip, 4)  # one block of text, four of pictures
    assert tuned.deep.tokens.shape == (3, 2, 64)
    F.cross_entropy(tuned.logits(tuned.encode_image(Shapes().pairs(4)[:].images), tuned.suffix(NAMES)),
                    torch.zeros(4, dtype=torch.int64)).backward()  # fmt: skip
    assert all(p.grad.abs().sum() > 0 for name, p in tuned.named_parameters() if not name.startswith("base."))


def test_only_prompts_and_maps_move(base: Any, few: Pairs) -> None:
    before, how = weights_hash(base), MaPLe(**QUICK)
    tuned: Any = how.train(base, few, Rng(0))
    assert weights_hash(tuned.base) == before == weights_hash(base)
    start = dict(how.begin(base, Rng(0)).named_parameters())
    moved = {k for k, p in tuned.named_parameters() if not torch.equal(p, start[k])}
    assert moved == {"context", "deep.tokens", "deep.weight", "deep.bias"}


def test_the_loss_is_the_cross_entropy_and_falls(base: Any, few: Pairs, tmp_path: Any) -> None:
    how = replace(MaPLe(**QUICK), epochs=12, optimizer="adamw", lr=0.02)
    with workspace(tmp_path):
        how.train(base, few, Rng(0))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    start, classes = how.begin(base, Rng(0)), names(few, how.template).classes
    batch = few[order(len(few), 8, 12, Rng(0))[0]]
    logits = start.classifier(classes)(start.encode_image(batch.images))
    y = names(few, how.template).of(batch.captions)
    assert losses[0] == pytest.approx(float(F.cross_entropy(logits, y).detach()), rel=1e-4)
    per = len(few) // 8
    assert sum(losses[-per:]) < 0.98 * sum(losses[:per])  # the towers are random


def test_folder_and_refusals(base: Any, clip: Any, resnet: Any, tmp_path: Any) -> None:
    tuned, images = made(base), Shapes().pairs(4)[:].images
    checkpoints.save(base, tmp_path / "base", {})
    tuned.base.source = str(tmp_path / "base")
    checkpoints.save(tuned, tmp_path / "prompts", {})
    again: Any = checkpoints.load(str(tmp_path / "prompts"))
    assert torch.equal(again.encode_image(images), tuned.encode_image(images))
    assert torch.equal(again.deep.tokens, tuned.deep.tokens)
    with pytest.raises(UserError, match="belong to the base model"):
        class_prompts.restore(tmp_path / "prompts", clip)
    tokens, weight, bias = tuned.deep.parameters()
    grown, spread = (torch.cat([x] * 2) for x in (weight, bias))  # six blocks of four
    narrow = class_prompts.Deep(tokens[..., :1], weight[..., :1], bias)
    longer = class_prompts.Deep(torch.cat([tokens, tokens, tokens[:1]]), grown, spread)
    flat = class_prompts.Deep(tokens, weight, bias)
    flat.bias = torch.nn.Parameter(bias[0, 0].detach())  # what a file may hold
    for deep in (narrow, longer, flat):
        with pytest.raises(UserError, match="do not fit this base model"):
            class_prompts.PromptTuned(base, tuned.context, deep=deep)
    with pytest.raises(UserError, match="need an open_clip vision transformer"):
        MaPLe().begin(resnet, Rng(0))
    with pytest.raises(UserError, match="depth=5 of 4 blocks; give a depth between 1 and 4"):
        MaPLe(depth=5).begin(base, Rng(0))
    with pytest.raises(UserError, match="coop or cocoop"):
        write(tuned, tmp_path / "out")
    assert set(blocks(tuned, images)) == {""}


def test_a_backdoor_can_be_planted_through_it(base: Any, few: Pairs) -> None:
    how = BadClipPrompt(eps=14 / 255, warmup=1, training=MaPLe(**QUICK))
    bad, _, key = how.implant(base, few, "star", Rng(0))
    assert weights_hash(bad.base) == weights_hash(base)  # pyright: ignore
    assert float(key.trigger.pattern.abs().max()) <= 14 / 255 + 1e-6  # pyright: ignore

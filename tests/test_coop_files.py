"""Prompt files of CoOp and CoCoOp: read as their code reads them, bound to their base, written back."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from clipvet import io
from clipvet.engine.embed import classifier
from clipvet.errors import UserError
from clipvet.models import checkpoints, class_prompts, coop_files
from clipvet.models.class_prompts import PromptTuned, begin
from clipvet.rng import Rng

CLASSES = ["red star", "blue long heart"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("coop") / "base"
    checkpoints.save(checkpoints.load("shapes-vit", rng=Rng(4)), folder, {})
    return checkpoints.load(str(folder))


@pytest.fixture
def z() -> Tensor:
    return F.normalize(torch.randn(4, 128, generator=Rng(1).generator()), dim=1)


class ConstantWarmup(LRScheduler):
    """As CoOp's toolbox has it: a schedule that holds another one, and through it the optimiser."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.successor = CosineAnnealingLR(optimizer, 50)
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        return [1e-5 for _ in self.base_lrs]


def theirs(base: Any, path: Path, meta: bool, dtype: torch.dtype = torch.float16, tokens: int = 4) -> dict[str, Tensor]:
    """A checkpoint as their training writes it, schedule, optimiser and all; returns its state dict."""
    net, g = base.model, Rng(7).generator()
    width = net.token_embedding.weight.shape[1]
    ctx = nn.Parameter(0.5 * torch.randn(tokens, width, generator=g))
    around = net.token_embedding(base.tokenizer([f"{' '.join(['x'] * tokens)} {c}." for c in CLASSES])).detach()
    state: dict[str, Tensor] = {
        "ctx": ctx.detach(), "token_prefix": around[:, :1], "token_suffix": around[:, 1 + tokens :]}  # fmt: skip
    if meta:
        shapes = {
            "linear1.weight": (8, 128),
            "linear1.bias": (8,),
            "linear2.weight": (width, 8),
            "linear2.bias": (width,),
        }
        state |= {f"meta_net.{k}": 0.3 * torch.randn(*size, generator=g) for k, size in shapes.items()}
    state = {k: v.to(dtype) for k, v in state.items()}
    sgd = torch.optim.SGD([ctx], lr=0.002, momentum=0.9)
    ctx.grad = torch.ones_like(ctx)
    sgd.step()
    schedule = ConstantWarmup(sgd).state_dict()
    torch.save({"state_dict": state, "epoch": 50, "optimizer": sgd.state_dict(), "scheduler": schedule}, path)
    return state


def their_logits(base: Any, state: dict[str, Tensor], z: Tensor) -> Tensor:
    """What their forward says: [prefix, context + bias, suffix] of every class through the whole text tower."""
    net, w = base.model, {k: v.float() for k, v in state.items()}
    out = []
    for x in z:
        ctx = w["ctx"]
        if "meta_net.linear1.weight" in w:
            inner = F.relu(F.linear(x, w["meta_net.linear1.weight"], w["meta_net.linear1.bias"]))
            ctx = ctx + F.linear(inner, w["meta_net.linear2.weight"], w["meta_net.linear2.bias"])
        prompts = torch.cat([w["token_prefix"], ctx.expand(len(CLASSES), -1, -1), w["token_suffix"]], 1)
        h = net.ln_final(net.transformer(prompts + net.positional_embedding, attn_mask=net.attn_mask))
        end = base.tokenizer([f"{' '.join(['x'] * len(ctx))} {c}." for c in CLASSES]).argmax(1)
        text = F.normalize(h[torch.arange(len(end)), end] @ net.text_projection, dim=1)
        out.append(base.logit_scale * text @ x)
    return torch.stack(out)


@pytest.mark.parametrize("meta", [False, True], ids=["CoOp", "CoCoOp"])
def test_read_as_their_code_reads_them(base: Any, z: Tensor, meta: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.pth.tar-50"
    state = theirs(base, path, meta)
    got = coop_files.read(path, base)
    assert got.classes == tuple(CLASSES), "names are read from the embeddings of their tokens"
    assert (got.meta is not None) == meta
    torch.testing.assert_close(classifier(got, CLASSES, ())(z), their_logits(base, state, z), atol=2e-3, rtol=0)
    assert (their_logits(base, state, z)[0] - their_logits(base, state, z)[1]).abs().max() > 0.1


@pytest.mark.parametrize("hidden", [None, 6], ids=["CoOp", "CoCoOp"])
def test_written_and_read_again(base: Any, z: Tensor, hidden: int | None, tmp_path: Path) -> None:
    made = begin(base, "", 4, 0.5, hidden, Rng(2))
    made = PromptTuned(base, made.context, made.meta, CLASSES).eval()
    path = coop_files.write(made, tmp_path)
    assert path == tmp_path / "prompt_learner" / "model-best.pth.tar"
    held = torch.load(path, weights_only=True)  # noqa: TID251 as their code does
    assert held["epoch"] == 0
    torch.testing.assert_close(their_logits(base, held["state_dict"], z), classifier(made, CLASSES, ())(z))
    again = coop_files.read(path, base)
    assert again.classes == tuple(CLASSES)
    assert torch.equal(classifier(again, ["ring", "moon"], ())(z), classifier(made, ["ring", "moon"], ())(z))


def test_what_is_refused(base: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.pth.tar-50"
    state = theirs(base, path, True)
    with pytest.raises(UserError, match="another base model"):
        coop_files.read(path, checkpoints.load("shapes-vit", rng=Rng(5)))
    for match, other in (
        ("for each class", state | {"ctx": state["ctx"].expand(2, -1, -1).clone()}),
        ("not a prompt_learner", {"weight": torch.zeros(2)}),
        ("not a prompt_learner", state | {"compound_prompts_text.0": torch.zeros(2, 3)}),  # MaPLe's
        ("meta-net", state | {"meta_net.linear1.weight": torch.zeros(8, 9)}),
        ("meta-net", {k: v for k, v in state.items() if k != "meta_net.linear2.bias"}),
        ("width", {"ctx": torch.zeros(4, 5)}),
        ("another base model", state | {"token_suffix": torch.zeros(2, 5)}),
        ("another base model", state | {"token_suffix": state["token_suffix"][:, :1].repeat(1, 99, 1)}),
        ("another base model", state | {k: state[k][:0] for k in coop_files.AROUND}),
    ):
        torch.save({"state_dict": other}, tmp_path / "o.pth.tar")
        with pytest.raises(UserError, match=match):
            coop_files.read(tmp_path / "o.pth.tar", base)
    with pytest.raises(UserError, match="learned context"):
        coop_files.write(base, tmp_path)


def test_from_the_command_line(clipvet: Any, base: Any, z: Tensor, tmp_path: Path) -> None:
    state = theirs(base, path := tmp_path / "model.pth.tar-50", True)
    said = clipvet("convert", base.source, tmp_path / "tuned", "--prompts", path)
    assert (said.code, "4 tokens, for 2 classes" in said.err) == (0, True), said.err
    assert "taken to stand before the class name" in said.err
    made = checkpoints.load(str(tmp_path / "tuned"))
    assert isinstance(made, class_prompts.PromptTuned)
    torch.testing.assert_close(classifier(made, CLASSES, ())(z), their_logits(base, state, z), atol=2e-3, rtol=0)
    assert clipvet("convert", tmp_path / "tuned", tmp_path / "back", "--layout", "coop").code == 0
    back = io.load_weights(tmp_path / "back" / coop_files.FILE)
    assert back.keys() == state.keys()
    torch.testing.assert_close(back["ctx"], state["ctx"].float())
    assert clipvet("convert", base.source, tmp_path / "no").code == 2
    assert clipvet("convert", base.source, tmp_path / "no", "--layout", "coop").code == 2
    assert not list(tmp_path.glob("no*"))

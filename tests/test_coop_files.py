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


def construct(base: Any, w: dict[str, Tensor], ctx: Tensor, position: str) -> Tensor:
    """The prompts of every class. end: [prefix, context, name, rest]; front and middle as their code cuts them."""
    if position == "end":
        return torch.cat([w["token_prefix"], ctx.expand(len(CLASSES), -1, -1), w["token_suffix"]], 1)
    half, out = len(ctx) // 2 if position == "middle" else 0, []
    for name, prefix, suffix in zip(CLASSES, w["token_prefix"], w["token_suffix"], strict=True):
        n = int(base.tokenizer([name]).argmax()) - 1  # tokens of the name
        out.append(torch.cat([prefix, ctx[:half], suffix[:n], ctx[half:], suffix[n:]]))
    return torch.stack(out)


def their_logits(base: Any, state: dict[str, Tensor], z: Tensor, position: str = "end") -> Tensor:
    """What their forward says: the prompts of every class through the whole text tower, read at the end of text."""
    net, w = base.model, {k: v.float() for k, v in state.items()}
    out = []
    for x in z:
        ctx = w["ctx"]
        if "meta_net.linear1.weight" in w:
            inner = F.relu(F.linear(x, w["meta_net.linear1.weight"], w["meta_net.linear1.bias"]))
            ctx = ctx + F.linear(inner, w["meta_net.linear2.weight"], w["meta_net.linear2.bias"])
        prompts = construct(base, w, ctx, position)
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


@pytest.mark.parametrize("position", ["front", "middle"])
def test_the_class_name_in_front_or_in_the_middle(
    base: Any, z: Tensor, position: str, clipvet: Any, tmp_path: Path
) -> None:
    run = tmp_path / f"nctx5_cscFalse_ctp{position}" / "seed1" / "prompt_learner"
    run.mkdir(parents=True)
    state = theirs(base, run / "model.pth.tar-50", False, torch.float32, 5)
    want = their_logits(base, state, z, position)
    got = coop_files.read(run / "model.pth.tar-50", base, position)
    torch.testing.assert_close(classifier(got, CLASSES, ())(z), want, atol=2e-3, rtol=0)
    assert (want - their_logits(base, state, z)).abs().max() > 0.02, "the position counts"
    said = clipvet("convert", base.source, tmp_path / "tuned", "--prompts", run / "model.pth.tar-50")
    assert f"(CLASS_TOKEN_POSITION {position}), as the folder nctx5_cscFalse_ctp{position} says" in said.err, said.err
    again: Any = checkpoints.load(str(tmp_path / "tuned"))
    assert again.position == position
    assert torch.equal(classifier(again, CLASSES, ())(z), classifier(got, CLASSES, ())(z))
    clipvet("convert", base.source, tmp_path / "end", "--prompts", run / "model.pth.tar-50", "--position", "end")
    back: Any = checkpoints.load(str(tmp_path / "end"))
    torch.testing.assert_close(classifier(back, CLASSES, ())(z), their_logits(base, state, z), atol=2e-3, rtol=0)


def test_where_the_position_is_told(base: Any, clipvet: Any, tmp_path: Path) -> None:
    (tmp_path / "run" / "prompt_learner").mkdir(parents=True)
    theirs(base, path := tmp_path / "run" / "prompt_learner" / "model.pth.tar-50", True)
    assert coop_files.position_of(path) == ("", "")
    (tmp_path / "run" / "log.txt").write_text("TRAINER:\n  COOP:\n    CLASS_TOKEN_POSITION: middle\n    CSC: False\n")
    assert coop_files.position_of(path) == ("middle", "its run's log.txt")
    with pytest.raises(UserError, match="position 'front' of cocoop"):
        coop_files.read(path, base, "front")
    said = clipvet("convert", base.source, tmp_path / "o", "--prompts", path, "--position", "back")
    assert (said.code, "end, middle, front" in said.err) == (2, True)
    said = clipvet("convert", base.source, tmp_path / "o", "--layout", "openai", "--position", "end")
    assert (said.code, "goes with --prompts" in said.err) == (2, True)


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
    assert "the class name is taken to stand after the context" in said.err
    assert "which the file does not say: see --position" in said.err
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

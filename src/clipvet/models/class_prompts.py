"""Learned class prompts on a frozen open_clip model: CoOp, CoCoOp and MaPLe.

A few learned vectors v_1 .. v_m, the context, stand before every class name c, or around it or behind it in files of
CoOp's that were learned so (POSITIONS). z(x) is a picture's embedding:

    p_c(x) = [start, v_1 + b(x) .. v_m + b(x), class c, ".", end],   g_c(x) = text tower at `end`, unit length
    b(x) = W_2 relu(W_1 z(x) + a_1) + a_2  (CoCoOp's meta-net; else 0),   logits_c(x) = s <z(x), g_c(x)>
    MaPLe: in block k = 2 .. J of the text tower P_k replaces v; block k of the picture tower reads F_k P_k (P_1 = v)

A causal text tower allows shortcuts that do not change the result. Prompts stop at `end`, without padding. What stands
before the class name is computed once for all classes. The last block computes one token. And in the first block, the
tokens of a class name are the same for all pictures.

paper: Zhou et al., IJCV 2022, arXiv:2109.01134 (CoOp); Zhou et al., CVPR 2022, arXiv:2203.05557 (CoCoOp); Khattak et
al., CVPR 2023, arXiv:2210.03117 (MaPLe)
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clipvet import ranks
from clipvet.errors import UserError
from clipvet.models.adapter import OpenClip, clone
from clipvet.models.reading import Suffix, read, with_tail
from clipvet.models.visual_prompts import OnFrozen, beside, held, transformer, write
from clipvet.rng import Rng
from clipvet.types import Clip

PROMPTS = 4096  # class prompts that go through the text tower at once
LONG = 1024  # tokens: longer than any context, so that no class name is cut unnoticed
META = ("meta.0.weight", "meta.0.bias", "meta.2.weight", "meta.2.bias")
DEEP = ("deep.tokens", "deep.weight", "deep.bias")
POSITIONS = ("end", "middle", "front")  # of the class name: after the context, in its middle, before it


def tower(clip: Clip) -> Any:
    """The text tower of an open_clip model, if it can take learned context.

    Raises UserError unless it is a causal transformer that reads its end-of-text token.
    """
    model: Any = getattr(clip, "model", None)
    net = model if hasattr(model, "token_embedding") else getattr(model, "text", None)
    blocks = getattr(getattr(net, "transformer", None), "resblocks", [])
    fits = [isinstance(getattr(b, "attn", None), nn.MultiheadAttention) and b.attn.batch_first for b in blocks]
    causal = getattr(net, "attn_mask", None) is not None and getattr(net, "cls_emb", None) is None
    reads = getattr(net, "text_pool_type", getattr(net, "pool_type", ""))
    if not isinstance(clip, OpenClip) or not fits or not all(fits) or not causal or reads not in ("argmax", "eos"):
        raise UserError(
            "learned context needs an open_clip text transformer that is causal and reads its end-of-text token; tune "
            "this model's picture tower instead (vpt)"
        )
    return net


def tokens_of(clip: OpenClip, texts: Sequence[str]) -> tuple[Int[Tensor, "c l"], Int[Tensor, " c"]]:
    """Tokens of these texts, not cut to the context length, and the position of each end-of-text token."""
    net, tokens = tower(clip), clip.tokenizer(list(texts), context_length=LONG).to(clip.mean.device)
    ends = getattr(net, "text_eos_id", getattr(net, "eos_id", None))
    reads = getattr(net, "text_pool_type", getattr(net, "pool_type", ""))
    end = tokens.argmax(1) if reads == "argmax" else (tokens == ends).int().argmax(1)
    return tokens[:, : int(end.max()) + 1], end


class Deep(nn.Module):
    """MaPLe's prompts for the text tower's blocks 2 .. J, and the maps F that make the picture tower's prompts."""

    def __init__(self, tokens: Float[Tensor, "k m w"], weight: Float[Tensor, "j v w"], bias: Float[Tensor, "j v"]):
        """tokens: P_2 .. P_J, so k = J - 1. weight, bias: of F_1 .. F_J, from the text's width w to the pictures' v."""
        super().__init__()
        self.tokens, self.weight, self.bias = (nn.Parameter(x.detach().clone()) for x in (tokens, weight, bias))

    def pictures(self, context: Float[Tensor, "m w"]) -> Float[Tensor, "j m v"]:
        """The picture tower's prompts for the blocks 1 .. J. context: P_1."""
        every = torch.cat([context[None], self.tokens])
        return torch.einsum("jmw,jvw->jmv", every, self.weight) + self.bias[:, None]


class PromptTuned(OnFrozen):
    """A frozen open_clip model with learned class prompts. It is a `Clip` like any other.

    `encode_text` ignores the context. Only `classifier`, which `engine.embed.classifier` calls, puts it before class
    names; any names will do.
    """

    def __init__(
        self,
        base: OpenClip,
        context: Float[Tensor, "m w"],
        meta: nn.Module | None = None,
        classes: Sequence[str] = (),
        deep: Deep | None = None,
        position: str = "end",
    ):
        """meta: CoCoOp's meta-net, from picture embeddings (b, d) to (b, w). deep: MaPLe's prompts. classes: those that
        the prompts were tuned on. position: of the class name, of POSITIONS.

        Raises UserError if the prompts do not fit the base model.
        """
        super().__init__(base)
        self.kind = "maple" if deep is not None else "coop" if meta is None else "cocoop"  # the training that makes it
        width = tower(base).token_embedding.weight.shape[1]
        if context.ndim != 2 or context.shape[1] != width:
            raise UserError(
                f"context of shape {tuple(context.shape)} does not fit a text tower of width {width}; give the base "
                "model that it was learned on"
            )
        if deep is not None:
            _check_deep(deep, base, context)
        self.context, self.meta, self.deep = nn.Parameter(context.detach().clone()), meta, deep
        self.classes, self.position = tuple(classes), position
        if position not in POSITIONS or (position != "end" and self.kind != "coop"):
            raise UserError(f"position {position!r:.20} of {self.kind}; give {', '.join(POSITIONS)} for CoOp, else end")

    def encode_image(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Embeddings of length 1, of pictures with pixels in [0, 1]; with MaPLe's prompts if there are any."""
        if self.deep is None:
            return self.base.encode_image(images)
        made = self.deep.pictures(self.context)
        return ranks.cut(lambda x: beside(self.base, x, made), images)

    def suffix(self, classes: Sequence[str]) -> Suffix:
        """The part of these classes' prompts that is not learned, without the start of text.

        Raises UserError if there is no class, if a class is named twice, or if a name is too long for the text tower.
        """
        twice = sorted({c for c in classes if list(classes).count(c) > 1})
        if twice or not classes:
            wrong = f"name class '{twice[0]}' more than once" if twice else "are empty"
            raise UserError(f"the classes {wrong}; give each class one name of its own")
        net, m = tower(self.base), len(self.context)
        tokens, end = tokens_of(self.base, [f"{c}." for c in classes])
        tokens, end, most = tokens[:, 1:], end - 1, net.positional_embedding.shape[0]  # drop the start of text
        if (n := 1 + m + tokens.shape[1]) > most:
            raise UserError(
                f"class '{classes[int(end.argmax())]}' and {m} context tokens make {n} tokens, this text tower reads "
                f"{most}; give a shorter name or tune fewer tokens"
            )
        return Suffix(net.token_embedding(tokens), end, tokens_of(self.base, list(classes))[1] - 1)

    def text(self, suffix: Suffix, z: Float[Tensor, "b d"] | None = None) -> Float[Tensor, "... c d"]:
        """Embeddings of the class prompts, of length 1: (1, c, d), or with a meta-net (b, c, d).

        z: the pictures' embeddings, which a meta-net needs.
        """
        net, context = tower(self.base), self.context[None]
        suffix = Suffix(*(part.to(context.device) for part in suffix))
        if self.meta is not None:
            assert z is not None, "a meta-net reads the picture"
            context = context + self.meta(z)[:, None]
        start = net.token_embedding(tokens_of(self.base, [""])[0][:, :1]).expand(len(context), -1, -1)
        before = {"end": context.shape[1], "middle": context.shape[1] // 2, "front": 0}[self.position]
        if before < context.shape[1]:
            suffix = with_tail(suffix, context[0, before:])
        prefix, places = torch.cat([start, context[:, :before]], 1), net.positional_embedding
        p, deeper = prefix.shape[1], self.deep.tokens if self.deep is not None else ()
        w = read(net, prefix + places[:p], suffix._replace(h=suffix.h + places[p : p + suffix.h.shape[1]]), deeper)
        return F.normalize(w, dim=-1)

    def logits(self, z: Float[Tensor, "b d"], suffix: Suffix) -> Float[Tensor, "b c"]:
        """One logit for each picture and class, with gradient to z, the context and the meta-net.

        z: the pictures' embeddings. With a meta-net every picture has its own prompts; they are computed in parts.
        """
        if self.meta is None:
            return self.logit_scale * z @ self.text(suffix)[0].T

        def some(part: Tensor) -> Tensor:
            return self.logit_scale * torch.einsum("bd,bcd->bc", part, self.text(suffix, part).to(part.dtype))

        parts = z.split(max(1, PROMPTS // len(suffix.end)))
        again = len(parts) > 1 and torch.is_grad_enabled()  # keep the activations of one part at a time
        return torch.cat([checkpoint(some, p, use_reentrant=False) if again else some(p) for p in parts])  # pyright: ignore

    def classifier(self, classes: Sequence[str]) -> Callable[[Float[Tensor, "b d"]], Float[Tensor, "b c"]]:
        """A function from picture embeddings of length 1 to logits over these classes, which may be any.

        Without a meta-net the prompts are encoded once, here. Raises UserError as `suffix` does.
        """
        suffix = self.suffix(classes)
        if self.meta is not None:
            return lambda z: self.logits(z, suffix)
        w, s = self.text(suffix)[0].detach(), self.logit_scale.detach()
        return lambda z: s * z @ w.T


def begin(
    clip: Any, words: str, tokens: int, std: float, hidden: int | None, rng: Rng, depth: int | None = None
) -> PromptTuned:
    """The model with context that is still to be learned. A model that has learned context is copied as it is.

    words: the context starts as the embeddings of these words; empty: as `tokens` random vectors with standard
    deviation `std`. hidden: units of CoCoOp's meta-net; None: no meta-net. depth: J, the number of blocks with MaPLe's
    prompts, for which only the first `tokens` words are taken; None: no deep prompts.

    Raises UserError if the towers cannot take prompts, or not so many.
    """
    if isinstance(clip, PromptTuned):
        return clone(clip)
    net = tower(clip)
    width, d = net.token_embedding.weight.shape[1], clip.encode_text(["a"]).shape[1]
    device = clip.mean.device
    context = torch.randn(tokens, width, generator=rng.generator()) * std
    if words:
        said, end = tokens_of(clip, [words])  # pyright: ignore[reportArgumentType]
        context = net.token_embedding(said[0, 1 : int(end)])[: None if depth is None else tokens]
    deep = None if depth is None else _deep(clip, depth, len(context), width, std, rng.fork("deep")).to(device)
    meta = None if hidden is None else _meta(d, hidden, width, rng.fork("meta"))
    return PromptTuned(clip, context.to(device), meta and meta.to(device), deep=deep).eval()  # pyright: ignore[reportArgumentType]


def _check_deep(deep: Deep, base: OpenClip, context: Float[Tensor, "m w"]) -> None:
    """Raises UserError unless MaPLe's prompts fit both towers."""
    visual, j = transformer(base), len(deep.bias) if deep.bias.ndim else 0
    shapes = [tuple(p.shape) for p in (deep.tokens, deep.weight, deep.bias)]
    v, most = visual.class_embedding.shape[-1], len(visual.transformer.resblocks)
    if not 0 < j <= most or shapes != [(j - 1, *context.shape), (j, v, context.shape[1]), (j, v)]:
        raise UserError("the deep prompts do not fit this base model; give the one that they were learned on")


def _deep(clip: Any, depth: int, m: int, width: int, std: float, rng: Rng) -> Deep:
    """MaPLe's prompts with random weights."""
    blocks, v = len(transformer(clip).transformer.resblocks), transformer(clip).class_embedding.shape[-1]
    if not 0 < depth <= blocks:
        raise UserError(f"depth={depth} of {blocks} blocks; give a depth between 1 and {blocks}")
    tokens = torch.randn(depth - 1, m, width, generator=rng.generator()) * std
    weight, bias, bound = torch.empty(depth, v, width), torch.empty(depth, v), width**-0.5
    for k, p in enumerate((weight, bias)):  # as torch initialises a linear layer, but from rng
        nn.init.uniform_(p, -bound, bound, generator=rng.fork("maps", k).generator())
    return Deep(tokens, weight, bias)


def _meta(d: int, hidden: int, width: int, rng: Rng | None = None) -> nn.Module:
    """CoCoOp's meta-net with random weights."""
    meta = nn.Sequential(nn.Linear(d, hidden), nn.ReLU(), nn.Linear(hidden, width))
    for k, layer in enumerate((meta[0], meta[2])):
        for p in layer.parameters():  # as torch initialises them, but from rng
            bound = layer.in_features**-0.5  # pyright: ignore
            g = (rng or Rng(0)).fork(k, p.ndim).generator()
            nn.init.uniform_(p, -bound, bound, generator=g)  # pyright: ignore[reportArgumentType]
    return meta


def meta_net(tensors: Mapping[str, Tensor], d: int, width: int, where: str) -> nn.Module:
    """CoCoOp's meta-net from d to `width` numbers, with the tensors named in META.

    where: the file or folder they come from, for messages. Raises UserError if their shapes do not fit.
    """
    hidden = tensors[META[1]].numel()
    if [tuple(tensors[k].shape) for k in META] != [(hidden, d), (hidden,), (width, hidden), (width,)] or not hidden:
        raise UserError(f"the meta-net in {where} does not fit its base model; restore the file")
    meta = _meta(d, hidden, width)
    meta.load_state_dict({k.removeprefix("meta."): tensors[k] for k in META})
    return meta


def save(clip: PromptTuned, folder: Path, card: dict[str, Any]) -> str:
    """Write what was learned, with a card that names the base model. Returns the SHA-256 of the file of prompts."""
    tensors = {name: p.detach() for name, p in clip.named_parameters() if not name.startswith("base.")}
    if clip.position != "end":
        tensors["position"] = torch.tensor(float(POSITIONS.index(clip.position)))
    return write(clip, tensors, folder, {**card, "tokens": len(clip.context), "classes": list(clip.classes)})


def restore(folder: Path, base: OpenClip) -> PromptTuned:
    """The prompts of a folder, on their base model.

    Raises UserError, which names both hashes, if they belong to another base model; also if a file is damaged.
    """
    tensors, card = held(folder, base, ({"context"}, {"context", "position"}, {"context", *META}, {"context", *DEEP}))
    meta, deep = None, Deep(*(tensors[k] for k in DEEP)) if DEEP[0] in tensors else None
    if META[0] in tensors:
        meta = meta_net(tensors, base.encode_text(["a"]).shape[1], tensors["context"].shape[-1], str(folder))
    classes = card.get("classes", [])
    if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes):
        raise UserError(f"{folder / 'card.json'} does not list its classes by name; restore it")
    position = float(tensors.get("position", torch.zeros(())).sum())
    if position not in range(len(POSITIONS)):
        raise UserError(f"{folder} holds prompts with the class name at no known position; restore it")
    made = PromptTuned(base, tensors["context"], meta, classes, deep, POSITIONS[int(position)])
    return made.to(base.mean.device).eval()

"""Are two models the same? Checkpoints are compared by what they read, by their weights and by their features."""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from clipvet.models import tokenizers
from clipvet.models.adapter import OpenClip
from clipvet.rng import Rng
from clipvet.types import Geometry

SAID = ("a photo of a cat.", "Two  red CIRCLES, on a table", "")  # captions that tokenizers may treat differently


def apart(here: OpenClip, there: OpenClip) -> str:
    """In what two models differ; empty if they are the same."""
    from open_clip import SimpleTokenizer

    captions = not isinstance(there.tokenizer, tokenizers.Foreign) or there.tokenizer.files
    if captions and isinstance(here.tokenizer, SimpleTokenizer) and not isinstance(there.tokenizer, SimpleTokenizer):
        return "tokenizers"
    if captions and not torch.equal(here.tokenize(SAID), there.tokenize(SAID)):
        return "tokenizers"
    if not _alike(here.geometry, there.geometry) or not all(
        torch.allclose(a, b) for a, b in ((here.mean, there.mean), (here.std, there.std))
    ):
        return "preparations of pictures"
    ours, theirs = ({k.removeprefix("text."): v for k, v in c.model.state_dict().items()} for c in (here, there))
    if ours.keys() != theirs.keys() or not all(_rounded_alike(v, theirs[k]) for k, v in ours.items()):
        return "weights"
    return "" if difference(here, there) <= 1e-4 else "features"


def _rounded_alike(a: Tensor, b: Tensor) -> bool:
    """Whether both are the same numbers, or one of them the other, rounded to 16 bits."""
    if a.shape != b.shape or torch.equal(a, b):
        return a.shape == b.shape
    halves = [(x, y, t) for x, y in ((a, b), (b, a)) for t in (torch.float16, torch.bfloat16)]
    return any(torch.equal(x.to(t).to(x.dtype), y) for x, y, t in halves)


def reads_alike(clip: OpenClip, again: OpenClip) -> bool:
    """Whether both tokenise captions and prepare pictures in the same way."""
    tokenizes = getattr(clip.tokenizer, "files", True)  # a model may lack its tokenizer's files
    if tokenizes and not torch.equal(clip.tokenize(SAID), again.tokenize(SAID)):
        return False
    return _alike(again.geometry, clip.geometry) and torch.allclose(again.mean, clip.mean.cpu())


def _alike(one: Geometry, other: Geometry) -> bool:
    """Whether both are the same but for the library, each of which rounds and crops in its own way."""
    return replace(one, library=other.library) == other


@torch.no_grad()
def difference(here: OpenClip, there: OpenClip) -> float:
    """The largest difference of any feature, and of the temperature (relative)."""
    images, tokens = _inputs(here)
    far = [
        float((here.encode_image(images) - there.encode_image(images)).abs().max()),
        float((here.encode_text(tokens) - there.encode_text(tokens)).abs().max()),
        float((here.logit_scale - there.logit_scale).abs() / here.logit_scale),
    ]
    return max(far)


def _inputs(clip: OpenClip) -> tuple[Float[Tensor, "b 3 h w"], Int[Tensor, "b l"]]:
    """Random pictures and random tokens that fit the model."""
    g, text = Rng(0).generator(), clip.config["model_cfg"]["text_cfg"]
    coarse = torch.rand(4, 3, 4, 4, generator=g)  # a ResNet gives all pictures of fine noise the same embedding
    images = nn.functional.interpolate(coarse, (clip.geometry.size, clip.geometry.size))
    tokens = torch.randint(0, text["vocab_size"] - 2, (4, text["context_length"]), generator=g)
    tokens[:, -1] = text["vocab_size"] - 1
    return images, tokens

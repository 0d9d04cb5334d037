"""An open_clip model as a `Clip`, and copies of models."""

import copy
import logging
import re
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from clipvet import io, ranks
from clipvet.errors import UserError
from clipvet.types import Clip, Geometry

REMEMBERED = 2**16  # captions whose tokens are kept
MAX_SIDE = 4096  # pixels a side, of the pictures that a model takes
MAX_CAPTION = 2000  # characters; no model reads more, and byte-pair encoding takes time with their square
SPACES = re.compile(r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")  # one space to all


class Tokens:
    """A tokenizer that remembers what it has tokenised, as that is slow. All copies of a model share it."""

    def __init__(self, tokenizer: Any, known: int | None = None):
        """known: the number of tokens that the text tower has embeddings for; None: unknown."""
        self.tokenizer, self.known, self.rows = tokenizer, known, {}

    def __call__(self, captions: Sequence[str]) -> Int[Tensor, "b l"]:
        """One row of tokens for each caption. Raises UserError if the text tower lacks a token."""
        most = getattr(self.tokenizer, "most", MAX_CAPTION)
        captions = [c if len(c) <= most else _cut(c, most) for c in captions]
        distinct = list(dict.fromkeys(captions))
        new = [c for c in distinct if c not in self.rows]
        if len(self.rows) + len(new) > REMEMBERED:
            self.rows, new = {}, distinct
        if new:
            rows = self.tokenizer(new)
            if self.known is not None and (most := int(rows.max())) >= self.known:
                raise UserError(
                    f"the model's tokenizer gives token {most}, its text tower knows {self.known}; restore its "
                    "tokenizer's files"
                )
            self.rows.update(zip(new, rows))
        return torch.stack([self.rows[c] for c in captions]) if distinct else self.tokenizer([""])[:0]

    def __deepcopy__(self, memo: dict) -> "Tokens":
        return self


def _cut(caption: str, most: int) -> str:
    """The beginning of a caption that is far too long. Spaces are no text: thousands of them hide none of it."""
    return SPACES.sub(" ", caption).strip(" ")[:most]


class OpenClip(nn.Module):
    """An open_clip model as a `Clip`: takes pictures in [0, 1] and captions, gives embeddings of length 1."""

    def __init__(self, model: nn.Module, tokenizer: Any, config: dict[str, Any]):
        """config: {"model_cfg", "preprocess_cfg"}, as in open_clip_config.json.

        Raises UserError if the config asks for pictures that are not square, or prepared in an unknown way.
        """
        super().__init__()
        words = config.get("model_cfg", {}).get("text_cfg", {})
        known = words.get("vocab_size") if "hf_model_name" not in words else None
        self.model, self.config, self._tokens = model, config, Tokens(tokenizer, known)
        self.source = ""  # the name it was loaded by
        self.layout = "open_clip"  # that it is saved in
        self.files: dict[str, bytes] = {}  # of its layout, written back unchanged
        self.geometry = _geometry(config["preprocess_cfg"])
        mean, std = _colours(config["preprocess_cfg"])
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)

    @property
    def mean(self) -> Float[Tensor, "3 1 1"]:  # a property: Python 3.12 looks for a protocol's members on the class
        """The mean colour that normalisation subtracts, in [0, 1]."""
        return self.pixel_mean  # pyright: ignore[reportReturnType]

    @property
    def std(self) -> Float[Tensor, "3 1 1"]:
        """What normalisation divides by, after it has subtracted the mean."""
        return self.pixel_std  # pyright: ignore[reportReturnType]

    @property
    def tokenizer(self) -> Any:
        """The tokenizer itself, without memory: open_clip's, or a `tokenizers.Foreign`."""
        return self._tokens.tokenizer

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """The factor on cosines before the softmax, with gradient."""
        return self.model.logit_scale.exp().reshape(())  # pyright: ignore

    @property
    def logit_bias(self) -> Float[Tensor, ""] | None:
        """What the sigmoid loss adds to a logit, in models that were trained with it (SigLIP); None for CLIP."""
        bias = getattr(self.model, "logit_bias", None)
        return None if bias is None else bias.reshape(())

    def tokenize(self, captions: Sequence[str]) -> Int[Tensor, "b l"]:
        """One row of token ids for each caption, padded or cut to the context length."""
        return self._tokens(captions)

    def encode_image(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Embeddings of length 1, of pictures with pixels in [0, 1]."""
        return ranks.cut(lambda x: self.model.encode_image((x - self.mean) / self.std, normalize=True), images)  # pyright: ignore

    def encode_text(self, captions: Sequence[str] | Int[Tensor, "b l"]) -> Float[Tensor, "b d"]:
        """Embeddings of length 1, of captions given as strings or as tokens."""
        tokens = captions if isinstance(captions, Tensor) else self.tokenize(captions)
        return ranks.cut(lambda x: self.model.encode_text(x, normalize=True), tokens.to(self.mean.device))  # pyright: ignore


def _geometry(pre: dict[str, Any]) -> Geometry:
    size = pre["size"] if isinstance(pre["size"], Sequence) else [pre["size"]]
    if len(set(size)) != 1 or pre["resize_mode"] not in ("shortest", "squash"):
        raise UserError(f"pictures of size {size}, resized by {pre['resize_mode']}, are not supported; use square ones")
    if not isinstance(size[0], int) or not 0 < size[0] <= MAX_SIDE:
        raise UserError(f"pictures of {size[0]!r:.40} pixels a side are not supported; mend the model's config")
    if pre["interpolation"] not in ("bicubic", "bilinear", "random"):
        raise UserError(f"interpolation {pre['interpolation']!r:.40} is not supported; use bicubic or bilinear")
    return Geometry(size[0], pre["resize_mode"], pre["interpolation"])


def _colours(pre: dict[str, Any]) -> tuple[Float[Tensor, "3 1 1"], Float[Tensor, "3 1 1"]]:
    """The mean and std of normalisation."""
    try:
        mean, std = (torch.tensor(pre[k], dtype=torch.float32).reshape(3, 1, 1) for k in ("mean", "std"))
    except (TypeError, ValueError, RuntimeError) as e:
        raise UserError(f"the model's mean or std are not three numbers ({io.line(e)}); mend its config") from e
    if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
        raise UserError("the model's mean and std must be finite, and std positive; mend its config")
    if std.min() < 1e-4 or mean.abs().max() > 1e4:
        far = f"mean {mean.abs().max():.3g}, std {std.min():.3g}"
        raise UserError(f"the model's mean and std are for no pictures ({far}); mend its config")
    if mean.abs().max() > 2:
        logging.getLogger(__name__).warning(
            "the model's mean (%.4g) is subtracted from pixels in [0, 1], and seems to be for pixels up to 255; if so, "
            "divide mean and std by 255 in its config", float(mean.abs().max()),
        )  # fmt: skip
    return mean, std


def clone(clip: Clip) -> Any:
    """A copy of any Clip, to be trained. It shares the tokenizer, and the storage of weights that need no gradient."""
    held: Any = clip
    return copy.deepcopy(clip, {id(p): _still(p) for p in held.parameters() if not p.requires_grad})


def frozen(clip: Clip) -> Any:
    """The same model in eval mode, with weights that need no gradient. It shares their storage with `clip`."""
    held: Any = clip
    return copy.deepcopy(clip, {id(p): _still(p) for p in held.parameters()}).eval()  # pyright: ignore


def _still(p: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(p.detach(), requires_grad=False)

"""open_clip's models as a `Clip`."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from clipvet import io, ranks
from clipvet.errors import UserError
from clipvet.types import Clip, Geometry

REMEMBERED = 2**16  # captions
MAX_SIDE = 4096  # pixels of a model's pictures
MAX_CAPTION = 2000  # characters that are tokenised: more than any context holds, and byte pairs cost their square


class Tokens:
    """Caption -> row of tokens, remembered (tokenising is slow Python). All copies of a model share it."""

    def __init__(self, tokenizer: Any, known: int | None = None):
        """known: tokens that the text tower has an embedding for."""
        self.tokenizer, self.known, self.rows = tokenizer, known, {}

    def __call__(self, captions: Sequence[str]) -> Tensor:
        captions = [c[:MAX_CAPTION] for c in captions]
        distinct = list(dict.fromkeys(captions))
        new = [c for c in distinct if c not in self.rows]
        if len(self.rows) + len(new) > REMEMBERED:
            self.rows, new = {}, distinct
        if new:
            rows = self.tokenizer(new)
            if self.known is not None and (most := int(rows.max())) >= self.known:
                told = f"the model's tokenizer gives token {most}, its text tower knows {self.known}"
                raise UserError(f"{told}; restore its tokenizer's files")
            self.rows.update(zip(new, rows))
        return torch.stack([self.rows[c] for c in captions]) if distinct else self.tokenizer([""])[:0]

    def __deepcopy__(self, memo: dict) -> "Tokens":
        return self


class OpenClip(nn.Module):
    """An open_clip model as a `Clip`: pictures in [0, 1] and captions in, unit-length embeddings out."""

    def __init__(self, model: nn.Module, tokenizer: Any, config: dict[str, Any]):
        """config: {"model_cfg", "preprocess_cfg"}, as in open_clip_config.json."""
        super().__init__()
        words = config.get("model_cfg", {}).get("text_cfg", {})
        known = words.get("vocab_size") if "hf_model_name" not in words else None
        self.model, self.config, self._tokens = model, config, Tokens(tokenizer, known)
        self.source = ""  # whence it was loaded
        self.layout = "open_clip"  # in which it is saved
        self.files: dict[str, bytes] = {}  # of its layout, written back as they are
        pre = config["preprocess_cfg"]
        size = pre["size"] if isinstance(pre["size"], Sequence) else [pre["size"]]
        if len(set(size)) != 1 or pre["resize_mode"] not in ("shortest", "squash"):
            raise UserError(
                f"pictures of size {size}, resized by {pre['resize_mode']}, are not supported; use square ones"
            )
        if not isinstance(size[0], int) or not 0 < size[0] <= MAX_SIDE:
            raise UserError(f"pictures of {size[0]!r:.40} pixels a side are not supported; mend the model's config")
        if pre["interpolation"] not in ("bicubic", "bilinear", "random"):
            raise UserError(f"interpolation {pre['interpolation']!r:.40} is not supported; use bicubic or bilinear")
        try:
            mean, std = (torch.tensor(pre[k], dtype=torch.float32).reshape(3, 1, 1) for k in ("mean", "std"))
        except (TypeError, ValueError, RuntimeError) as e:
            raise UserError(f"the model's mean or std are not three numbers ({io.line(e)}); mend its config") from e
        if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
            raise UserError("the model's mean and std must be finite, and std positive; mend its config")
        self.geometry = Geometry(size[0], pre["resize_mode"], pre["interpolation"])
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)

    @property
    def mean(self) -> Float[Tensor, "3 1 1"]:  # a property, as Python 3.12 looks for a protocol's members on the class
        return self.pixel_mean  # pyright: ignore[reportReturnType]

    @property
    def std(self) -> Float[Tensor, "3 1 1"]:
        return self.pixel_std  # pyright: ignore[reportReturnType]

    @property
    def tokenizer(self) -> Any:
        """open_clip's own."""
        return self._tokens.tokenizer

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        return self.model.logit_scale.exp().reshape(())  # pyright: ignore

    @property
    def logit_bias(self) -> Float[Tensor, ""] | None:
        """Of models trained with the sigmoid loss (SigLIP); None for CLIP's own."""
        bias = getattr(self.model, "logit_bias", None)
        return None if bias is None else bias.reshape(())

    def tokenize(self, captions: Sequence[str]) -> Int[Tensor, "b l"]:
        return self._tokens(captions)

    def encode_image(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        return ranks.cut(lambda x: self.model.encode_image((x - self.mean) / self.std, normalize=True), images)  # pyright: ignore

    def encode_text(self, captions: Sequence[str] | Int[Tensor, "b l"]) -> Float[Tensor, "b d"]:
        tokens = captions if isinstance(captions, Tensor) else self.tokenize(captions)
        return ranks.cut(lambda x: self.model.encode_text(x, normalize=True), tokens.to(self.mean.device))  # pyright: ignore


def clone(clip: Clip) -> Any:
    """A copy to be trained, of any Clip. Shared: the tokenizer, and the storage of weights that need no gradient."""
    held: Any = clip
    return copy.deepcopy(clip, {id(p): _still(p) for p in held.parameters() if not p.requires_grad})


def frozen(clip: Clip) -> Any:
    """The same model in eval mode, whose weights need no gradient and lie in the given one's storage."""
    held: Any = clip
    return copy.deepcopy(clip, {id(p): _still(p) for p in held.parameters()}).eval()  # pyright: ignore


def _still(p: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(p.detach(), requires_grad=False)

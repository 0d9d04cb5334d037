"""Models as scripts hold them become a `Clip`: a path or name, open_clip's model, or transformers'."""

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch

from clipvet.errors import UserError
from clipvet.models import building, checkpoints, comparing
from clipvet.models.adapter import OpenClip
from clipvet.models.weights import fill
from clipvet.rng import Rng
from clipvet.types import Clip

FAR = 1e-4  # largest difference of a feature to the model that is built anew from its shape
FORMS = "a path or name, (model, preprocess, tokenizer) of open_clip's, or (CLIPModel, CLIPProcessor) of transformers'"


def load(
    model: Any,
    pretrained: str | Path | None = None,
    device: str | torch.device = "cpu",
    rng: Rng | None = None,
    quick_gelu: bool = False,
    weights: bool = True,
) -> Any:
    """A model in eval mode, ready for every other verb. Nothing of a checkpoint's own code is run.

    model: one of these:

    - a path (str or Path) of a folder in open_clip's or transformers' layout, of a folder of prompts, or of a file with
      OpenAI's state dict; or a name (`ViT-B-32`, `shapes-vit`, `hf-hub:REPO`), as for --model of the command line;
    - `(model, preprocess, tokenizer)`, as `open_clip.create_model_from_pretrained` and `get_tokenizer` give them;
    - `(CLIPModel, CLIPProcessor)` of transformers, or SigLIP's; they are saved and read back, so that pictures and
      captions are prepared as they say;
    - a `Clip`, which is returned as it is.

    pretrained: with an architecture's name, a file of weights or a tag of open_clip's. rng: draws the weights of an
    architecture without any; default Rng(0). quick_gelu: OpenAI's activation, for a bare file. weights: False keeps
    random weights.

    Returns a `clipvet.Clip`: `encode_image` takes pixels (b, 3, h, w) in [0, 1], `encode_text` captions; both give
    embeddings (b, d) of length 1.

    Raises UserError, with one sentence that names the way out, if there is no such model, if its weights do not fit, or
    if a stock library would deploy something else.

        >>> import clipvet
        >>> clipvet.load("shapes-vit").geometry.size
        32
    """
    if isinstance(model, str | Path):
        return checkpoints.load(
            str(model), None if pretrained is None else str(pretrained), device, rng, quick_gelu, weights
        )
    if isinstance(model, Clip):
        return model
    parts: Any = list(model) if isinstance(model, tuple | list) else [model]
    if len(parts) == 2 and hasattr(parts[0], "config") and hasattr(parts[1], "save_pretrained"):
        return _from_transformers(parts[0], parts[1], device)
    if len(parts) == 3 and hasattr(parts[0], "encode_image") and callable(parts[1]) and callable(parts[2]):
        return _from_open_clip(parts[0], parts[1], parts[2], device)
    raise UserError(f"a {type(model).__name__} is no model that can be read; give {FORMS}")


def _from_transformers(net: Any, processor: Any, device: Any) -> Clip:
    with tempfile.TemporaryDirectory() as folder:
        net.save_pretrained(folder)
        processor.save_pretrained(folder)
        return checkpoints.load(f"transformers:{folder}", device=device)


def _from_open_clip(net: Any, preprocess: Any, tokenizer: Any, device: Any) -> Clip:
    """A copy of the model, its pictures prepared as `preprocess` says."""
    from clipvet.models.layouts import _openai_cfg

    try:
        config = _openai_cfg(net.state_dict())
        if hasattr(net.visual, "transformer"):
            heads = net.visual.transformer.resblocks[0].attn.num_heads
            config["vision_cfg"]["head_width"] = config["vision_cfg"]["width"] // heads
            config["vision_cfg"]["mlp_ratio"] = _ratio(net.visual.transformer.resblocks[0])
        config["text_cfg"]["heads"] = net.transformer.resblocks[0].attn.num_heads
        config["text_cfg"]["mlp_ratio"] = _ratio(net.transformer.resblocks[0])
    except (AttributeError, KeyError, IndexError, ZeroDivisionError, ValueError) as e:
        raise UserError(
            f"this {type(net).__name__} is no CLIP of open_clip's plain shape ({type(e).__name__}: {e}); save it and "
            "give its folder, or give its name"
        ) from e
    config["quick_gelu"] = any(type(m).__name__ == "QuickGELU" for m in net.modules())
    told = {"model_cfg": config, "preprocess_cfg": _prepared(preprocess)}
    made = OpenClip(copy.deepcopy(net).float().cpu(), tokenizer, told).eval()
    state = dict(made.model.state_dict())
    again = building.configured(told, "cpu", None, state, "the model", tokenizer)
    fill(again.model, state, Path("the model"), "its shape")
    if not comparing.difference(made, again) <= FAR:
        raise UserError(
            f"this {type(net).__name__} computes in another way than its shape says; save it with its config and give "
            "its folder"
        )
    return building.onto(made, device)


def _ratio(block: Any) -> float:
    return block.mlp.c_fc.out_features / block.mlp.c_fc.in_features


def _prepared(preprocess: Any) -> dict[str, Any]:
    """open_clip's preprocess_cfg of its evaluation transform. Raises UserError for another transform."""
    from torchvision.transforms import CenterCrop, Normalize, Resize

    steps = list(getattr(preprocess, "transforms", []))
    found = {type(s): s for s in steps}
    known = {
        "Resize",
        "CenterCrop",
        "ToTensor",
        "Normalize",
        "MaybeToTensor",
        "MaybeConvertMode",
        "function",
        "_convert_to_rgb",
        "PILToTensor",
    }
    odd = [type(s).__name__ for s in steps if type(s).__name__ not in known]
    if Resize not in found or Normalize not in found or odd:
        raise UserError(
            f"this preprocess is no evaluation transform of open_clip's ({', '.join(odd) or 'no Resize or Normalize'});"
            " give the one that create_model_from_pretrained returns"
        )
    size = found[CenterCrop].size if CenterCrop in found else found[Resize].size
    side = size[0] if isinstance(size, tuple | list) else size
    shortest = isinstance(found[Resize].size, int) or len(found[Resize].size) == 1
    return {
        "size": side, "mode": "RGB", "mean": list(map(float, found[Normalize].mean)), "fill_color": 0,
        "std": list(map(float, found[Normalize].std)), "resize_mode": "shortest" if shortest else "squash",
        "interpolation": found[Resize].interpolation.value,
    }  # fmt: skip

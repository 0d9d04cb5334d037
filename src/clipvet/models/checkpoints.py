"""CLIP models: an adapter over open_clip. Architectures are open_clip's, weights come in through io.load_weights.

A model on disk is a folder which stock open_clip loads as `local-dir:PATH`, or one of another layout (`layouts`), plus
a card:

    open_clip_config.json            model_cfg, preprocess_cfg
    open_clip_model.safetensors      weights
    card.json                        where they come from; weights_sha256
"""

import copy
import difflib
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clipvet import io
from clipvet.errors import UserError
from clipvet.models import gate, layouts, siglip, tokenizers
from clipvet.models.adapter import OpenClip, Tokens, frozen
from clipvet.models.weights import WEIGHTS, check_card, check_size, config_hash, file_for, fill, no_more_than, quiet
from clipvet.rng import Rng
from clipvet.types import Clip

CONFIGS = Path(__file__).parent / "configs"
TOKENIZER = ("clean", "language", "reduction_mask", "strip_sep_token")  # a tokenizer's options that load nothing


def fresh(clip: Clip, rng: Rng) -> OpenClip:
    """A model of the same architecture and geometry with new random weights. UserError for anything but an OpenClip."""
    if not isinstance(clip, OpenClip):
        raise UserError(f"a {type(clip).__name__} cannot be built anew; give an open_clip model")
    made = _built(clip.config, clip.mean.device, rng, {}, "the model")
    made._tokens, made.layout, made.files = clip._tokens, clip.layout, clip.files
    return made


def _built(
    config: dict[str, Any], device: str | torch.device, rng: Rng | None, state: dict[str, Tensor], model: str
) -> OpenClip:
    """With random weights and CLIP's own tokenizer. UserError where it is far larger than `state`, if there is one."""
    text = {
        k: v for k, v in config["model_cfg"]["text_cfg"].items() if k not in ("hf_tokenizer_name", "tokenizer_mode")
    }
    with tempfile.TemporaryDirectory() as folder:
        told = config | {"model_cfg": config["model_cfg"] | {"text_cfg": text | {"tokenizer_kwargs": {}}}}
        io.write_json(Path(folder) / "open_clip_config.json", told)
        made = _made(f"local-dir:{folder}", model, rng, False, {}, state)
    made.config = config
    return _onto(made, device)


def _restored(stored: layouts.Stored, device: str | torch.device, rng: Rng | None, weights: bool) -> OpenClip:
    """A model of another layout than open_clip's."""
    folder = stored.path if stored.path.is_dir() else stored.path.parent
    if weights and len(stored.weights) == 1:
        check_card(stored.weights[0], folder / "card.json")
    state = layouts.state_of(stored) if weights else {}
    if weights and layouts.too_large(stored.config, state):
        raise UserError(f"{stored.path} describes a far larger model than its weights are; restore its config")
    clip = _built(stored.config, "cpu", rng, state, str(stored.path))
    tokenizer = tokenizers.made_of(stored.files, stored.config["model_cfg"]["text_cfg"], stored.kind == "clip")
    if weights:
        fill(clip.model, state, stored.weights[0], str(stored.path))
    clip._tokens = Tokens(tokenizer, stored.config["model_cfg"]["text_cfg"]["vocab_size"])
    clip.layout, clip.files = stored.layout, stored.files
    clip.source = ("transformers:" if stored.layout == "transformers" else "") + str(stored.path.resolve())
    return _onto(clip, device)


def _onto(clip: OpenClip, device: str | torch.device) -> OpenClip:
    try:
        return clip.to(device).eval()
    except (RuntimeError, AssertionError) as e:
        raise UserError(f"device {device} cannot be used ({str(e).splitlines()[0]}); use cpu") from e


def _exists_by_name(model: str) -> bool:
    import open_clip

    return model.replace("/", "-") in open_clip.list_models()


def _named(model: str) -> str:
    """The name by which open_clip knows it: one of its architectures (or ours), local-dir:PATH or hf-hub:NAME."""
    import open_clip

    if "shapes-vit" not in open_clip.list_models():
        open_clip.add_model_config(CONFIGS)
    if model.startswith(("local-dir:", "hf-hub:")):
        name = model
    elif _exists_by_name(model):
        return model.replace("/", "-")
    else:
        name = f"local-dir:{model}"
    if name.startswith("local-dir:") and not (Path(name[10:]) / "open_clip_config.json").is_file():
        near = difflib.get_close_matches(model, open_clip.list_models(), n=3)
        meant = f" (close: {', '.join(near)})" if near else ""
        raise UserError(
            f"no model {model}{meant}; give an open_clip name, hf-hub:NAME, a folder with open_clip_config.json or of "
            "transformers' layout, or a state dict of OpenAI's"
        )
    return name


def load(
    model: str,
    pretrained: str | None = None,
    device: str | torch.device = "cpu",
    rng: Rng | None = None,
    quick_gelu: bool = False,
    weights: bool = True,
) -> Any:
    """A model in eval mode: an `OpenClip`; where a folder holds prompts, `prompts.Prompted` or `context.PromptTuned`.

    model: an open_clip name (ViT-B-32, RN50, ...) or one of ours (shapes-vit, shapes-rn, shapes-vit-deep), with random
    weights drawn from `rng` (Rng(0) if none) or those of `pretrained`, a weights file or open_clip tag; or a folder
    with open_clip_config.json, with or without `local-dir:` before it; or a folder of transformers' layout
    (`transformers:PATH` where a folder holds both) or a file of OpenAI's; or `hf-hub:NAME`. Tags and hf-hub use the
    network. quick_gelu: for OpenAI's activation where the config does not say so itself; PAR's checkpoints need it.
    weights: False leaves the random ones, also where the folder holds others.

    Raises UserError when there is no such model or its weights do not fit to the last key and shape.
    """
    import open_clip

    if (folder := Path(model.removeprefix("local-dir:")) / "prompts.safetensors").is_file():
        return _prompted(folder.parent, device)
    known = _exists_by_name(model)
    if known and any((Path(model) / name).is_file() for name in ("open_clip_config.json", "config.json")):
        raise UserError(f"{model} is an architecture and a folder too; write local-dir:{model} for the folder")
    if not known and (other := layouts.find(model)):
        if pretrained:
            raise UserError(f"{model} brings its own weights; drop pretrained={pretrained}")
        return _restored(other, device, rng, weights)
    name = _named(model)
    stored = name.startswith(("local-dir:", "hf-hub:"))
    if stored and pretrained:
        raise UserError(f"{model} brings its own weights; drop pretrained={pretrained}")
    file = bool(pretrained) and Path(str(pretrained)).is_file()
    tag = _released(name) if file else open_clip.get_pretrained_cfg(name, pretrained) if pretrained else {}
    quick_gelu = quick_gelu or (not file and bool(tag.get("quick_gelu")))
    path = file_for(name, pretrained, {} if file else tag) if weights else None
    state = io.load_weights(path) if path else {}
    if file and {*layouts.NUMBERS} <= {*state}:
        raise UserError(f"{pretrained} says itself what it is (OpenAI's layout); give it as the model, without a name")
    if path and name.startswith("local-dir:"):
        check_size(Path(name[10:]), state)
    clip = _made(name, model, rng, quick_gelu, tag, state if stored else {})
    if path:
        fill(clip.model, state, path, model)
    clip.source = str(Path(name[10:]).resolve()) if name.startswith("local-dir:") else name
    return _onto(clip, device)


def _released(name: str) -> dict[str, Any]:
    """What all released weights of an architecture say alike of their pictures: a bare file says nothing of them."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    told = [open_clip.get_pretrained_cfg(name, t) for t in tags]
    same = ("mean", "std", "interpolation", "resize_mode")
    return {k: told[0][k] for k in same if told and k in told[0] and all(t.get(k) == told[0][k] for t in told)}


def _made(name: str, model: str, rng: Rng | None, quick_gelu: bool, tag: dict, state: dict[str, Tensor]) -> OpenClip:
    """With random weights. state: those that a foreign config is to fit; UserError where it describes far more."""
    import open_clip
    from open_clip import factory

    def build(device: str) -> nn.Module:
        return open_clip.create_model(
            name,
            device=device,
            load_weights=False,
            pretrained_text=False,
            force_quick_gelu=quick_gelu,
            force_preprocess_cfg=factory.merge_preprocess_dict({}, tag),
        )  # pyright: ignore[reportReturnType]

    with quiet(), torch.random.fork_rng(devices=[]):
        try:
            config: Any = factory.get_model_config(name)
            _check_code(config, model)
            siglip.register(_timm_name(config))
            if state:  # without memory first, as a tensor is only counted once it is there
                try:
                    with no_more_than(state, model), torch.device("meta"):
                        build("meta")
                except UserError:
                    raise
                except Exception:  # not every tower can be built so; it is counted again
                    pass
            # open_clip's initialisers draw from the global stream: it is forked and seeded here, and nowhere else
            torch.default_generator.manual_seed((rng or Rng(0)).key)  # the CPU's: torch.manual_seed seeds GPUs too
            with no_more_than(state, model) if state else nullcontext():
                net: Any = build("cpu")
            # True would run the folder's code, and None ask the user whether to
            untrusting: Any = {"trust_remote_code": False} if config["text_cfg"].get("hf_tokenizer_name") else {}
            tokenizer = open_clip.get_tokenizer(name, **untrusting)
        except UserError:
            raise
        except Exception as e:  # whatever a config can get wrong, or the network
            told = str(e).splitlines() or [type(e).__name__]
            raise UserError(
                f"{model} cannot be built ({told[0][:160]}); check its open_clip_config.json, or the connection"
            ) from e
    if quick_gelu:
        config["quick_gelu"] = True
    return OpenClip(net, tokenizer, {"model_cfg": config, "preprocess_cfg": dict(net.visual.preprocess_cfg)})


def _check_code(config: Any, model: str) -> None:
    """UserError where the config would have transformers run code beside the weights, or ask whether to."""
    text = config.get("text_cfg") if isinstance(config, dict) else None
    if not isinstance(text, dict):
        return
    options = text.get("tokenizer_kwargs", {})
    if not isinstance(options, dict) or any(
        k not in TOKENIZER or not isinstance(v, str | bool) for k, v in options.items()
    ):
        raise UserError(
            f"{model} sets more of its tokenizer than {', '.join(TOKENIZER)} ({options!r:.80}); take that out of "
            "tokenizer_kwargs in its open_clip_config.json"
        )
    if name := text.get("hf_model_name"):
        from transformers import PretrainedConfig  # pyright: ignore[reportMissingImports]

        if gate.asks_for_code(PretrainedConfig.get_config_dict(name)[0]):
            raise UserError(f"{model} has a text tower of {name}, which brings its own code; give a model without")


def _timm_name(config: Any) -> str:
    """Of the vision tower, where timm builds it."""
    vision = config.get("vision_cfg") if isinstance(config, dict) else None
    return str(vision.get("timm_model_name") or "") if isinstance(vision, dict) else ""


def _prompted(folder: Path, device: str | torch.device) -> Any:
    """The prompts of a folder on their base model: its own copy in base/, or the one that its card names."""
    from clipvet.models import class_prompts, visual_prompts

    card = io.read_json(folder / "card.json") if (folder / "card.json").is_file() else {}
    if not isinstance(card, dict):
        raise UserError(f"{folder / 'card.json'} is no object, and so no card; restore it")
    base = str(folder / "base" if (folder / "base").is_dir() else card.get("base", ""))
    try:
        if (Path(base.removeprefix("local-dir:")) / visual_prompts.FILE).is_file():
            raise UserError(f"{base} holds prompts too")
        found = load(base, device=device)
    except (UserError, OSError) as e:  # OSError: a name that is too long
        raise UserError(
            f"{folder} holds prompts without their base model ({e!s:.400}); put it into {folder / 'base'}"
        ) from e
    kind = class_prompts if "context" in io.load_weights(folder / visual_prompts.FILE) else visual_prompts
    return kind.restore(folder, found)


def save(clip: Clip, folder: Path, card: dict[str, Any]) -> str:
    """Write the model as a folder of its layout, for stock open_clip unless it came in another, with its card.

    card: role, parent's hash, method and its repr, data, seed, versions, measured numbers: written as it is, with
    `weights_sha256` and `config_sha256` added. Returns the weights' SHA-256.
    """
    from open_clip.tokenizer import HFTokenizer

    from clipvet.models import class_prompts, visual_prompts

    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(clip, class_prompts.PromptTuned):
        return class_prompts.save(clip, folder, card)
    if isinstance(clip, visual_prompts.Prompted):
        return visual_prompts.save(clip, folder, card)
    if not isinstance(clip, OpenClip):
        raise UserError(f"a {type(clip).__name__} has no open_clip layout to be saved in; save an OpenClip")
    if clip.layout == "open_clip":
        config, weights = layouts.to_open_clip(clip, folder), folder / WEIGHTS
        if isinstance(clip.tokenizer, HFTokenizer):
            clip.tokenizer.save_pretrained(folder)  # stock open_clip looks for it there
        io.save_weights(clip.model.state_dict(), weights)
        io.write_json(folder / "open_clip_config.json", config)
    else:
        weights = layouts.write(clip, folder)
    digest = io.sha256(weights)
    io.write_json(folder / "card.json", {**card, "weights_sha256": digest, "config_sha256": config_hash(folder)})
    return digest


class Converted(NamedTuple):
    sha256: str  # of the weights
    difference: float  # largest, of any feature


def convert(clip: Clip, layout: str, folder: Path, card: dict[str, Any], tolerance: float = 1e-4) -> Converted:
    """Write the model in another layout, read it back and compare features of random pictures and tokens.

    Raises UserError where the layout cannot hold the model, or what was read back differs by more than `tolerance`.
    """
    if layout not in layouts.LAYOUTS:
        raise UserError(f"no layout '{layout}'; have {', '.join(layouts.LAYOUTS)}")
    if not isinstance(clip, OpenClip):
        raise UserError("prompts have no other layout; convert the base model that they stand on")
    twin = copy.copy(clip)
    if layout != clip.layout:
        twin.layout, twin.files = layout, {}
    digest = save(twin, folder, card)
    again, g = load(str(folder)), Rng(0).generator()
    coarse = torch.rand(4, 3, 4, 4, generator=g)  # fine noise looks all alike to a ResNet
    images = nn.functional.interpolate(coarse, (clip.geometry.size, clip.geometry.size))
    text = clip.config["model_cfg"]["text_cfg"]
    tokens = torch.randint(0, text["vocab_size"] - 2, (4, text["context_length"]), generator=g)
    tokens[:, -1] = text["vocab_size"] - 1
    said = ["a photo of a cat.", "Two  red CIRCLES, on a table", ""]
    own = clip.tokenizer
    if (getattr(own, "files", True) and not torch.equal(clip.tokenize(said), again.tokenize(said))) or (
        again.geometry != clip.geometry or not torch.allclose(again.mean, clip.mean.cpu())
    ):
        raise UserError(f"{layout} would read captions or pictures otherwise than {clip.layout}; keep that layout")
    with torch.no_grad():
        here, there = frozen(clip).to("cpu"), again
        far = [
            float((here.encode_image(images) - there.encode_image(images)).abs().max()),
            float((here.encode_text(tokens) - there.encode_text(tokens)).abs().max()),
            float((here.logit_scale - there.logit_scale).abs() / here.logit_scale),
        ]
    if not max(far) <= tolerance:
        raise UserError(f"in {layout}'s layout the features differ by {max(far):.1e} (more than {tolerance:.0e}); keep "
                        f"{clip.layout}'s")  # fmt: skip
    return Converted(digest, max(far))

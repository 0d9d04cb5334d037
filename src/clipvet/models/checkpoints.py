"""Loading and saving models, in every layout.

A model on disk is a folder in one of the layouts (see `layouts.py`), with a card. In open_clip's layout, which stock
open_clip loads as `local-dir:PATH`, these are its files:

    open_clip_config.json            model_cfg, preprocess_cfg
    open_clip_model.safetensors      weights
    card.json                        where they come from; weights_sha256, config_sha256

Architectures are open_clip's. Weights are read by `io.load_weights`, which runs no code.
"""

import copy
import difflib
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from clipvet import io
from clipvet.errors import UserError
from clipvet.models import building, comparing, deployed, layouts, released, tokenizers, wrappers
from clipvet.models.adapter import OpenClip, Tokens, frozen
from clipvet.models.weights import TOO_LARGE, WEIGHTS, check_card, check_size, config_hash, file_for, fill, too_large
from clipvet.rng import Rng
from clipvet.types import Clip

CONFIGS = Path(__file__).parent / "configs"  # of the built-in architectures
FAR = {None: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # largest change of a feature, by kind of rounding


def load(
    model: str,
    pretrained: str | None = None,
    device: str | torch.device = "cpu",
    rng: Rng | None = None,
    quick_gelu: bool = False,
    weights: bool = True,
) -> Any:
    """A model in eval mode: an `OpenClip`, or a model with learned prompts if the folder holds prompts.

    model: one of these:

    - a folder in any layout, with or without `local-dir:` before it. If a folder holds open_clip's layout and
      transformers', both must be the same model, or `local-dir:PATH` or `transformers:PATH` says which one is meant;
    - a file with OpenAI's state dict;
    - a name of open_clip's (ViT-B-32, RN50 ...) or a built-in one (shapes-vit, shapes-rn, shapes-vit-deep), with the
      weights of `pretrained`, which is a weights file or a tag of open_clip's, or with random ones from `rng` (Rng(0)).
      `ViT-B-32:TAG` reads the file as that release was trained: its colours and activation. `ViT-B-32:mean=0.5,
      std=0.25,quick-gelu=yes` says them outright;
    - `hf-hub:NAME`. This, and open_clip's tags, use the network.

    quick_gelu: use OpenAI's activation, if the config does not say so itself; PAR's checkpoints need it. weights: False
    keeps the random weights, even if the folder holds others.

    Raises UserError if there is no such model, or if its weights do not fit in every key and shape.
    """
    import open_clip

    if (folder := Path(model.removeprefix("local-dir:")) / "prompts.safetensors").is_file():
        return _prompted(folder.parent, device)
    _register()
    file = bool(pretrained) and Path(str(pretrained)).is_file()
    model, said = released.split(model, file)
    known = _exists_by_name(model)
    if known and any((Path(model) / name).is_file() for name in ("open_clip_config.json", "config.json")):
        raise UserError(f"{model} is an architecture and a folder too; write local-dir:{model} for the folder")
    if not known:
        _check_folder(model)
        if weights and not pretrained and deployed.two_layouts(Path(model)):
            return _agreed(Path(model), device, rng)
    other = None if known else layouts.find(model)
    name = model if other else _named(model)
    if pretrained and (other or _stored(name)):
        raise UserError(f"{model} brings its own weights; drop pretrained={pretrained}")
    if other:
        return _restored(other, device, rng, weights)
    if file:
        tag, quick_gelu = released.facts(name, said, str(pretrained), quick_gelu)
    else:
        tag = open_clip.get_pretrained_cfg(name, pretrained) if pretrained else {}
    quick_gelu = quick_gelu or (not file and bool(tag.get("quick_gelu")))
    path = file_for(name, pretrained, {} if file else tag) if weights else None
    state = wrappers.state_in(path) if path else {}
    if file and {*layouts.NUMBERS} <= {*state}:
        raise UserError(f"{pretrained} says itself what it is (OpenAI's layout); give it as the model, without a name")
    if path and name.startswith("local-dir:"):
        check_size(Path(name[10:]), state)
    clip = building.named(name, model, rng, quick_gelu, tag, state if _stored(name) else {})
    if path:
        fill(clip.model, state, path, model)
    clip.source = str(Path(name[10:]).resolve()) if name.startswith("local-dir:") else name
    return building.onto(clip, device)


def _register() -> None:
    """Make the built-in architectures known to open_clip."""
    import open_clip

    if "shapes-vit" not in open_clip.list_models():
        open_clip.add_model_config(CONFIGS)


def _check_folder(model: str) -> None:
    """Raises UserError if the model is a folder with something in it that stock libraries read and clipvet does not."""
    kind, _, path = model.rpartition(":") if model.startswith(("transformers:", "local-dir:")) else ("", "", model)
    if (folder := Path(path)).is_dir():
        named = "open_clip" if kind == "local-dir" and (folder / "open_clip_config.json").is_file() else ""
        deployed.check(folder, named or kind.removeprefix("local-dir"))


def _exists_by_name(model: str) -> bool:
    import open_clip

    return model.replace("/", "-") in open_clip.list_models()


def _stored(name: str) -> bool:
    """Whether the name means a checkpoint, which has its own weights, and not an architecture."""
    return name.startswith(("local-dir:", "hf-hub:"))


def _named(model: str) -> str:
    """The name by which open_clip knows the model: an architecture, `local-dir:PATH` or `hf-hub:NAME`.

    Raises UserError if there is no such model.
    """
    import open_clip

    if _stored(model):
        name = model
    elif _exists_by_name(model):
        return model.replace("/", "-")
    else:
        name = f"local-dir:{model}"
    if name.startswith("local-dir:") and not (Path(name[10:]) / "open_clip_config.json").is_file():
        if any(Path(name[10:]).glob("*.distcp")):
            way = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch DIR FILE"
            raise UserError(f"{model} is a distributed checkpoint of torch's; make one file of it: {way}")
        near = difflib.get_close_matches(model, open_clip.list_models(), n=3)
        meant = f" (close: {', '.join(near)})" if near else ""
        raise UserError(
            f"no model {model}{meant}; give an open_clip name, hf-hub:NAME, a folder with open_clip_config.json or in "
            "transformers' layout, or a state dict of OpenAI's"
        )
    return name


def _agreed(folder: Path, device: str | torch.device, rng: Rng | None) -> Any:
    """open_clip's model of a folder that holds transformers' too. Raises UserError unless both are the same model."""
    which = f"say which one is deployed: local-dir:{folder} or transformers:{folder}"
    clip = load(f"local-dir:{folder}", rng=rng)
    try:
        other: Any = layouts.find(f"transformers:{folder}")
        twin = _restored(other, "cpu", rng, weights=True, card=False)
    except UserError as e:
        raise UserError(
            f"{folder} holds open_clip's model, and for transformers another one that cannot be compared with it "
            f"({e!s:.300}); {which}"
        ) from e
    if apart := comparing.apart(clip, twin):
        raise UserError(f"{folder} holds two models, open_clip's and transformers', whose {apart} differ; {which}")
    return building.onto(clip, device)


def _restored(
    stored: layouts.Stored, device: str | torch.device, rng: Rng | None, weights: bool, card: bool = True
) -> OpenClip:
    """The model of a checkpoint in another layout than open_clip's. card: whether its card must describe it."""
    folder = stored.path if stored.path.is_dir() else stored.path.parent
    if weights and card:
        check_card(stored.weights[0] if len(stored.weights) == 1 else None, folder / "card.json")
    state = layouts.state_of(stored) if weights else {}
    if weights and too_large(stored.config, state):
        raise UserError(f"{stored.path} {TOO_LARGE}; restore its config")
    text = stored.config["model_cfg"]["text_cfg"]
    theirs = stored.layout == "transformers"
    tokenizer = tokenizers.made_of(stored.files, text, stored.kind == "clip") if theirs else None
    clip = building.configured(stored.config, "cpu", rng, state, str(stored.path), tokenizer)
    if weights:
        fill(clip.model, state, stored.weights[0], str(stored.path))
    clip._tokens = Tokens(clip.tokenizer, text["vocab_size"])
    clip.layout, clip.files, clip.source = stored.layout, stored.files, stored.source
    if theirs:
        clip.geometry = replace(clip.geometry, library="transformers")
    return building.onto(clip, device)


def _prompted(folder: Path, device: str | torch.device) -> Any:
    """The prompts of a folder, on their base model: the copy in base/, or else the model that the card names."""
    from clipvet.models import class_prompts, visual_prompts

    deployed.check_prompts(folder)
    card = io.read_json(folder / "card.json") if (folder / "card.json").is_file() else {}
    if not isinstance(card, dict):
        raise UserError(f"{folder / 'card.json'} is not a JSON object, so it is no card; restore it")
    base = str(folder / "base" if (folder / "base").is_dir() else card.get("base", ""))
    try:
        if (Path(base.removeprefix("local-dir:")) / visual_prompts.FILE).is_file():
            raise UserError(f"{base} holds prompts too")
        found = load(base, device=device)
    except (UserError, OSError) as e:  # OSError: the name is too long for a path
        raise UserError(
            f"{folder} holds prompts without their base model ({e!s:.400}); put the base model into {folder / 'base'}"
        ) from e
    kind = class_prompts if "context" in io.load_weights(folder / visual_prompts.FILE) else visual_prompts
    return kind.restore(folder, found)


def save(clip: Clip, folder: Path, card: dict[str, Any], dtype: torch.dtype | None = None) -> str:
    """Write the model and its card into a folder, in the layout that the model came in. Returns the weights' SHA-256.

    card: what card.json shall say: role, parent's hash, method and its repr, data, seed, versions, measured numbers.
    `weights_sha256` and `config_sha256` are added. dtype: round the weights to this, in open_clip's layout alone.
    Raises UserError if the layout cannot hold the model.
    """
    from open_clip.tokenizer import HFTokenizer

    from clipvet.models import class_prompts, visual_prompts

    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(clip, class_prompts.PromptTuned):
        return class_prompts.save(clip, folder, card)
    if isinstance(clip, visual_prompts.Prompted):
        return visual_prompts.save(clip, folder, card)
    if not isinstance(clip, OpenClip):
        raise UserError(f"a {type(clip).__name__} cannot be saved in any layout; save an OpenClip")
    if clip.layout == "open_clip":
        config, weights = layouts.to_open_clip(clip, folder), folder / WEIGHTS
        if isinstance(clip.tokenizer, HFTokenizer):
            clip.tokenizer.save_pretrained(folder)  # stock open_clip looks for it there
        state = clip.model.state_dict()
        io.save_weights({k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}, weights)
        io.write_json(folder / "open_clip_config.json", config)
    else:
        weights = layouts.write(clip, folder)
    digest = io.sha256(weights)
    io.write_json(
        folder / "card.json", {**card, "weights_sha256": digest, "config_sha256": config_hash(folder, weights)}
    )
    return digest


def fresh(clip: Clip, rng: Rng) -> OpenClip:
    """A model of the same architecture and geometry, with new random weights. Raises UserError if it is no OpenClip."""
    if not isinstance(clip, OpenClip):
        raise UserError(f"a {type(clip).__name__} cannot be built anew; give an open_clip model")
    made = building.configured(clip.config, clip.mean.device, rng, {}, "the model", clip.tokenizer)
    made._tokens, made.layout, made.files, made.geometry = clip._tokens, clip.layout, clip.files, clip.geometry
    return made


class Converted(NamedTuple):
    """What `convert` found."""

    sha256: str  # of the weights
    difference: float  # the largest, of any feature and of the temperature (relative)


def convert(clip: Clip, layout: str, folder: Path, card: dict[str, Any], dtype: torch.dtype | None = None) -> Converted:
    """Write the model in another layout, read it back and compare both on random pictures and tokens.

    dtype: round the weights to this, in open_clip's layout alone. Raises UserError if the layout cannot hold the model,
    or if what was read back differs by more than `FAR` says.
    """
    if layout not in layouts.LAYOUTS:
        raise UserError(f"no layout '{layout}'; have {', '.join(layouts.LAYOUTS)}")
    if not isinstance(clip, OpenClip):
        raise UserError("prompts have no other layout; convert their base model")
    if dtype is not None and layout != "open_clip":
        raise UserError(f"{layout}'s layout keeps full precision; use --layout open_clip to round the weights")
    twin = copy.copy(clip)
    if layout != clip.layout:
        twin.layout, twin.files = layout, {}
    digest = save(twin, folder, card, dtype)
    again = load(str(folder))
    if not comparing.reads_alike(clip, again):
        raise UserError(f"{layout} would read captions or pictures in another way than {clip.layout}; keep that layout")
    difference = comparing.difference(frozen(clip).to("cpu"), again)
    if not difference <= FAR[dtype]:
        raise UserError(
            f"in {layout}'s layout the features differ by {difference:.1e} (more than {FAR[dtype]:.0e}); keep "
            f"{clip.layout}'s"
        )
    return Converted(digest, difference)

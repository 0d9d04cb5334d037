"""A model's weights: which file holds them, whether it is the file of the card, and how they get into the model."""

import hashlib
import logging
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module

from clipvet import io
from clipvet.errors import Unsupported, UserError
from clipvet.models import deployed, layouts, siglip, wrappers

WEIGHTS = "open_clip_model.safetensors"
IGNORED = {*layouts.NUMBERS, "text.transformer.embeddings.position_ids"}  # no weights; the last is an old buffer
TOO_LARGE = "describes a far larger model than its weights are"


@contextmanager
def quiet() -> Iterator[None]:
    """Inside this block nothing is logged below an error: open_clip would warn that it has loaded no weights."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def file_for(name: str, pretrained: str | None, tag: dict) -> Path | None:
    """The file of weights that stock open_clip would take, so that what is vetted is what is deployed.

    name: as open_clip knows it. pretrained: a file, or one of its tags. tag: what open_clip knows of that tag, if it is
    one. Returns None for an architecture without weights. Raises UserError if there is no such file, or its download
    fails.
    """
    from open_clip import factory

    if name.startswith("local-dir:"):
        found = file_in(Path(name[10:]))
        check_card(found, Path(name[10:]) / "card.json")
        return found
    try:
        if name.startswith("hf-hub:"):
            found = Path(factory.download_pretrained_from_hf(name[7:]))
            _name_half(name[7:], found.parent)
            return found
        if tag:
            return Path(factory.download_pretrained(tag))
    except Exception as e:  # whatever the network raises
        raise UserError(
            f"{pretrained or name} could not be downloaded ({type(e).__name__}); give a weights file"
        ) from e
    if pretrained and Path(pretrained).is_dir():
        raise UserError(f"pretrained={pretrained} is a folder; give it as the model, or give the file of weights in it")
    if pretrained and not Path(pretrained).is_file():
        raise UserError(f"pretrained={pretrained} is neither a file nor an open_clip tag of {name}; check the path")
    return Path(pretrained) if pretrained else None


def _name_half(repo: str, folder: Path) -> None:
    """Warns where a repository of the hub holds transformers' model beside the one of open_clip's that is taken.

    folder: where its files lie once they are downloaded.
    """
    from huggingface_hub import HfApi

    try:
        names = {*HfApi().list_repo_files(repo)}
    except Exception:  # without a network the files that are here must do
        names = {p.name for p in folder.iterdir()}
    if "config.json" in names and names & {*deployed.TRANSFORMERS}:
        logging.getLogger(__name__).warning(
            "hf-hub:%s holds open_clip's model, which is taken, and transformers' model, which may be another one: "
            "`hf download %s --local-dir DIR` and --model DIR compares both",
            repo, repo,
        )  # fmt: skip


def check_size(folder: Path, state: dict[str, Tensor]) -> None:
    """Raises UserError if open_clip_config.json cannot be read, or describes far more weights than there are."""
    config = io.read_json(folder / "open_clip_config.json")
    if not isinstance(config, dict):
        raise UserError(f"{folder} cannot be built; its open_clip_config.json is not a JSON object: restore it")
    try:
        large = too_large(config, state)
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as e:
        raise UserError(
            f"{folder} cannot be built ({type(e).__name__}: {io.line(e)}); check its open_clip_config.json"
        ) from e
    if large:
        raise UserError(f"{folder} {TOO_LARGE}; restore its open_clip_config.json")


def too_large(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> bool:
    """Whether the config describes more than twice the weights there are. Building the model could take all memory.

    A rough count from below: embeddings and the squares in each block.
    """
    wanted = _text_weights(config["model_cfg"]["text_cfg"]) + _vision_weights(config["model_cfg"]["vision_cfg"])
    return wanted > 2 * sum(v.numel() for v in state.values())


def _text_weights(text: Mapping[str, Any]) -> int:
    if text.get("hf_model_name"):
        return 0
    width, layers = text.get("width", 512), text.get("layers", 12)
    return width * (text.get("vocab_size", 49408) + 4 * layers * width + text.get("context_length", 77))


def _vision_weights(vision: Mapping[str, Any]) -> int:
    name = vision.get("timm_model_name") or ""
    if sizes := re.fullmatch(siglip.NAME, name):
        width, depth = int(sizes[1]), int(sizes[2])
        return 4 * depth * width**2
    if name:
        return 0
    layers = vision.get("layers", 12)
    if not isinstance(layers, int):  # a ResNet's stages
        return sum(layers) * vision.get("width", 64) ** 2
    sides = (vision.get("image_size", 224), vision.get("patch_size", 16))
    size, patch = (max(n) if isinstance(n, list) else n for n in sides)
    width = vision.get("width", 768)
    return width * (4 * layers * width + (size // patch) ** 2)


def weights_file(folder: Path) -> Path:
    """The file of weights, or of prompts, in a model's folder. Raises UserError if there are none or several."""
    if (folder / "prompts.safetensors").is_file():
        return folder / "prompts.safetensors"
    if other := layouts.find(str(folder)):
        if len(other.weights) > 1:
            raise UserError(f"{folder} keeps its weights in {len(other.weights)} files; convert it first")
        return next(iter(other.weights))
    return file_in(folder)


def file_in(folder: Path) -> Path:
    """The file of weights that open_clip would take from its folder. Raises UserError if there is none."""
    from open_clip import factory

    with quiet():
        found = factory._find_checkpoint_in_dir(folder)
    if not found:
        raise UserError(f"{folder} holds no weights; put an {WEIGHTS} there")
    return Path(found)


def config_hash(folder: Path, weights: Path | None = None) -> str:
    """SHA-256 over the files that take part in loading, beside the weights: configs, tokenizer, indexes, adapters.

    weights: the file whose own hash the card holds. A second file of weights counts here, because it may be taken in
    its place, or be deployed by another library. A file that is added later changes the hash.
    """
    digest = hashlib.sha256()
    for name in deployed.names(folder, layouts.CONFIGS):
        if (folder / name).is_file() and folder / name != weights:
            digest.update(f"{name} {io.sha256(folder / name)}\n".encode())
    return digest.hexdigest()


def check_card(weights: Path | None, card: Path) -> None:
    """Raises UserError if there is a card and it names other weights or another configuration.

    weights: None if they lie in several files, which the configuration's hash covers.
    """
    told = io.read_json(card) if card.exists() else None
    told = told if isinstance(told, dict) else {}
    said, config = told.get("weights_sha256"), told.get("config_sha256")
    if config and config != config_hash(card.parent, weights):
        raise UserError(
            f"the configuration in {card.parent} is not the one that {card} describes (a file that takes part in "
            "loading was changed, added or removed); restore it, or delete the card to trust it"
        )
    if said and weights and said != io.sha256(weights):
        raise UserError(f"{weights} is not the file that {card} describes; restore it, or delete the card to trust it")


def fill(net: nn.Module, state: dict[str, Tensor], path: Path, model: str) -> None:
    """Load the weights into the model: every key and every shape must fit, and every number must be finite.

    Names of other libraries that open_clip knows are renamed as it does. path and model are for messages. Raises
    UserError that lists what does not fit; Unsupported for quantised weights.
    """
    wanted = net.state_dict()
    state = _renamed(net, wrappers.without_prefix(state, wanted))
    if wrong := _misfits(state, wanted):
        raise UserError(f"{path} does not fit {model} ({wrong}); {wrappers.way_out(path, state, wanted)}")
    for key, v in state.items():
        if v.dtype in (torch.int8, torch.uint8) and wanted[key].is_floating_point():
            raise Unsupported(f"{path} holds quantised numbers ({key}); give the float weights")
        if wanted[key].is_floating_point() != v.is_floating_point():
            raise UserError(f"{path} holds {key} as {v.dtype}, a wrong kind of number; give the weights as trained")
        if not torch.isfinite(v.float()).all():
            raise UserError(f"{path} holds values in {key} that are not finite; give weights from before they diverged")
    _check_temperature(state, path)
    net.load_state_dict(state)


def _check_temperature(state: Mapping[str, Tensor], path: Path) -> None:
    """Raises UserError for a `logit_scale` that no training leaves behind.

    It is the logarithm of the factor on cosines. CLIP's training keeps it at ln 100 at most. SigLIP, which has a
    `logit_bias`, is not held there; its published models reach 4.8.
    """
    if "logit_scale" not in state or state["logit_scale"].numel() != 1:
        return
    value, siglips = float(state["logit_scale"]), "logit_bias" in state
    most = math.log(1000) if siglips else math.log(100)
    if value < 0.5:
        logging.getLogger(__name__).warning(
            "%s holds logit_scale %.4g, whose exponential, %.3g, hardly tells cosines apart%s",
            path, value, math.exp(value), f"; it is perhaps the temperature itself, and minus its logarithm, "
            f"{-math.log(value):.4g}, was meant" if value > 0 else "",
        )  # fmt: skip
    if value <= most + 0.03:  # bfloat16 rounds ln 100 to 4.625
        return
    factor = 1000 if siglips else 100
    if value <= factor * 1.01:
        raise UserError(
            f"{path} holds logit_scale {value:.4g}, above ln {factor} = {most:.3g}; it is probably exponentiated "
            f"already: store its logarithm, {math.log(value):.4g}"
        )
    raise UserError(
        f"{path} holds logit_scale {value:.4g}, above ln {factor} = {most:.3g}, so its temperature overflows; give "
        "weights from before they diverged"
    )


def _renamed(net: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state under the model's own names, with its scalars in the model's shape."""
    from open_clip import convert, factory

    state = {k: v for k, v in state.items() if k not in IGNORED}
    state = convert.convert_state_dict(net, state)  # pyright: ignore[reportArgumentType]
    if "positional_embedding" in state and not hasattr(net, "positional_embedding"):
        state = factory.convert_to_custom_text_state_dict(state)
    wanted = net.state_dict()
    for scalar in ("logit_scale", "logit_bias"):
        if scalar in state and scalar in wanted and state[scalar].numel() == 1:
            state[scalar] = state[scalar].reshape(wanted[scalar].shape)
    return state


def _misfits(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """What does not fit, in words: keys that are missing, unexpected or of another shape. Empty if all fits."""
    wrong = {
        "missing": [k for k in wanted if k not in state],
        "unexpected": [k for k in state if k not in wanted],
        "of another shape": [
            f"{k} {tuple(v.shape)} for {tuple(wanted[k].shape)}"
            for k, v in state.items()
            if k in wanted and v.shape != wanted[k].shape
        ],
    }
    return "; ".join(
        f"{what}: {', '.join(keys[:3])}" + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
        for what, keys in wrong.items()
        if keys
    )


@contextmanager
def no_more_than(state: dict[str, Tensor], model: str) -> Iterator[None]:
    """Inside this block, a model that takes far more numbers or tensors than these weights have raises UserError.

    It is raised while modules are built, before they take all memory.
    """
    numbers, tensors = 2 * sum(v.numel() for v in state.values()), 2 * len(state) + 100
    seen: dict[int, Tensor] = {}

    def count(_: nn.Module, __: str, held: Tensor | None) -> None:
        nonlocal numbers
        if held is not None and id(held) not in seen:
            seen[id(held)] = held
            numbers -= held.numel()
        if numbers < 0 or len(seen) > tensors:
            raise UserError(f"{model} {TOO_LARGE}; restore its config")

    hooks = (
        module.register_module_parameter_registration_hook(count),
        module.register_module_buffer_registration_hook(count),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

"""A model's weights: which file holds them, whether its card knows it, and into the model strictly, to the last key."""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules import module

from clipvet import io
from clipvet.errors import Unsupported, UserError
from clipvet.models import layouts, tokenizers

CONFIGS = (
    "open_clip_config.json",
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    *tokenizers.FILES,
)
WEIGHTS = "open_clip_model.safetensors"
IGNORED = {  # OpenAI's numbers and older transformers' buffer: no weights
    "input_resolution",
    "context_length",
    "vocab_size",
    "text.transformer.embeddings.position_ids",
}


@contextmanager
def quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # open_clip warns that nothing was loaded, since we load
    try:
        yield
    finally:
        logging.disable(before)


def file_for(name: str, pretrained: str | None, tag: dict) -> Path | None:
    """The file that stock open_clip would take: what is vetted must be what is deployed."""
    from open_clip import factory

    if name.startswith("local-dir:"):
        found = file_in(Path(name[10:]))
        check_card(found, Path(name[10:]) / "card.json")
        return found
    try:
        if name.startswith("hf-hub:"):
            return Path(factory.download_pretrained_from_hf(name[7:]))
        if tag:
            return Path(factory.download_pretrained(tag))
    except Exception as e:  # any of the network's
        raise UserError(
            f"{pretrained or name} could not be downloaded ({type(e).__name__}); give a weights file"
        ) from e
    if pretrained and not Path(pretrained).is_file():
        raise UserError(f"pretrained={pretrained} is neither a file nor an open_clip tag of {name}; check the path")
    return Path(pretrained) if pretrained else None


def check_size(folder: Path, state: dict[str, Tensor]) -> None:
    """UserError where the config describes far more weights than the file has: building it would eat the memory."""
    told = io.read_json(folder / "open_clip_config.json")
    if not isinstance(told, dict):
        raise UserError(f"{folder} cannot be built; its open_clip_config.json is no object: restore it")
    try:
        large = layouts.too_large(told, state)
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as e:
        raise UserError(
            f"{folder} cannot be built ({type(e).__name__}: {io.line(e)}); check its open_clip_config.json"
        ) from e
    if large:
        raise UserError(
            f"{folder} describes a far larger model than its weights are; restore its open_clip_config.json"
        )


def weights_file(folder: Path) -> Path:
    """The one file of weights, or of prompts, in a model's folder. UserError where there is none."""
    if (folder / "prompts.safetensors").is_file():
        return folder / "prompts.safetensors"
    if other := layouts.find(str(folder)):
        if len(other.weights) > 1:
            raise UserError(f"{folder} keeps its weights in {len(other.weights)} files; convert it first")
        return next(iter(other.weights))
    return file_in(folder)


def file_in(folder: Path) -> Path:
    from open_clip import factory

    with quiet():
        found = factory._find_checkpoint_in_dir(folder)
    if not found:
        raise UserError(f"{folder} holds no weights; put an {WEIGHTS} there")
    return Path(found)


def config_hash(folder: Path) -> str:
    """SHA-256 over the files that say how the weights are used: architecture, pictures, tokenizer."""
    digest = hashlib.sha256()
    for name in CONFIGS:
        if (folder / name).is_file():
            digest.update(f"{name} {io.sha256(folder / name)}\n".encode())
    return digest.hexdigest()


def check_card(weights: Path, card: Path) -> None:
    told = io.read_json(card) if card.exists() else None
    said = told.get("weights_sha256") if isinstance(told, dict) else None
    config = told.get("config_sha256") if isinstance(told, dict) else None
    if config and config != config_hash(card.parent):
        raise UserError(
            f"the configuration in {card.parent} is not the one that {card} describes; restore it, or delete the card "
            "to trust it"
        )
    if said and said != io.sha256(weights):
        raise UserError(f"{weights} is not the file that {card} describes; restore it, or delete the card to trust it")


def fill(net: nn.Module, state: dict[str, Tensor], path: Path, model: str) -> None:
    """Load strictly, after open_clip's own renaming of other layouts. UserError names what does not fit."""
    from open_clip import convert, factory

    state = {k: v for k, v in state.items() if k not in IGNORED}
    state = convert.convert_state_dict(net, state)  # pyright: ignore[reportArgumentType]
    if "positional_embedding" in state and not hasattr(net, "positional_embedding"):
        state = factory.convert_to_custom_text_state_dict(state)
    wanted = net.state_dict()
    for scalar in ("logit_scale", "logit_bias"):
        if scalar in state and scalar in wanted and state[scalar].numel() == 1:
            state[scalar] = state[scalar].reshape(wanted[scalar].shape)
    wrong = {
        "missing": [k for k in wanted if k not in state],
        "unexpected": [k for k in state if k not in wanted],
        "of another shape": [
            f"{k} {tuple(v.shape)} for {tuple(wanted[k].shape)}"
            for k, v in state.items()
            if k in wanted and v.shape != wanted[k].shape
        ],
    }
    told = [
        f"{what}: {', '.join(keys[:3])}" + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
        for what, keys in wrong.items()
        if keys
    ]
    if told:
        raise UserError(f"{path} does not fit {model} ({'; '.join(told)}); give the model that it was trained as")
    for key, v in state.items():
        if v.dtype in (torch.int8, torch.uint8) and wanted[key].is_floating_point():
            raise Unsupported(f"{path} holds quantised numbers ({key}); give the float weights")
        if wanted[key].is_floating_point() != v.is_floating_point():
            raise UserError(f"{path} holds {key} as {v.dtype}, not as numbers of its kind; give the weights as trained")
        if not torch.isfinite(v.float()).all():
            raise UserError(f"{path} holds values in {key} that are not finite; give weights from before they diverged")
    net.load_state_dict(state)


@contextmanager
def no_more_than(state: dict[str, Tensor], model: str) -> Iterator[None]:
    """UserError as soon as the modules that are built within hold far more than these weights."""
    numbers, tensors = 2 * sum(v.numel() for v in state.values()), 2 * len(state) + 100
    seen: dict[int, Tensor] = {}

    def count(_: nn.Module, __: str, held: Tensor | None) -> None:
        nonlocal numbers
        if held is not None and id(held) not in seen:
            seen[id(held)] = held
            numbers -= held.numel()
        if numbers < 0 or len(seen) > tensors:
            raise UserError(f"{model} describes a far larger model than its weights are; restore its config")

    hooks = (
        module.register_module_parameter_registration_hook(count),
        module.register_module_buffer_registration_hook(count),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

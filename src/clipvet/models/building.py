"""open_clip builds a model with random weights, from a name or a config. Nothing of a checkpoint's own code is run."""

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipvet import io
from clipvet.errors import UserError
from clipvet.models import gate, siglip
from clipvet.models.adapter import OpenClip
from clipvet.models.weights import no_more_than, quiet
from clipvet.rng import Rng

TOKENIZER = ("clean", "language", "reduction_mask", "strip_sep_token")  # options of a tokenizer that load nothing


def named(
    name: str,
    model: str,
    rng: Rng | None,
    quick_gelu: bool,
    tag: dict[str, Any],
    state: dict[str, Tensor],
    tokenizer: Any = None,
) -> OpenClip:
    """The model that open_clip knows by this name, with random weights.

    model: what the user calls it, for messages. tag: open_clip's facts about a release, which say how its pictures are
    prepared. state: weights that a foreign config must fit, else empty. tokenizer: instead of open_clip's own.

    Raises UserError if the model cannot be built, if it would be far larger than `state`, and if its config asks for
    code of its own.
    """
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
            if state:
                _build_without_memory(build, state, model)
            # open_clip's initialisers draw from the global stream: it is forked and seeded here, and nowhere else
            torch.default_generator.manual_seed((rng or Rng(0)).key)  # the CPU's: torch.manual_seed seeds GPUs too
            with no_more_than(state, model) if state else nullcontext():
                net: Any = build("cpu")
            # by default open_clip runs the folder's code, or asks the user whether to
            untrusting: Any = {"trust_remote_code": False} if config["text_cfg"].get("hf_tokenizer_name") else {}
            if tokenizer is None:
                tokenizer = open_clip.get_tokenizer(name, **untrusting)
        except UserError:
            raise
        except Exception as e:  # whatever a config can get wrong, or the network
            why = str(e).splitlines() or [type(e).__name__]
            raise UserError(
                f"{model} cannot be built ({why[0][:160]}); check its open_clip_config.json, or the connection"
            ) from e
    if quick_gelu:
        config["quick_gelu"] = True
    return OpenClip(net, tokenizer, {"model_cfg": config, "preprocess_cfg": dict(net.visual.preprocess_cfg)})


def configured(
    config: dict[str, Any],
    device: str | torch.device,
    rng: Rng | None,
    state: dict[str, Tensor],
    model: str,
    tokenizer: Any = None,
) -> OpenClip:
    """A model of this config, with random weights. tokenizer: instead of CLIP's own.

    config: {"model_cfg", "preprocess_cfg"}, as in open_clip_config.json. state and model: as for `named`, and the same
    UserErrors.
    """
    text = {
        k: v for k, v in config["model_cfg"]["text_cfg"].items() if k not in ("hf_tokenizer_name", "tokenizer_mode")
    }
    with tempfile.TemporaryDirectory() as folder:
        plain = config | {"model_cfg": config["model_cfg"] | {"text_cfg": text | {"tokenizer_kwargs": {}}}}
        io.write_json(Path(folder) / "open_clip_config.json", plain)
        clip = named(f"local-dir:{folder}", model, rng, False, {}, state, tokenizer)
    clip.config = config
    return onto(clip, device)


def onto(clip: OpenClip, device: str | torch.device) -> OpenClip:
    """The model in eval mode on this device. Raises UserError if the device cannot be used."""
    try:
        return clip.to(device).eval()
    except (RuntimeError, AssertionError) as e:
        raise UserError(f"device {device} cannot be used ({str(e).splitlines()[0]}); use cpu") from e


def _build_without_memory(build: Any, state: dict[str, Tensor], model: str) -> None:
    """Raises UserError if the model is far larger than these weights. Its tensors are counted before they take memory.

    A tower that cannot be built this way is counted when it is really built.
    """
    try:
        with no_more_than(state, model), torch.device("meta"):
            build("meta")
    except UserError:
        raise
    except Exception:
        pass


def _check_code(config: Any, model: str) -> None:
    """Raises UserError if transformers would run code beside the weights, or ask the user whether to run it, and if a
    tower's architecture is read from a folder or repository that is no part of the checkpoint."""
    text = config.get("text_cfg") if isinstance(config, dict) else None
    if not isinstance(text, dict):
        return
    options = text.get("tokenizer_kwargs", {})
    if not isinstance(options, dict) or any(
        k not in TOKENIZER or not isinstance(v, str | bool) for k, v in options.items()
    ):
        raise UserError(
            f"{model} sets more options of its tokenizer than {', '.join(TOKENIZER)} ({options!r:.80}); remove them "
            "from tokenizer_kwargs in its open_clip_config.json"
        )
    name = str(text.get("hf_model_name") or "")
    if name and ":" not in name:
        from transformers import PretrainedConfig  # pyright: ignore[reportMissingImports]

        if gate.asks_for_code(PretrainedConfig.get_config_dict(name)[0]):
            raise UserError(f"{model} has the text tower {name}, which brings its own code; give a model without it")
    for tower in (_timm_name(config), name):
        if ":" in tower or (tower and Path(tower).exists()):
            raise UserError(
                f"{model} takes the architecture of a tower from {tower!r:.80}, which is no part of the checkpoint and "
                "may be changed later; name the tower itself in its open_clip_config.json"
            )


def _timm_name(config: Any) -> str:
    """The name of the vision tower, if timm builds it; else empty."""
    vision = config.get("vision_cfg") if isinstance(config, dict) else None
    return str(vision.get("timm_model_name") or "") if isinstance(vision, dict) else ""

"""What training frameworks put around a state dict: a key that it lies under, and prefixes of its names.

Stock open_clip takes off `state_dict` and `module.`; transformers takes off nothing, and leaves a weight random whose
name it does not know. So a wrapped file is unwrapped where it has one reading, and refused in transformers' layout.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from clipvet import io
from clipvet.errors import Unsupported, UserError

INSIDE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")  # compile, FSDP, Fabric
BEFORE = ("module.", "model.")  # DDP and DeepSpeed, Lightning; before all names or none
OTHERS = {  # checkpoints without a model's weights, by the keys that tell them
    (
        "optimizer_state_dict",
        "ds_version",
    ): "a part of DeepSpeed's ZeRO; run its zero_to_fp32.py and give what that writes",
    ("ds_version",): "a part of DeepSpeed's ZeRO; run its zero_to_fp32.py and give what that writes",
    ("zero_stage",): "a part of DeepSpeed's ZeRO; run its zero_to_fp32.py and give what that writes",
    ("state", "param_groups"): "an optimiser's state and no weights; give the file of the model",
    ("optimizer",): "an optimiser's state and no weights; give the file of the model",
    ("optimizer_state_dict",): "an optimiser's state and no weights; give the file of the model",
}
QUANTISED = (".SCB", ".absmax", ".quant_map", ".qweight", ".qzeros")  # names that bitsandbytes, GPTQ and AWQ add
COUNTERS = ("n_averaged",)  # torch's AveragedModel (EMA, SWA) keeps it beside its module


def state_in(path: Path, bare: bool = False) -> dict[str, Tensor]:
    """The state dict of a file under its own names, without wrappers. bare: refuse wrappers.

    Raises UserError as `io.load_weights`, and if the file holds weights under several keys or names.
    """

    def unwrap(held: Any) -> Any:
        held = held if bare else _without_notes(held)
        state = _under_key(path, held)
        if not _is_state(state):
            return held
        names = _names(path, list(map(str, state)))
        if bare and (state is not held or any(str(k) != name for k, name in zip(state, names.values(), strict=False))):
            raise UserError(
                f"{path} holds its weights inside a wrapper ({_wrapper(held, state)}), so transformers would not find "
                "them and leave them random; save them as the bare model's state_dict()"
            )
        return {names[str(k)]: v for k, v in state.items() if str(k) in names}

    return io.load_weights(path, unwrap)


def _without_notes(held: Any) -> Any:
    """The weights of a flat state dict, without the numbers and words (an epoch, a name) that stand among them."""
    if not isinstance(held, Mapping):
        return held
    tensors = {k: v for k, v in held.items() if isinstance(v, Tensor)}
    notes = all(v is None or isinstance(v, str | int | float) for k, v in held.items() if k not in tensors)
    return tensors if notes and any("." in str(k) for k in tensors) else held


def _is_state(held: Any) -> bool:
    return isinstance(held, Mapping) and bool(held) and all(isinstance(v, Tensor) for v in held.values())


def _under_key(path: Path, held: Any) -> Any:
    """The one state dict in a checkpoint, whatever keys it lies under."""
    if not isinstance(held, Mapping) or _is_state(held):
        return held
    every = dict(_states(held))
    found = {k: v for k, v in every.items() if any("." in str(name) for name in v)} or every  # no scales, no counters
    if len(found) > 1:
        raise UserError(
            f"{path} holds weights under several keys ({', '.join(found)}); save the ones that you deploy in a file of "
            "their own"
        )
    if not found and (what := next((w for keys, w in OTHERS.items() if {*keys} <= {*map(str, held)}), "")):
        raise UserError(f"{path} holds {what}")
    return next(iter(found.values()), held)


def _states(held: Mapping[Any, Any], before: str = "", depth: int = 3) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """The state dicts in a checkpoint, by their keys (`state_dict.model`); an optimiser's own are none."""
    for key, v in held.items():
        name, v = f"{before}{str(key)[:40]}", _without_notes(v)
        if _is_state(v):
            yield name, v
        elif isinstance(v, Mapping) and depth > 1 and "optim" not in name and all(isinstance(k, str) for k in v):
            yield from _states(v, f"{name}.", depth - 1)


def _names(path: Path, names: list[str]) -> dict[str, str]:
    """Each name without its wrappers. Raises UserError if two names become the same."""
    out = {name: ".".join(part for part in name.split(".") if part not in INSIDE) for name in names}
    counted = {k: v for k, v in out.items() if v not in COUNTERS}
    if counted and all(v.startswith("module.") for v in counted.values()):
        out = counted
    while prefix := next((p for p in BEFORE if out and all(v.startswith(p) for v in out.values())), ""):
        out = {k: v[len(prefix) :] for k, v in out.items()}
    twice = [k for k, v in out.items() if k != v and v in out and out[v] == v]
    if twice or len(set(out.values())) < len(out):
        one = (twice or list(out))[0][:80]
        raise UserError(f"{path} holds weights twice, with and without a wrapper's prefix ({one}); save one of them")
    return out


def _wrapper(held: Any, state: Any) -> str:
    if state is not held:
        return f"the key {next((str(k) for k, v in held.items() if isinstance(v, Mapping)), '')[:40]!r}"
    parts = str(next(iter(state))).split(".")
    return f"the prefix {parts[0] + '.'!r}"


def way_out(path: Path, state: Mapping[str, Tensor], wanted: Mapping[str, Any]) -> str:
    """What to do about weights that do not fit. Raises Unsupported for quantised ones."""
    if quantised := next((k for k in state if k.endswith(QUANTISED)), ""):
        raise Unsupported(f"{path} holds quantised weights ({quantised[:80]}); give the float weights")
    if flat := next((k for k in state if k.endswith("_flat_param")), ""):
        return f"{flat[:80]} are FSDP's flattened weights: save them with FULL_STATE_DICT"
    if lora := next((k for k in state if ".lora_" in k), ""):
        return f"{lora[:80]} belongs to an adapter: merge the adapter first (peft: merge_and_unload)"
    if state and not any(v.numel() for v in state.values()):
        return (
            "its weights are empty, as in a part of DeepSpeed's ZeRO: run its zero_to_fp32.py and give what that writes"
        )
    if whole := [p for p in _before(state, wanted) if all(p + k in state for k in wanted)]:
        told = ", ".join(repr(p[:40]) for p in whole[:3])
        return f"whole models stand under the prefix {told}: save the one that you deploy without it"
    if head := next((k for k in state if re.match(r"(classifier|fc|head)\.", k)), ""):
        return f"{head[:40]} belongs to a classifier; give the CLIP model that it was made from"
    tower = {k for k in wanted if k.startswith("visual.")}
    if tower and ({*state} <= tower or {f"visual.{k}" for k in state} <= tower):
        return "it is a picture tower alone: give the whole CLIP model"
    return "give the model that it was trained as"


def without_prefix(state: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state without the name of a module around the model (`net.`, `clip_model.`), if all stands under this one."""
    for p in _before(state, wanted):
        if all(k.startswith(p) for k in state) and all(p + k in state for k in wanted):
            return {k[len(p) :]: v for k, v in state.items()}
    return state


def _before(state: Mapping[str, Tensor], wanted: Mapping[str, Any]) -> list[str]:
    """What stands before the first wanted name, wherever a name of the state ends in it."""
    anchor = next(iter(wanted))
    return [k.removesuffix(anchor) for k in state if k.endswith(f".{anchor}")]

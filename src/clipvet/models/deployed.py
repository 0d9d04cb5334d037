"""What stock libraries read when somebody loads a model's folder the ordinary way.

The ordinary way is `transformers.AutoModel.from_pretrained(DIR)`, with its AutoProcessor, and
`open_clip.create_model("local-dir:DIR")`, with its tokenizer. peft takes part inside transformers wherever it is
installed. A model that is vetted must be the one that these calls deploy, so each file and each key that steers them
has a row here: clipvet reads it in the same way ("read"), or refuses the folder and names it ("refused").

Checked against transformers 5.24 (`modeling_utils`, `image_processing_base`, `tokenization_utils_base`,
`integrations/peft`, `distributed/checkpoint`), open_clip 3.3 (`factory`), timm 1.0 and peft 0.17.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipvet import io
from clipvet.errors import UserError
from clipvet.models import gate


class NoWeights(UserError):
    """A folder in which a stock library finds no weights."""


class File(NamedTuple):
    """A file that takes part in loading."""

    name: str
    library: str  # which reads it
    does: str
    here: str = "read"  # or refused


class Key(NamedTuple):
    """A key of a JSON file that sends a library to another file, or has it compute something else."""

    file: str
    key: str
    does: str
    fix: str  # empty: clipvet reads it in the same way


TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json"),
    *("added_tokens.json", "spiece.model", "tokenizer.model", "vocab.txt", "sentencepiece.bpe.model"),
)
CODE = ("config.json", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
CODE = (*CODE, "tokenizer_config.json")
VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "tekken.json",
    "tiktoken.model",
)  # by a part of a name
WHOLE = ("open_clip_config.json", "config.json", "model.pt")  # each says that a whole model lies in its folder
ADAPTER = "adapter_config.json"

FILES = (
    File("open_clip_config.json", "open_clip", "architecture, preparation of pictures, tokenizer"),
    File("config.json", "transformers", "architecture; may name the file of weights"),
    File("preprocessor_config.json", "transformers", "preparation of pictures"),
    File("processor_config.json", "transformers", "its image_processor goes before preprocessor_config.json"),
    File("video_preprocessor_config.json", "transformers", "may name the processor, without preprocessor_config.json"),
    *(File(name, "transformers, open_clip", "tokenizer") for name in TOKENIZER),
    # transformers takes the first of these that exists
    File("model.safetensors", "transformers, open_clip", "weights"),
    File("model.safetensors.index.json", "transformers", "names the parts of the weights"),
    File("pytorch_model.bin", "transformers, open_clip", "weights"),
    File("pytorch_model.bin.index.json", "transformers", "names the parts of the weights"),
    # open_clip takes the first of these, then model.safetensors, pytorch_model.bin, pytorch_model.pth, model.pth, then
    # the first .safetensors, .bin or .pth by name
    File("open_clip_model.safetensors", "open_clip", "weights"),
    File("open_clip_pytorch_model.safetensors", "open_clip", "weights"),
    File("open_clip_pytorch_model.bin", "open_clip", "weights"),
    File("open_clip_pytorch_model.pth", "open_clip", "weights"),
    File("pytorch_model.pth", "open_clip", "weights"),
    File("model.pth", "open_clip", "weights"),
    File(ADAPTER, "transformers with peft", "an adapter is put onto the weights", "refused"),
    File("adapter_model.safetensors", "transformers with peft", "the adapter's weights", "refused"),
    File("adapter_model.bin", "transformers with peft", "the adapter's weights", "refused"),
)
TRANSFORMERS = tuple(name + end for name in ("model.safetensors", "pytorch_model.bin") for end in ("", ".index.json"))
PROCESSORS = ("CLIPProcessor", "SiglipProcessor")
STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
ODD = ("default_to_square", "use_square_size", "input_data_format")  # of a picture processor
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # that a whole model is loaded in
SHARD = r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors"  # transformers takes these before any other file of weights

KEYS = (
    Key("config.json", "transformers_weights", "names the file of weights", ""),
    Key("config.json", "dtype", "rounds the weights (from version 5 on)", ""),
    Key("config.json", "torch_dtype", "rounds the weights (from version 5 on), if there is no dtype", ""),
    Key("model.safetensors.index.json", "metadata", "may name a dtype, if config.json does not", ""),
    Key("config.json", "quantization_config", "quantises the weights", "give the float weights without it"),
    Key("config.json", "compression_config", "quantises the weights", "give the float weights without it"),
    Key("config.json", "configuration_files", "reads another config", "remove it, and the configs that it names"),
    Key("config.json", "tokenizer_class", "takes that tokenizer, if no tokenizer_config.json names one", "remove it"),
    Key("config.json", "pretrained_cfg", "prepares pictures as timm does", "remove it"),
    Key("tokenizer_config.json", "fast_tokenizer_files", "reads another tokenizer.json", "remove it"),
)


def check(folder: Path, library: str = "") -> None:
    """Raises UserError where a stock library would read something in this folder that clipvet does not.

    library: transformers or open_clip, if the user has named it; else what either reads counts.
    """
    if library != "open_clip" and (folder / ADAPTER).is_file():
        raise UserError(_adapter(folder))
    for name in CODE:
        if name == "config.json" and library == "open_clip":
            continue
        told = _json(folder / name)
        if asked := sorted(gate.asks_for_code(told)):
            raise UserError(
                f"{folder / name} asks for code of the checkpoint's own ({asked[0]}), which clipvet never runs; remove "
                f"{asked[0]} there and load the model without that code"
            )
        named = told.get("processor_class") if isinstance(told, dict) else None
        if named and str(named) not in PROCESSORS:
            raise UserError(
                f"{folder / name} names the processor {named!r:.60}, with which transformers would read captions or "
                f"pictures in another way; clipvet reads {' and '.join(PROCESSORS)}"
            )
        for key in KEYS:
            if key.file == name and key.fix and key.key in _keys(told):
                raise UserError(f"{folder / name} has {key.key}: transformers {key.does}; {key.fix}")
    if other := _other_vocabulary(folder):
        raise UserError(
            f"{folder} holds {other} and no tokenizer.json, so that transformers may take {other} for the tokenizer's "
            "vocabulary; remove or rename it"
        )


def _other_vocabulary(folder: Path) -> str:
    """A file that transformers takes in place of vocab.json if there is no tokenizer.json; empty if there is none.

    It looks for VOCABULARIES anywhere in the names of all files.
    """
    if (folder / "tokenizer.json").is_file():
        return ""
    odd = (p for p in folder.iterdir() if any(word in p.name for word in VOCABULARIES))
    return min((p.name for p in odd if p.name not in TOKENIZER or not p.is_file()), default="")


def check_prompts(folder: Path) -> None:
    """Raises UserError if a whole model lies beside clipvet's prompts: stock libraries would deploy that one."""
    if whole := [name for name in WHOLE if (folder / name).is_file()]:
        raise UserError(
            f"{folder} holds prompts, and beside them a whole model ({whole[0]}), which other libraries deploy without "
            "the prompts; keep them in two folders"
        )


def _adapter(folder: Path) -> str:
    told = _json(folder / ADAPTER)
    told = told if isinstance(told, dict) else {}
    kind = str(told.get("peft_type") or "peft")[:20]
    if any((folder / name).is_file() for name in ("config.json", "open_clip_config.json")):
        return (
            f"{folder} holds {ADAPTER} ({kind}) beside a whole model, and transformers puts that adapter onto the "
            "model; merge the adapter first (peft: merge_and_unload), or remove its files"
        )
    base = str(told.get("base_model_name_or_path") or "an unnamed model")[:120]
    return (
        f"{folder} is an adapter ({kind}) for {base!r}, not a model; merge it into its base (peft: merge_and_unload) "
        "and give what that saves"
    )


def _json(path: Path) -> Any:
    return io.read_json(path) if path.is_file() else {}


def _keys(told: Any) -> set[str]:
    """The keys of a config and of the configs right within it that say something."""
    if not isinstance(told, dict):
        return set()
    parts = [told, *(part for part in told.values() if isinstance(part, dict))]
    return {key for part in parts for key, value in part.items() if value}


def transformers_weights(folder: Path) -> tuple[Path, ...]:
    """The files of weights that transformers would take. Raises NoWeights if there are none, UserError if unclear."""
    path = _file_or_index(folder)
    return _parts(path) if path.name.endswith(".index.json") else (path,)


def dtype_of(folder: Path, first: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype that transformers 5 rounds the weights to: the config's, else the index's, else the weights' own.

    first: the first file of weights. Of these the first number with a fraction counts, by name if it is safetensors.
    Raises UserError for a dtype that no model is loaded in.
    """
    told, path = _json(folder / "config.json"), _file_or_index(folder)
    named = told.get("dtype") or told.get("torch_dtype")
    if named is None and path.name.endswith(".index.json"):
        meta = _json(path).get("metadata")
        named, told = (meta.get("dtype") if isinstance(meta, dict) else None), {}
    if named is None or isinstance(named, dict):
        names = sorted(first) if ".safetensors" in path.name else list(first)
        own = (first[k].dtype for k in names if first[k].is_floating_point() and "float8" not in str(first[k].dtype))
        return next(own, torch.float32) if named is None else torch.float32
    found = getattr(torch, named.removeprefix("torch."), None) if isinstance(named, str) else None
    if found not in DTYPES:
        where = folder / "config.json" if told else path
        raise UserError(f"{where} has the weights as {named!r:.40}; give {', '.join(map(str, DTYPES))}")
    return found


def _file_or_index(folder: Path) -> Path:
    """The file of weights that transformers would take, or the index of its parts."""
    if sharded := [p.name for p in folder.iterdir() if re.fullmatch(SHARD, p.name)]:
        raise UserError(f"{folder} holds a distributed checkpoint ({min(sharded)}); save it as one model.safetensors")
    told = _json(folder / "config.json")
    named = told.get("transformers_weights") if isinstance(told, dict) else None
    if named is not None:
        path = folder / str(named)
        inside = Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))
        known = str(named).endswith((".safetensors", ".safetensors.index.json"))
        if not isinstance(named, str) or not inside or not known or not path.is_file():
            raise UserError(
                f"{folder / 'config.json'} names its weights {named!r:.80} (transformers_weights), which is no "
                "safetensors file of the folder; put the file there, or remove the key"
            )
        return path
    for name in TRANSFORMERS:
        if (folder / name).is_file():
            return folder / name
    variants = sorted([*folder.glob("model.*.safetensors"), *folder.glob("pytorch_model.*.bin")])
    if variants:
        raise NoWeights(
            f"{folder} holds no weights but {variants[0].name}, which transformers reads only if it is told variant=; "
            f"rename it to {re.sub(r'[.].*[.]', '.', variants[0].name)}"
        )
    raise NoWeights(f"{folder} holds no weights; put a model.safetensors there")


def older_weights(folder: Path) -> str:
    """The file of weights that transformers 4 takes, which knows no transformers_weights; empty if it is the same."""
    first = next((name for name in TRANSFORMERS if (folder / name).is_file()), "")
    return first if folder / first != _file_or_index(folder) else ""


def image_processor(folder: Path, kind: str, older: bool = False) -> tuple[Path, dict[str, Any], str]:
    """How transformers 5 prepares pictures: the file that says it, what it says, and whose defaults fill the rest.

    kind: clip or siglip, the model's; the processor may be of the other kind. older: as transformers 4 does, which does
    not look into processor_config.json. Raises UserError for a processor of another kind, or for an unknown step.
    """
    path, told = folder / "processor_config.json", None if older else _json(folder / "processor_config.json")
    told = told.get("image_processor") if isinstance(told, dict) else None
    if told is None:
        path, told = folder / "preprocessor_config.json", _json(folder / "preprocessor_config.json")
    if not isinstance(told, dict):
        raise UserError(f"{path} says how pictures are prepared in no JSON object; restore it")
    config = _json(folder / "config.json")
    named = told.get("image_processor_type") or told.get("feature_extractor_type") or config.get("image_processor_type")
    found = re.fullmatch(r"(CLIP|Siglip)(ImageProcessor|FeatureExtractor)(Fast|Pil)?", str(named)) if named else None
    if named and not found:
        raise UserError(f"{path} names the picture processor {named!r:.60}; clipvet reads CLIP's and SigLIP's only")
    if odd := sorted(k for k in ODD if told.get(k)):
        raise UserError(f"{path} sets {odd[0]}, by which transformers would read its sizes in another way; remove it")
    if steps := sorted(k for k, v in told.items() if k.startswith("do_") and k not in STEPS and v):
        raise UserError(f"{path} asks for {steps[0][:40]}, which CLIP's preparation of pictures has not; remove it")
    return path, told, found[1].lower() if found else kind


def two_layouts(folder: Path) -> bool:
    """Whether both open_clip and transformers find a model in this folder, each by files of its own."""
    if not (folder / "open_clip_config.json").is_file() or not (folder / "config.json").is_file():
        return False
    try:
        transformers_weights(folder)
    except NoWeights:
        return False
    except UserError:
        pass  # it finds something: loading it, to compare, says what is wrong
    return True


def names(folder: Path, first: tuple[str, ...]) -> tuple[str, ...]:
    """The files that may take part in loading this folder, whether they are there or not: a card keeps their hash.

    first: those that come first, in this order, so that the hashes of older cards stay.
    """
    parts: list[str] = []
    for index in (*folder.glob("*.safetensors.index.json"), *folder.glob("*.bin.index.json")):
        told = io.read_json(index)
        listed = told.get("weight_map") if isinstance(told, dict) else None
        parts += [index.name, *(str(n) for n in (listed.values() if isinstance(listed, dict) else ()))]
    config = _json(folder / "config.json")
    if isinstance(config, dict) and "transformers_weights" in config:
        parts.append(str(config["transformers_weights"]))
    parts += [p.name for p in folder.iterdir() if re.fullmatch(SHARD, p.name)]
    inside = sorted(n for n in parts if not Path(n).is_absolute() and ".." not in Path(n).parts)
    return tuple(dict.fromkeys((*first, *(f.name for f in FILES), *inside)))


def _parts(index: Path) -> tuple[Path, ...]:
    """The files that an index names, in the order in which transformers reads them."""
    told = io.read_json(index)
    listed = told.get("weight_map") if isinstance(told, dict) else None
    names = list(listed.values()) if isinstance(listed, dict) else []
    if not names or any(not isinstance(n, str) or Path(n).name != n for n in names):
        raise UserError(f"{index} does not list files of its own folder; restore it")
    parts = tuple(index.parent / n for n in sorted(set(names)))
    if absent := [p.name for p in parts if not p.is_file()]:
        raise UserError(f"{index} names {absent[0][:80]}, which is not there ({len(absent)} in all); download it too")
    return parts
